"""The cost of a run on the fewest devices that hold it."""

from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.planning.cost import ANSWERS, cost_of, evaluation_hours, first_fit
from ba_lora.planning.devices import read_devices, room
from ba_lora.planning.plan import plan
from ba_lora.planning.shapes import _sizes, passing_of
from ba_lora.training.arguments import parse
from eval.all import BENCHMARKS

CONFIGS = Path(__file__).parents[2] / "configs"
LLAMA = "nlg/llama-2-7b-metamath-iclr.yaml"
LARGE = "nlg/llama-3-8b-metamath-iclr.yaml"


def arguments(config, *words):
    return parse(["--config", str(CONFIGS / config), *words, "--dry_run"])


def test_a_cost_is_what_the_plan_says_of_the_same_devices():
    words = [LLAMA, "--effective_batch_size", "128", "--method", "full", "--init", "none"]
    cost = cost_of(arguments(*words))
    assert (cost.devices, cost.fit.placement, cost.fit.checkpointing) == ("4xA40", "ZeRO-3", False)
    made = plan(arguments(*words, "--devices", "4xA40"))["devices"]
    form = made["forms"]["as planned"]
    assert (cost.flops, cost.fit.hours, cost.fit.size) == (
        form["flops"],
        form["hours"],
        form["placements"]["ZeRO-3"],
    )
    assert cost.gpu_hours == tuple(4 * each for each in form["hours"])
    smaller = plan(arguments(*words, "--devices", "2xA40"))["devices"]["forms"]
    placed = [form["placements"][name] for form in smaller.values() for name in ("one replica per device", "ZeRO-3")]
    assert min(placed) > room(read_devices("A40").memory)


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
    cost = cost_of(arguments(*words.split()))
    assert (cost.devices, cost.fit.placement) == (devices, placement)


def test_checkpointing_is_taken_where_it_is_needed():
    run = arguments("nlg/llama-2-7b-metamath-v5.yaml")
    with_it, without = (first_fit(run, read_devices(name)) for name in ("A40", "H100-80"))
    assert (with_it.checkpointing, without.checkpointing) == (True, False)
    assert with_it.placement == without.placement == "one replica per device" and with_it.size < without.size


def test_work_without_a_place_has_hours_all_the_same():
    for words in (["--model", "mixtral-8x7b", "--dtype", "float32"], ["--model", "llama-3-70b", "--quantize", "nf4"]):
        cost = cost_of(arguments(LARGE, *words))
        assert (cost.devices, cost.fit) == (None, None) and 0 < cost.gpu_hours[0] < cost.gpu_hours[1]


def test_what_cannot_be_priced_says_why():
    with pytest.raises(UserError, match="transformers has no model type 'deepseek' of its own"):
        cost_of(arguments(LARGE, "--model", "deepseek-moe-16b"))
    with pytest.raises(UserError, match="the number of rows of someone/data is not known; set --limit or --max_steps"):
        cost_of(parse(["--rank", "4", "--data", "someone/data", "--dry_run"]))
    with pytest.raises(UserError, match="is not a multiple"):
        first_fit(arguments("nlu/deberta-v3-base-mnli.yaml"), read_devices("2xA40"))


def test_runs_that_differ_in_seed_rate_weights_or_start_are_planned_once():
    words = ["nlu/bert-large-cola.yaml", "--max_length", "16", "--rank", "3"]
    cost_of(arguments(*words))
    built = _sizes.cache_info().misses, passing_of.cache_info().misses
    cost_of(arguments(*words, "--seed", "7", "--learning_rate", "1e-4", "--lambda2", "0.5", "--init", "lora"))
    assert (_sizes.cache_info().misses, passing_of.cache_info().misses) == built
    cost_of(arguments(*words, "--lambda2", "0"))
    assert _sizes.cache_info().misses == built[0] + 1


def test_answering_takes_a_reading_of_the_weights_for_each_token_of_a_batch():
    assert ANSWERS.keys() == BENCHMARKS.keys()
    low, high = evaluation_hours("humaneval", 10**9, read_devices("2xA40"))
    assert low == pytest.approx(3 * 200 / (2 * 696 * 0.6) / 3600) and high == pytest.approx(3 * low)
    with pytest.raises(UserError, match="benchmark"):
        evaluation_hours("mmlu", 10**9, read_devices("A40"))
