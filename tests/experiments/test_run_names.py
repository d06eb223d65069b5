"""Names in an experiment file that would put two runs into one folder, or a run outside the runs folder, are refused in one line."""

import re
from pathlib import Path

import pytest
import yaml

from ba_lora.errors import UserError
from ba_lora.experiments import tuning
from ba_lora.experiments.matrix import read_experiment, tuning_runs
from ba_lora.experiments.run_names import LONGEST
from ba_lora.files import load_yaml, write_json
from ba_lora.training.command_line import parse
from tests.common import command

ROOT = Path(__file__).parents[2]
HEAD = f"config: {ROOT}/configs/nlg/tiny.yaml\n"
PLAIN = {"name": "names", "methods": "{lora: {method: lora}}", "seeds": "[1]"}


def written(place, **parts):
    file = place / "names.yaml"
    file.write_text(HEAD + "".join(f"{key}: {text}\n" for key, text in (PLAIN | parts).items()))
    return file


REFUSED = {
    "paths in vary": (
        {"vary": "{data: [a/x.jsonl, b/x.jsonl]}"},
        "vary: data: 'a/x.jsonl' has '/' in it and cannot name a folder; label it: data: {LABEL: {data: VALUE}}",
    ),
    "an absolute path in vary": ({"vary": "{data: [/x.jsonl]}"}, "vary: data: '/x.jsonl' has '/' in it"),
    "a label that leads outside": ({"vary": "{data: {../../up: {data: x}}}"}, "vary: data: '../../up' has '/' in it"),
    "names that join alike": (
        {"models": "{x: {}, x-a: {}}", "data": "[a, a-a]"},
        "two runs would share RUNS/names/x-a-a-lora-s1: (model x, data a-a, method lora, seed 1) and "
        "(model x-a, data a, method lora, seed 1); rename one",
    ),
    "a method that looks varied": (
        {"methods": "{lora: {method: lora}, lora-rank=2: {method: dora}}", "vary": "{rank: [2]}"},
        "two runs would share RUNS/names/lora-rank=2-s1: (model tiny, method lora, rank 2, seed 1) and (model tiny, method lora-rank=2, seed 1)",
    ),
    "a method that looks seeded": (
        {"methods": "{base-s1: {}, base: {method: lora}}"},
        "two runs would share RUNS/names/base-s1: (model tiny, method base-s1) and (model tiny, method base, seed 1)",
    ),
    "a varied seed": ({"vary": "{seed: [1, 2]}"}, "vary: 'seed' cannot be given here; seeds: lists the seeds"),
    "a seed of a label": ({"vary": "{rank: {two: {rank: 2, seed: 3}}}"}, "vary: rank: two: 'seed' cannot be given"),
    "a seed of a method": ({"methods": "{lora: {seed: 3}}"}, "methods: lora: 'seed' cannot be given here"),
    "a seed of a model": ({"models": "{tiny: {seed: 3}}"}, "models: tiny: 'seed' cannot be given here"),
    "a folder of a method": (
        {"methods": "{lora: {output_dir: /tmp/x}}"},
        "methods: lora: 'output_dir' cannot be given here; the matrix names each run's folder",
    ),
    "a run that only plans": ({"methods": "{lora: {dry_run: true}}"}, "methods: lora: 'dry_run' cannot be given here"),
    "a method above": ({"methods": "{../lora: {method: lora}}"}, "methods: '../lora' has '/' in it"),
    "a method that is the folder": ({"methods": "{.: {method: lora}}"}, "methods: '.' begins with a dot"),
    "a hidden method": ({"methods": "{.lora: {method: lora}}"}, "methods: '.lora' begins with a dot"),
    "an empty method": ({"methods": '{"": {method: lora}}'}, "methods: '' is empty"),
    "a blank method": ({"methods": '{"lora ": {method: lora}}'}, "methods: 'lora ' begins or ends with a space"),
    "a line break": (
        {"methods": '{"lo\\nra": {method: lora}}'},
        "methods: 'lo\\nra' has '\\n' in it",
    ),
    "a long method": ({"methods": f"{{{'m' * 250}: {{method: lora}}}}"}, "is too long for a folder"),
    "a number as method": ({"methods": "{1: {method: lora}}"}, "methods: the name 1 is not a text; put it in quotes"),
    "a model above": ({"models": "[../up]"}, "models: '../up' has '/' in it"),
    "a model twice": ({"models": "[x, x]"}, "models: 'x' is there twice"),
    "an absolute model": ({"models": "{/up: {}}"}, "models: '/up' has '/' in it"),
    "data with a backslash": ({"data": "['a\\b']"}, "data: 'a\\\\b' has '\\\\' in it"),
    "an experiment above": ({"name": "../names"}, "name: '../names' has '/' in it"),
    "a folder above": ({"folder": ".."}, "folder: '..' begins with a dot"),
    "rates from elsewhere": ({"rates_of": "../other"}, "rates_of: '../other' has '/' in it"),
    "an evaluation above": ({"evaluate": '{"../test": {data: "tinymath:test"}}'}, "evaluate: '../test' has '/' in it"),
    "generated problems as a benchmark": (
        {"evaluate": '{gsm8k: {data: "tinymath:shifted"}}'},
        "evaluate: gsm8k is a benchmark, and tinymath:shifted are generated problems; choose another name",
    ),
    "evaluations alike": (
        {"evaluate": '{test: {data: "tinymath:test"}, Test: {data: "tinymath:test"}}'},
        "evaluate: 'test' and 'Test' differ only in upper and lower case; rename one",
    ),
    "methods alike": (
        {"methods": "{Base: {}, base: {}}"},
        "methods: 'Base' and 'base' differ only in upper and lower case",
    ),
    "parts alike": (
        {"models": "{x: {}, X-a: {}}", "data": "[a-a, a]"},
        "two runs would share RUNS/names/X-a-a-lora-s1: (model x, data a-a, method lora, seed 1) and (model X-a, data a,",
    ),
    "the file of a failed run": (
        {"methods": "{a: {}, a.failed: {}}"},
        "two runs would share RUNS/names/a.failed: (model tiny, method a) and (model tiny, method a.failed)",
    ),
    "the log of a run": (
        {"methods": "{a.log: {}, a: {}}"},
        "two runs would share RUNS/names/a: (model tiny, method a.log) and (model tiny, method a)",
    ),
    "the table": ({"methods": "{Table.md: {}}"}, "the run Table.md would have the name of a file of the experiment"),
    "equal seeds": ({"seeds": "[1, 2, 1]"}, "seeds: 1 is there twice; leave one out"),
    "a seed as text": ({"seeds": '[1, "1"]'}, "seeds: '1' is not a whole number of at least 0"),
    "a broken seed": ({"seeds": "[1, 1.0]"}, "seeds: 1.0 is not a whole number of at least 0"),
    "a true seed": ({"seeds": "[true]"}, "seeds: True is not a whole number of at least 0"),
    "one seed without a list": ({"seeds": "42"}, "'seeds' must be a list, as [42, 1024]; it is 42"),
    "one value twice": (
        {"vary": "{learning_rate: [1e-3, 0.001]}"},
        "the runs lora-learning_rate=1e-3-s1 and lora-learning_rate=0.001-s1 have the same options; leave one out",
    ),
    "one value under two labels": (
        {"vary": "{rank: {two: {rank: 2}, both: {rank: 2}}}"},
        "the runs lora-rank=two-s1 and lora-rank=both-s1 have the same options",
    ),
    "a list value twice": ({"vary": '{rank: [2, "2"]}'}, "vary: rank: '2' is there twice"),
    "options without values": ({"vary": "{rank: 4}"}, "'vary' must map options to their values"),
    "a method that is there twice": (
        {"methods": "{lora: {method: lora}, lora: {method: dora}}"},
        "is not valid YAML: 'lora' is there twice in",
    ),
    "an option twice": ({"methods": "{lora: {method: lora, rank: 2, rank: 4}}"}, "'rank' is there twice in"),
    "a name whose file of failure has a longer one": (
        {"methods": f"{{{'m' * 235}: {{method: lora}}}}"},
        "is too long for a folder",
    ),
    "an evaluation of nothing": ({"evaluate": "{test: {limit: 3}}"}, "evaluate: test: 'data' is missing or empty"),
    "an evaluation's unknown key": (
        {"evaluate": '{test: {data: "tinymath:test", limt: 3}}'},
        "evaluate: test: unknown key 'limt'",
    ),
    "an evaluation of no problems": (
        {"evaluate": '{test: {data: "tinymath:test", limit: 0}}'},
        "evaluate: test: 'limit' must be a whole number of at least 1; it is 0",
    ),
    "a tuning without a seed": (
        {"tuning": '{data: "tinymath:test", learning_rates: [1e-3]}'},
        "tuning: 'seed' is missing or empty",
    ),
    "a tuning without rates": (
        {"tuning": '{seed: 7, data: "tinymath:test", learning_rates: []}'},
        "tuning: 'learning_rates' is missing or empty",
    ),
    "a rate that is a word": (
        {"tuning": '{seed: 7, data: "tinymath:test", learning_rates: [fast]}'},
        "tuning: 'learning_rates' must be a list of numbers",
    ),
    "a tuning with a true seed": (
        {"tuning": '{seed: true, data: "tinymath:test", learning_rates: [1e-3]}'},
        "tuning: 'seed' must be a whole number of at least 0; it is True",
    ),
    "a margin of no column": (
        {"evaluate": '{test: {data: "tinymath:test"}}', "margins": "{tset: 1}"},
        "margins: column 'tset' is not known, did you mean 'test'? (one of: test)",
    ),
    "a margin of no benchmark": (
        {"margins": "{math: 1}"},
        "margins: column 'math' is not known, did you mean 'tinymath'? (one of: tinymath)",
    ),
    "a margin of 0": (
        {"margins": "{test: 0}"},
        "margins: 'test' must be a number above 0, in the column's unit; it is 0",
    ),
    "a margin without end": ({"margins": "{test: .inf}"}, "margins: 'test' must be a number above 0"),
    "a margin that is a word": ({"margins": "{test: small}"}, "it is 'small'"),
    "a margin without a column": (
        {"margins": "1.0"},
        "margins must map columns to numbers, as margins: {test: 1.0}; it is",
    ),
    "a method without options": ({"methods": "{lora: }"}, "methods: lora must have options, as {rank: 4}, or {}"),
}


@pytest.mark.parametrize(("parts", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_whose_runs_would_share_or_leave_their_folder_is_refused(tmp_path, parts, message):
    with pytest.raises(UserError) as raised:
        read_experiment(written(tmp_path, **parts), tmp_path / "runs")
    said = str(raised.value).replace(str(tmp_path / "runs"), "RUNS")
    assert said.startswith(f"{tmp_path}/names.yaml") and message in said and "\n" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("what", ["run", "tune", "table", "collect"])
def test_every_command_refuses_it_before_anything_runs(tmp_path, what):
    rates = '{seed: 7, data: "tinymath:validation", learning_rates: [1e-3, 0.001]}'
    file = written(tmp_path, seeds="[1, 1]", tuning=rates)
    done = command("-m", "ba_lora.experiments", what, str(file), "--runs", str(tmp_path / "runs"))
    assert done.returncode == 2 and done.stderr == f"error: {file}: seeds: 1 is there twice; leave one out\n"
    assert not (tmp_path / "runs").exists()


def test_rates_of_a_tuning_that_are_written_alike_are_refused(tmp_path):
    file = written(tmp_path, tuning='{seed: 7, data: "tinymath:validation", learning_rates: [1e-3, 0.001]}')
    with pytest.raises(
        UserError, match=re.escape("lora-lr0.001-s7: (model tiny, method lora, learning rate 0.001, seed 7) and (")
    ):
        tuning_runs(file, tmp_path)


def test_a_tuning_keeps_methods_apart_whose_names_look_like_rates(tmp_path, monkeypatch):
    methods = "{x: {method: lora}, x-lr2: {method: dora}}"
    file = written(tmp_path, methods=methods, tuning='{seed: 7, data: "tinymath:test", learning_rates: [0.001]}')
    for number, run in enumerate(tuning_runs(file, tmp_path / "runs").runs):
        run.folder.mkdir(parents=True)
        (run.folder / "measures.json").write_text(f'{{"evaluations": [], "scores": {{"validation": 0.{number + 1}}}}}')
    monkeypatch.setattr(tuning, "run_all", lambda *given: [])
    found = tuning.tune(str(file), str(tmp_path / "runs"), jobs=1).read_text()
    assert '"x": 0.001' in found and '"x-lr2": 0.001' in found


def test_set_gives_no_seed(tmp_path):
    with pytest.raises(UserError, match="^--set: 'seed' cannot be given here; seeds: lists the seeds$"):
        read_experiment(written(tmp_path), tmp_path, changes={"seed": "3"})


def test_labels_make_paths_distinct_and_names_may_hold_what_a_folder_may(tmp_path):
    vary = "{data: {first: {data: a/x.jsonl}, second: {data: b/x.jsonl}}, rank: [2, 4]}"
    made = read_experiment(written(tmp_path, vary=vary, data="[v1.5, größe, a b]"), tmp_path).runs
    assert len({run.folder for run in made}) == len(made) == 3 * 5
    assert "v1.5-lora-data=first-s1" in {run.name for run in made}
    assert {run.folder.parent for run in made} == {tmp_path / "names"}


def test_the_longest_name_leaves_room_for_the_temporary_files_beside_it(tmp_path):
    name = "m" * (LONGEST - len("-s1"))
    (run,) = read_experiment(written(tmp_path, methods=f"{{{name}: {{method: lora}}}}"), tmp_path).runs
    write_json(run.failure, {})
    write_json(tmp_path / f"{run.name}.json", {})
    assert run.failure.is_file() and len(run.name) == LONGEST


@pytest.mark.parametrize("config", ["configs/{modl}.yaml", "configs/{}.yaml", "configs/{model.yaml"])
def test_a_config_with_other_braces_is_refused(tmp_path, config):
    file = written(tmp_path)
    file.write_text(file.read_text().replace(f"config: {ROOT}/configs/nlg/tiny.yaml", f"config: '{config}'"))
    with pytest.raises(UserError, match="is not a file name with optional {model} and {data}"):
        read_experiment(file, tmp_path)


@pytest.mark.parametrize("text", ["rank: 2\nrank: 4\n", "a: &x {r: 1, r: 2}\nb: *x\n", "[{a: [{k: 1, k: 1}]}]"])
def test_a_key_that_is_there_twice_is_no_yaml(tmp_path, text):
    with pytest.raises(yaml.YAMLError, match="is there twice"):
        load_yaml(text)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c.yaml is not valid YAML: '\w+' is there twice in .* line \d"):
        parse(["--config", str(tmp_path / "c.yaml"), "--output_dir", "x"])


def test_yaml_with_anchors_and_merged_keys_is_read_as_before():
    text = "a: &a {r: 1, s: 2}\nb: {<<: *a, r: 3}\nc: [*a, *a]\n"
    assert load_yaml(text) == yaml.safe_load(text) and load_yaml("") is None
