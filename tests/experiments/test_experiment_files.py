"""Every shipped experiment file: the number of its runs, their inputs and evaluations, its twin, its price in the guide."""

import re
from functools import cache
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.experiments.matrix import read_experiment, tuning_runs
from ba_lora.experiments.paper.published import read_paper
from ba_lora.experiments.price import check, needs_gpus, price, render, row
from ba_lora.planning.devices import read_devices
from ba_lora.planning.plan import plan
from ba_lora.training.command_line import changed_options

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "experiments").glob("*.yaml"))
ON_CORES = re.compile(r"-embedded$|laboratory|smollm2")
FOR_GPUS = [file for file in FILES if not ON_CORES.search(file.stem)]
GUIDE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
RUNS = {  # models × data × methods × (1 + varied values) × seeds, and one run per unchanged base model
    "ablation": 3 * 10 * 3,
    "ablation-forms": 2 * 3 * 3,
    "ablation-glue": 8 * 13 * 3,
    "cost": 4 * 3,
    "glue-main": 8 * 10 * 3,
    "gluex": 2 * 8 * 4 * 3,
    "model-sizes": 10 * 2 * 3 * 3,
    "nlg-iclr": 3 * 4 * 3,
    "nlg-main": 3 * 3 * 4 * 3,
    "noise": 2 * 3 * 5 * 3,
    "ranks": 2 * 3 * 8 * 3,
    "roberta-large": 8 * 4 * 3,
    "sensitivity": 23 * 3,
    "training": 3 * 10 * 3,
    "tsne": 2 * 3 * 3,
    "ablation-embedded": 11 * 5,
    "ablation-nlu-embedded": 12 * 5,
    "cost-embedded": 7 * 5,
    "model-sizes-embedded": 3 * (1 + 3 * 5),
    "nlg-main-embedded": 1 + 4 * 5,
    "nlg-thirty-embedded": 2 * 30,
    "nlu-main-embedded": 10 * 5,
    "nlu-training-embedded": 3 * 7 * 5,
    "nlu-cola-embedded": 5 * 3,
    "noise-embedded": 3 * 5 * 5,
    "ranks-embedded": 3 * 9 * 5,
    "sensitivity-embedded": 23 * 5,
    "teacher-share-embedded": 5 * 5,
    "training-embedded": 3 * 6 * 5,
    "tsne-embedded": 3 * 5,
    "laboratory": 12 * 2 * (1 + 15 * 2),
    "laboratory-development": 2 * 2 * (1 + 7 * 2),
    "laboratory-quick": 2 * (1 + 3 * 2),
    "bias-smollm2": 1 + 5 * 3,
    "bias-sensitivity-smollm2": 1 + 2,
}
PRICED_QUICKLY = ("cost",)


@cache
def read(file):
    return read_experiment(file, tuned=False)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_runs_of_every_file_are_counted():
    assert {file.stem for file in FILES} == set(RUNS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_has_its_runs_and_what_they_need_is_known(file):
    experiment = read(file)
    assert len(experiment.runs) == len({run.folder for run in experiment.runs}) == RUNS[file.stem]
    assert experiment.name == file.stem and experiment.title != file.stem
    check(experiment)
    assert experiment.reference is None or experiment.reference in {run.method for run in experiment.runs}
    for name in experiment.paper:
        read_paper(name)
    if experiment.tuning:
        check(tuning_runs(file))


def test_runs_that_files_share_have_the_same_options_in_each():
    first = {}
    for file in FILES:
        for run in read(file).runs:
            other = first.setdefault(run.folder, run)
            if run.arguments:
                assert not changed_options(vars(other.arguments), run.arguments), f"{file.name}: {run.folder}"
    assert len(first) < sum(RUNS.values())


@pytest.mark.parametrize("file", FOR_GPUS, ids=lambda file: file.stem)
def test_a_file_for_gpus_names_its_twin_and_its_devices(file):
    (twin,) = re.findall(r"^# Twin: (\S+-embedded)\.yaml\.$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert twin in RUNS
    assert read_devices(read(file).devices).count > 0
    assert f"experiments run configs/experiments/{file.name}" in GUIDE and f"configs/experiments/{twin}.yaml" in GUIDE
    assert (f"assets/{twin}/table.md" in GUIDE) == (ROOT / "results" / twin).is_dir()  # results come with a table


def test_what_the_guide_names_is_there():
    named = re.findall(r"`((?:assets|configs|results)/[^`]+)`", GUIDE)
    assert len(named) > 20 and [name for name in named if not (ROOT / name).exists()] == ["results/NAME"]


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=() if file.stem in PRICED_QUICKLY else pytest.mark.slow) for file in FOR_GPUS],
    ids=lambda file: file.stem,
)
def test_the_table_of_the_guide_is_what_the_planner_says_today(file):
    assert row(file) in GUIDE.splitlines()


def test_the_table_of_the_guide_has_every_file():
    rows = re.findall(r"^\| \[(\S+)\]\(\.\./configs/experiments/\1\.yaml\) \| (\d+) \|", GUIDE, re.MULTILINE)
    assert {name: int(runs) for name, runs in rows} == {file.stem: RUNS[file.stem] for file in FOR_GPUS}
    assert [file.stem for file in needs_gpus()] == sorted(name for name, _ in rows)


SMALL = """
name: small
config: configs/nlg/tiny.yaml
models: {tiny: {}, odd: {model: deepseek-ai/deepseek-moe-16b-base}}
methods:
  base: {}
  lora: {method: lora, data: "OWNER/NAME:part", limit: 64}
vary: {effective_batch_size: [64]}
seeds: [42, 1024, 2024]
devices: 2xA40
"""


def small(folder, *change):
    file = folder / "small.yaml"
    file.write_text(SMALL.replace(*change) if change else SMALL)
    return read_experiment(file)


def test_a_price_is_the_sum_of_its_runs(tmp_path):
    experiment = small(tmp_path)
    priced = price(experiment)
    line, odd = priced.lines
    run = next(run for run in experiment.runs if run.arguments)
    run.arguments.devices, run.arguments.dry_run = "2xA40", True
    low, high = plan(run.arguments, memory=False)["devices"]["forms"]["as planned"]["hours"]
    assert (line.model, line.method, line.runs) == ("tiny", "lora", 6)  # with and without the larger batch
    assert line.each == pytest.approx((2 * low, 2 * high)) and line.total == pytest.approx((12 * low, 12 * high))
    assert (odd.runs, odd.total) == (6, None) and "no model type 'deepseek'" in odd.reason
    assert (priced.runs, priced.predicted, priced.hours) == (12, 6, line.total)
    text = render(priced)
    assert "12 trainings, under 0.01 GPU-hours on 2xA40, without 6 that are not predicted" in text
    assert "not predicted, odd: configs/models/deepseek-moe-16b.yaml: transformers has no model type" in text


def test_each_model_has_its_own_untouched_base(tmp_path):
    bases = {run.name: run.model for run in small(tmp_path).runs if not run.arguments}
    assert bases == {"tiny-base": "tiny", "odd-base": "deepseek-ai/deepseek-moe-16b-base"}


def test_a_run_without_a_known_number_of_rows_is_not_priced(tmp_path):
    line, _ = price(small(tmp_path, "limit: 64", "limit: none")).lines
    assert line.total is None and "number of rows of OWNER/NAME:part is not known" in line.reason


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "OWNER/NAME:part",
            "nowhere.jsonl",
            "tiny-lora-s42: data nowhere.jsonl is neither an existing path nor a hub id",
        ),
        ("OWNER/NAME:part", "tinymath:tran", "tinymath split 'tran' is not known, did you mean 'train'"),
        ("limit: 64", "benchmarks: [gsm9k]", "benchmark 'gsm9k' is not known, did you mean 'gsm8k'"),
        ("deepseek-ai/deepseek-moe-16b-base", "OWNER/NAME", "odd-base: no numbers of the model 'OWNER/NAME' are here"),
        ("devices: 2xA40", 'evaluate: {test: {data: "tinymath:tst"}}', "tinymath split 'tst' is not known"),
        ("devices: 2xA40", "rates_of: none-such", "rates_of names none-such, and none-such.yaml is not beside it"),
    ],
)
def test_what_is_not_known_is_named_before_anything_runs(tmp_path, before, after, message):
    check(small(tmp_path))
    with pytest.raises(UserError, match=re.escape(message)):
        check(small(tmp_path, before, after))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"split:validation"', '"split:valid"', "split of mnli, 'valid' is not known, did you mean 'validation'"),
        ('"split:validation"', '"shift:imdb"', "set 'imdb' is not known"),
        ('"split:validation"', '"validation"', "evaluation 'validation' is not known (one of: split, shift)"),
    ],
)
def test_what_a_classifier_is_not_judged_by_is_named(tmp_path, before, after, message):
    text = (ROOT / "configs" / "experiments" / "noise.yaml").read_text()
    (tmp_path / "noise.yaml").write_text(text.replace(before, after))
    with pytest.raises(UserError, match=re.escape(message)):
        check(read_experiment(tmp_path / "noise.yaml"))
