"""The DeepSpeed configs after the options have filled them, forbidden settings, and the refusal of FSDP."""

import json
from pathlib import Path

import pytest
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

from ba_lora.errors import UserError
from ba_lora.training.command_line import parse
from ba_lora.training.deepspeed_config import check_config, zero_stage
from ba_lora.training.run import train, training_arguments

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "configs/nlg/tiny.yaml")
CONFIGS = sorted((ROOT / "configs/deepspeed").glob("*.json"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_config_is_filled_from_the_options_alone(tmp_path, file, bf16):
    words = ["--config", TINY, "--output_dir", str(tmp_path / "run"), "--deepspeed", str(file)]
    words += ["--micro_batch_size", "4", "--max_grad_norm", "0.7", "--learning_rate", "3e-4", "--weight_decay", "0.1"]
    arguments = parse(words)
    arguments.deepspeed = None  # otherwise transformers would start the process group
    ours = training_arguments(arguments, arguments.accumulation(2))
    ours.bf16 = bf16  # as on a GPU with --dtype bfloat16
    try:
        filled = HfTrainerDeepSpeedConfig(str(file))
        filled.trainer_config_process(ours)
    finally:
        unset_hf_deepspeed_config()
    config = filled.config
    assert not filled.mismatches and "auto" not in json.dumps(config)
    assert config["train_micro_batch_size_per_gpu"] == 4 and config["gradient_accumulation_steps"] == 4
    assert config["train_batch_size"] == 16  # for the single process here
    assert config["gradient_clipping"] == 0.7
    assert config["bf16"]["enabled"] is bf16 and config["fp16"]["enabled"] is False
    offloaded = "offload" in file.stem
    assert ("optimizer" in config) == offloaded  # offloading takes DeepSpeed's AdamW; otherwise it is torch's
    if offloaded:
        assert config["optimizer"]["type"] == "AdamW"
        assert config["optimizer"]["params"] == {"lr": 3e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1}
    assert filled.is_zero3() == (zero_stage(str(file)) == 3) == file.stem.startswith("zero3")
    assert filled.is_offload() == offloaded


def test_there_is_a_config_for_each_stage_with_and_without_offload():
    assert [file.stem for file in CONFIGS] == ["zero2-offload", "zero2", "zero3-offload", "zero3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gradient_clipping": 0.5}, r'gradient_clipping is 0.5; write "auto", so that --max_grad_norm fills it'),
        ({"gradient_clipping": None}, "gradient_clipping is null"),  # without it DeepSpeed would not clip
        ({"train_micro_batch_size_per_gpu": 2}, "--micro_batch_size fills it"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true; .* --dtype fills it"),
        ({"optimizer": {"type": "AdamW", "params": {"weight_decay": "auto"}}}, "optimizer.params.lr is null"),
        ({"scheduler": {"type": "WarmupLR"}}, "its scheduler would override --lr_scheduler; leave it out"),
    ],
)
def test_a_config_that_says_what_the_options_say_is_refused(tmp_path, change, message):
    file = tmp_path / "own.json"
    config = json.loads((ROOT / "configs/deepspeed/zero2.json").read_text()) | change
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=message) as raised:
        parse(["--config", TINY, "--output_dir", str(tmp_path / "run"), "--deepspeed", str(file)])
    assert "\n" not in str(raised.value)
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in (*change, "fp16")}))
    if not {"gradient_clipping", "train_micro_batch_size_per_gpu"} & change.keys():
        check_config(str(file))  # a section may be absent


def test_fsdp_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as set by accelerate launch --use_fsdp
    with pytest.raises(UserError, match=r"ACCELERATE_USE_FSDP is true .* use --deepspeed .*zero3\.json") as raised:
        train(parse(["--config", TINY, "--output_dir", str(tmp_path / "run")]))
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()
