"""Where the runs of the table are placed."""

from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.planning.devices import read_devices, usable
from ba_lora.planning.fit import first_fit
from ba_lora.planning.plan import plan
from ba_lora.planning.shapes import _sizes, passing_of
from ba_lora.training.command_line import parse

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = "nlg/llama-2-7b-metamath-iclr.yaml"
LARGE = "nlg/llama-3-8b-metamath-iclr.yaml"
A40 = read_devices("A40")


def arguments(config, *words):
    return parse(["--config", str(CONFIGS / config), *words, "--dry_run"])


def fewest(words):
    """The first of 1, 2, 4 and 8 A40 on which a run can be placed, and where."""
    for count in (1, 2, 4, 8):
        if fit := first_fit(arguments(*words.split()), read_devices(f"{count}xA40")):
            return f"{count}xA40", fit


def test_a_fit_is_what_the_plan_says_of_the_same_devices():
    words = f"{LLAMA} --effective_batch_size 128 --method full --init none"
    devices, fit = fewest(words)
    assert (devices, fit.placement, fit.checkpointing) == ("4xA40", "ZeRO-3", False)
    made = plan(arguments(*words.split(), "--devices", "4xA40"))["devices"]
    form = made["forms"]["as planned"]
    assert (fit.flops, fit.hours, fit.size) == (form["flops"], form["hours"], form["placements"]["ZeRO-3"])
    smaller = plan(arguments(*words.split(), "--devices", "2xA40"))["devices"]["forms"]
    placed = [form["placements"][name] for form in smaller.values() for name in ("one replica per device", "ZeRO-3")]
    assert min(placed) > usable(read_devices("A40").memory)


@pytest.mark.parametrize(
    ("words", "devices", "placement"),
    [
        (LLAMA, "1xA40", "one replica per device"),
        (f"{LLAMA} --quantize nf4", "1xA40", "one replica per device, base in 4 bits"),
        ("nlu/deberta-v3-base-mnli.yaml", "1xA40", "one replica per device"),
        pytest.param(f"{LARGE} --model mixtral-8x7b", "4xA40", "ZeRO-3", marks=pytest.mark.slow),
        pytest.param(f"{LARGE} --model yi-1.5-34b", "4xA40", "ZeRO-3", marks=pytest.mark.slow),
        pytest.param(f"{LARGE} --model llama-3-70b", "8xA40", "ZeRO-3", marks=pytest.mark.slow),
    ],
)
def test_the_fewest_devices_are_found(words, devices, placement):
    found, fit = fewest(words)
    assert (found, fit.placement) == (devices, placement)


@pytest.mark.slow
def test_checkpointing_is_taken_where_it_is_needed():
    run = arguments("nlg/llama-2-7b-metamath-v5.yaml")
    with_it, without = (first_fit(run, read_devices(name)) for name in ("A40", "H100-80"))
    assert (with_it.checkpointing, without.checkpointing) == (True, False)
    assert with_it.placement == without.placement == "one replica per device" and with_it.size < without.size


def test_what_cannot_be_priced_says_why():
    with pytest.raises(UserError, match="transformers has no model type 'deepseek' of its own"):
        first_fit(arguments(LARGE, "--model", "deepseek-moe-16b"), A40)
    with pytest.raises(UserError, match="the number of rows of someone/data is not known; set --limit or --max_steps"):
        first_fit(parse(["--rank", "4", "--data", "someone/data", "--dry_run"]), A40)
    with pytest.raises(UserError, match="is not a multiple"):
        first_fit(arguments("nlu/deberta-v3-base-mnli.yaml"), read_devices("2xA40"))


@pytest.mark.slow
def test_runs_that_differ_in_seed_rate_weights_or_start_are_planned_once():
    words = ["nlu/bert-large-cola.yaml", "--max_length", "16", "--rank", "3"]
    first_fit(arguments(*words), A40)
    built = _sizes.cache_info().misses, passing_of.cache_info().misses
    first_fit(arguments(*words, "--seed", "7", "--learning_rate", "1e-4", "--lambda2", "0.5", "--init", "lora"), A40)
    assert (_sizes.cache_info().misses, passing_of.cache_info().misses) == built
    first_fit(arguments(*words, "--lambda2", "0"), A40)
    assert _sizes.cache_info().misses == built[0] + 1
