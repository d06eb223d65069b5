"""--start_form: which options go with it, what a run in delta form records, and that it is continued in its form alone."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ba_lora.errors import UserError
from ba_lora.files import read_json, write_json
from ba_lora.folders.tensor_files import load_tensors
from ba_lora.methods.save import load
from ba_lora.objective.settings import Objective
from ba_lora.planning.plan import plan, render
from ba_lora.training.checkpoints import START
from ba_lora.training.command_line import as_config, changed_options, parse
from ba_lora.training.prepare_generator import prepare
from ba_lora.training.run import train
from tests.common import small_llama
from tests.training.resuming import GENERATION, SHORT, begin

DELTA = [*GENERATION, "--start_form", "delta"]


@pytest.fixture(scope="module")
def delta(generation, tmp_path_factory):
    home = tmp_path_factory.mktemp("delta") / "home"
    shutil.copytree(generation, home, ignore=shutil.ignore_patterns("run", "done"))
    return begin(DELTA, home)


def parsed(*words):
    return parse([*words, "--output_dir", "somewhere"])


def test_the_residual_form_is_the_default_everywhere():
    for words in ([], ["--dtype", "bfloat16"], ["--method", "lora"], ["--quantize", "nf4"], ["--start_form", "none"]):
        assert parsed(*words).start_form == "residual"
    assert as_config(parsed("--start_form", "delta"))["start_form"] == "delta"


@pytest.mark.parametrize(
    "words",
    [
        ["--data", "tinymath:train"],
        pytest.param(["--task", "cola", "--model", "gpt2-xl", "--limit", "8"], marks=pytest.mark.slow),
    ],
)
def test_a_plan_names_the_form_and_has_the_sizes_of_the_other(words):
    made, other = (plan(parsed(*words, "--start_form", form), memory=False) for form in ("delta", "residual"))
    assert "from a pissa start in delta form" in render(made) and "form" not in render(other)
    for size in ("parameters", "trainable_parameters", "targets", "memory", "disk"):
        assert made[size] == other[size], size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--start_form", "detla"], "start_form 'detla' is not known, did you mean 'delta'"),
        (["--start_form", "delta", "--method", "lora"], "start_form 'delta' .* method 'lora' starts as 'lora'"),
        (["--start_form", "delta", "--init", "lora"], "start_form 'delta' .* method 'ba-lora' starts as 'lora'"),
        (["--start_form", "delta", "--quantize", "nf4"], "--start_form delta .* --quantize nf4"),
        (["--dropout", "0.1"], "--dropout 0.1 does not go with a PiSSA start .* add --start_form delta"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as refused:
        parsed(*words)
    assert "\n" not in str(refused.value)


def test_dropout_goes_with_the_delta_form():
    assert parsed("--start_form", "delta", "--dropout", "0.1").dropout == 0.1


def test_a_run_of_an_earlier_version_was_in_residual_form():
    earlier = as_config(parsed())
    del earlier["start_form"]
    assert changed_options(earlier, parsed()) == {}
    assert changed_options(earlier, parsed("--start_form", "delta")) == {"start_form": ("residual", "delta")}


@pytest.mark.parametrize(("name", "other"), [("generation", DELTA), ("delta", GENERATION)])
@pytest.mark.parametrize("folder", ["run", "done"])
def test_a_run_is_not_continued_in_the_other_form(here, name, other, folder):
    here(name)
    with pytest.raises(
        UserError, match=f"--resume: start_form is .* and was .* in {folder}; give the first"
    ) as refused:
        train(parse([*other, *SHORT, "--resume", "--output_dir", folder]))
    assert "\n" not in str(refused.value)


def test_a_start_of_the_other_form_is_refused_even_if_the_record_was_changed(here):
    here("generation")
    record = read_json("run/run.json")
    record["config"]["start_form"] = "delta"
    write_json("run/run.json", record)
    with pytest.raises(UserError, match=r"the initial values in .*start\.safetensors"):
        train(parse([*DELTA, *SHORT, "--resume"]))


def test_a_run_in_delta_form_continues_to_the_same_bits_without_a_decomposition(here, capsys):
    here("delta")
    assert {
        name.rpartition(".default")[0].rpartition(".")[2] for name in load_tensors(Path("run/checkpoints", START))
    } == {
        "lora_A0",
        "lora_B0",
    }
    capsys.readouterr()
    train(parse([*DELTA, *SHORT, "--resume"]))
    assert "decomposed" not in capsys.readouterr().out
    record = read_json("run/run.json")
    assert record["config"]["start_form"] == "delta" and record["decomposition"]["method"] == "pissa"
    train(parse([*DELTA, *SHORT, "--output_dir", "whole"]))
    assert " 0 matrices decomposed" in capsys.readouterr().out  # the cache is shared with the other form
    one, other = (Path(folder, "adapter/adapter_model.safetensors").read_bytes() for folder in ("run", "whole"))
    assert one == other
    assert "the initial factors and their changes" in Path("run/adapter/README.md").read_text(encoding="utf-8")


def test_weight_decay_is_allowed_and_said(here, caplog):
    here("delta")
    train(parse([*DELTA, *SHORT, "--overwrite", "--max_steps", "1", "--weight_decay", "0.1"]))
    assert [line for line in caplog.messages if "this is not the trajectory of PiSSA" in line]


def test_a_folder_with_a_base_in_4_bits_is_trained_on_and_evaluated(here):
    here("delta")
    kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    small_llama(vocab_size=768, hidden_size=64, intermediate_size=128).save_pretrained("wide")
    base = AutoModelForCausalLM.from_pretrained("wide", quantization_config=kind, dtype=torch.float32)
    base.save_pretrained("M")
    words = [*DELTA, *SHORT, "--output_dir", "quantised", "--lambda1", "0.1"]
    with pytest.raises(UserError, match=r"zero3\.json: ZeRO-3 cannot cut the packed weights of --model M; use ZeRO-2"):
        prepare(parse([*words, "--deepspeed", "configs/deepspeed/zero3.json"]), Objective())
    train(parse(words))
    assert read_json("quantised/run.json")["status"] == "finished"
    opened, ids = load("quantised"), torch.arange(5, 30)[None]
    assert type(opened.get_submodule("base_model.model.model.layers.0.mlp.up_proj.base_layer")).__name__ == "Linear4bit"
    assert (opened(ids).logits - base(ids).logits).abs().max() > 1e-4
