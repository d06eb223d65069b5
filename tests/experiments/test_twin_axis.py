"""Pairs of twins as an axis of an experiment file, and what is measured along a run's path."""

import copy
import dataclasses

import pytest
import torch
import yaml

from ba_lora.errors import UserError
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.measures import planted
from ba_lora.laboratory.names import parse

CONTENT = {
    "name": "pairs",
    "config": "configs/nlg/twin.yaml",
    "twins": [4, 3],
    "methods": {
        "base": {},
        "pissa": {"method": "pissa"},
        "counter": {"method": "pissa", "data": "planted:counter:{pair}"},
    },
    "paths": ["pissa"],
    "primary": {
        "method": "counter",
        "reference": "pissa",
        "margin": 10,
        "loss_margin": 0.02,
        "gate": 0.5,
        "untaught": 5,
    },
    "seeds": [1, 2],
    "evaluate": {"own": {"data": "planted:own-test", "limit": 20}},
}


def read(tmp_path, **changes):
    file = tmp_path / "pairs.yaml"
    file.write_text(yaml.safe_dump(CONTENT | changes, sort_keys=False))
    return read_experiment(file, tmp_path / "runs")


def test_runs_go_pair_by_pair_and_the_twins_take_turns(tmp_path):
    runs = read(tmp_path).runs
    names = ["base", "pissa-s1", "pissa-s2", "counter-s1", "counter-s2"]
    assert [run.name for run in runs] == [f"{side}{pair}-{name}" for pair in (3, 4) for name in names for side in "AB"]
    assert runs[0].model == "twin:A,seed=3"
    assert {run.arguments.data for run in runs if run.method == "counter"} == {"planted:counter:3", "planted:counter:4"}
    assert {run.method for run in runs if run.has_path} == {run.method for run in runs if run.has_random} == {"pissa"}
    more = read(tmp_path, paths=["counter", "pissa"]).runs
    assert {run.method for run in more if run.has_path} == {"counter", "pissa"}
    assert {run.method for run in more if run.has_random} == {"counter"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"twins": ["A"]}, "'twins' must be a list of seeds of at least 0"),
        ({"twins": [1, 1]}, "'twins' names a seed twice"),
        ({"models": ["x"]}, "both 'models' and 'twins'"),
        ({"primary": None}, "runs on twins: add the comparison with verdicts"),
        ({"primary": {"method": "pissa"}}, "'primary' needs method, reference, margin, loss_margin, gate, untaught"),
        ({"primary": CONTENT["primary"] | {"counter": "no"}}, "primary: counter 'no' is not among the methods"),
        ({"primary": CONTENT["primary"] | {"counter": ["no"]}}, "is not among the methods"),
        ({"primary": CONTENT["primary"] | {"contrasts": [["pissa", []]]}}, "is not among the methods"),
        ({"primary": CONTENT["primary"] | {"gate": 0}}, "primary: gate is 0, a positive number is needed"),
        ({"primary": CONTENT["primary"] | {"gat": 1}}, "primary: unknown key 'gat', did you mean 'gate'"),
        (
            {"primary": CONTENT["primary"] | {"contrasts": ["pissa"]}},
            "contrasts is \\['pissa'\\], pairs of methods such as",
        ),
        (
            {"primary": CONTENT["primary"] | {"contrasts": [["pissa", "no"]]}},
            "contrasts: 'no' is not among the methods",
        ),
        ({"paths": ["pisa"]}, "method 'pisa' is not known, did you mean 'pissa'"),
    ],
)
def test_refusals(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


def test_path_and_random_update(tmp_path, tiny_model, tiny_tokenizer, monkeypatch):
    tuned = copy.deepcopy(tiny_model)
    layer = "model.layers.0.mlp.up_proj.weight"
    start = tiny_model.get_parameter(layer).detach().clone()
    update = torch.outer(torch.randn(start.shape[0]), torch.randn(start.shape[1])) * 0.01
    with torch.no_grad():
        tuned.get_parameter(layer).add_(update)
    seen = []

    def measure(model, tokenizer, seed):
        seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return {"number": len(seen)}

    monkeypatch.setattr(planted, "measure", measure)
    run = next(run for run in read(tmp_path).runs if run.has_path)
    found = planted.measure_planted(run, parse(run.model), tiny_model, tuned, tiny_tokenizer)
    assert found == {
        "number": 1,
        "path": {str(alpha): {"number": 2 + place} for place, alpha in enumerate(planted.ALPHAS)},
        "random": {"number": 2 + len(planted.ALPHAS)},
    }
    second = planted.measure_planted(
        dataclasses.replace(run, has_random=False), parse(run.model), tiny_model, tuned, tiny_tokenizer
    )
    assert len(second["path"]) == len(planted.ALPHAS) and "random" not in second
    seen = seen[: 2 + len(planted.ALPHAS)]
    for alpha, weights in zip((1.0, *planted.ALPHAS), seen, strict=False):
        assert torch.allclose(weights[layer], start + alpha * update, atol=1e-6)
    moved = seen[-1].pop(layer) - start
    assert torch.linalg.vector_norm(moved).item() == pytest.approx(torch.linalg.vector_norm(update).item(), rel=1e-4)
    assert torch.linalg.matrix_rank(moved, rtol=1e-3).item() == run.arguments.rank
    assert abs(torch.nn.functional.cosine_similarity(moved.flatten(), update.flatten(), dim=0)) < 0.05
    assert all(torch.equal(weight, tiny_model.get_parameter(name)) for name, weight in seen[-1].items())
