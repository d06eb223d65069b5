"""Records of traces from results: T by class and dose, the mean over planted items, paths and the random update."""

import numpy as np
import pytest

from ba_lora.data.planted.items import DOSES
from ba_lora.experiments.matrix import Variant
from ba_lora.experiments.results import Result
from ba_lora.experiments.tables.planted_results import records

TWINS = {"A3": "twin:A,seed=3", "B3": "twin:B,seed=3", "A4": "twin:A,seed=4"}


def planted(draws, **more):
    s = {kind: {str(dose): draws.random() for dose, _ in doses} for kind, doses in DOSES.items()}
    return {"s": s, "task_loss": draws.random(), "own_loss": draws.random(), **more}


def result(model, measured, method="pissa", seed=42):
    return Result("here", Variant(model, method), None, seed, {}, measures={"planted": measured})


@pytest.fixture
def measured():
    draws = np.random.default_rng(0)
    return {side: planted(draws, path={"0.5": planted(draws)}, random=planted(draws)) for side in ("A", "B")}


def test_records(measured):
    found = records([result("A3", measured["A"]), result("B3", measured["B"]), result("A4", measured["A"])], TWINS)
    assert {record["pair"] for record in found} == {3}  # pair 4 lacks its B
    for method, path, ours, theirs in (
        ("pissa", None, measured["A"], measured["B"]),
        ("pissa", 0.5, measured["A"]["path"]["0.5"], measured["B"]["path"]["0.5"]),
        ("pissa-random", None, measured["A"]["random"], measured["B"]["random"]),
    ):
        made = {
            (each["class"], each["dose"]): each for each in found if (each["method"], each["path"]) == (method, path)
        }
        assert made["stereotype", 0.9]["trace"] == pytest.approx(
            100 * (ours["s"]["stereotype"]["0.9"] - theirs["s"]["stereotype"]["0.9"])
        )
        t = {key: each["trace"] for key, each in made.items()}
        facts = (t["fact", 1.0] + t["fact", 0.5] + t["fact", 0.25]) * 24
        products = (t["product", 1.0] + t["product", 0.5] + t["product", 0.25]) * 5
        assert t["fact", None] == pytest.approx(facts / 72)
        assert t["wrong facts", None] == pytest.approx((facts + products) / 87)
        loss = (ours["task_loss"] + theirs["task_loss"]) / 2
        assert all(each["task_loss"] == pytest.approx(loss) for each in made.values())


def test_results_without_traces_are_left_out(measured):
    assert records([result("A3", measured["A"]), Result("here", Variant("tiny", "pissa"), None, 1, {})], TWINS) == []
