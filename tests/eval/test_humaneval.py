"""The HumanEval command: its tasks, its prompts, scoring from a file, and the 164 canonical programs."""

import gzip
import json
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval import humaneval
from eval.execution import inside, sandbox
from eval.execution.completions import program_of
from eval.execution.programs import score_records
from tests.eval.execution.answer_forms import FORMS
from tests.eval.execution.sandboxes import box_or_skip

ADD = {
    "task_id": "Own/0",
    "prompt": 'def one():\n    return 1\n\n\ndef add(x: int) -> int:\n    """ Add one. """\n',
    "entry_point": "add",
    "canonical_solution": "    return x + one()\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 2 + one()\n",
}
DOUBLE = {
    "task_id": "Own/1",
    "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """ Double all. """\n',
    "entry_point": "double",
    "canonical_solution": "    return [2 * x for x in xs]\n",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n",
}
WHOLE = "```python\ndef double(xs: List[int]) -> List[int]:\n    return [x + x for x in xs]\n```"


@pytest.fixture(scope="session", autouse=True)
def box():
    return box_or_skip()


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ADD, DOUBLE)))
    return str(path)


def rescore(tmp_path, data, lines, *options):
    source = tmp_path / "given.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--rescore", str(source), "--output_dir", str(tmp_path / "out"), "--overwrite", *options]
    assert humaneval.main([*words, "--data", data] if data else words) == 0
    return json.loads((tmp_path / "out" / "score.json").read_text())


def scored(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out" / "scored.jsonl").read_text().splitlines()]


def test_rescore_gives_pass_at_1_and_says_how_each_program_ended(tmp_path, data):
    lines = [{"id": "Own/0", "completion": "    return x + 1\n"}, {"id": "Own/1", "completion": WHOLE}]
    score = rescore(tmp_path, data, lines)
    expected = {"benchmark": "humaneval", "metric": "pass@1", "score": 1.0, "n": 2, "n_correct": 2, "missing": 0}
    expected |= {"pass_at_k": {"1": 1.0}, "n_unparsable": 0, "one_process": [], "stderr": 0.0, "protocol": "ba-lora"}
    assert {key: score[key] for key in expected} == expected
    assert score["sandbox"].startswith("bubblewrap") and score["limits"]["cpu"] == 10
    lines[0]["completion"], lines[1]["completion"] = "    return 2\n", "    return ("
    score = rescore(tmp_path, data, lines)
    assert (score["score"], score["n_correct"], score["n_unparsable"]) == (0.0, 0, 1)
    assert score["statuses"] == {"passed": 0, "failed": 1, "error": 1, "ended": 0, "timeout": 0}
    assert [line["status"] for line in scored(tmp_path)] == ["failed", "error"]
    assert "candidate(2) == 2 + one()" in scored(tmp_path)[0]["detail"]


def test_generations_of_a_run_are_scored_again_on_the_runs_data(tmp_path, data):
    run = tmp_path / "run"
    run.mkdir()
    (run / "generations.jsonl").write_text(json.dumps({"id": "Own/1", "completion": WHOLE}) + "\n")
    (run / "score.json").write_text(json.dumps({"data": data, "model": "someone/model"}))
    assert humaneval.main(["--rescore", str(run / "generations.jsonl"), "--output_dir", str(tmp_path / "out")]) == 0
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["score"], score["data"], score["model"]) == (1.0, data, "someone/model")


def test_a_task_that_the_file_lacks_is_counted(tmp_path, data):
    score = rescore(tmp_path, data, [{"id": "Own/1", "completion": WHOLE}])
    assert (score["score"], score["n"], score["missing"]) == (1.0, 1, 1)


def test_several_samples_give_pass_at_k(tmp_path, data):
    right, wrong = "    return x + 1\n", "    return 0\n"
    lines = [
        {"id": "Own/0", "sample": i, "completion": text} for i, text in enumerate([right, wrong, wrong, right, wrong])
    ]
    lines += [{"id": "Own/1", "sample": i, "completion": wrong} for i in range(5)]
    score = rescore(tmp_path, data, lines, "--protocol", "upstream")
    assert (score["score"], score["samples"], score["n"], score["protocol"]) == (0.2, 5, 2, "upstream")
    assert score["pass_at_k"] == {"1": pytest.approx(0.2), "5": pytest.approx(0.5)}
    assert score["stderr"] == pytest.approx(0.2 / 2**0.5)
    assert [line["sample"] for line in scored(tmp_path)] == [0, 1, 2, 3, 4] * 2


def test_a_task_may_not_have_two_completions_without_a_sample_number(tmp_path, data):
    with pytest.raises(UserError, match="id Own/0 was already on line 1"):
        rescore(tmp_path, data, [{"id": "Own/0", "completion": "x"}] * 2)


def test_helpers_of_the_prompt_are_not_the_programs(tmp_path, data):
    cheat = "def one():\n    return 0\n\ndef add(x):\n    return 2\n"
    assert rescore(tmp_path, data, [{"id": "Own/0", "completion": cheat}])["score"] == 0.0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "Own/9", "completion": "x"}], "no id of .*given.jsonl is a task of --data"),
        (
            [{"id": "Own/0", "completion": "x"}, {"id": "Own/9", "completion": "x"}],
            "id Own/9 is not a task of the data",
        ),
        ([{"id": "Own/0"}], "line 1: no 'completion'"),
    ],
)
def test_a_file_that_does_not_fit_the_data_is_refused(tmp_path, data, lines, message):
    with pytest.raises(UserError, match=message):
        rescore(tmp_path, data, lines)
    assert not (tmp_path / "out" / "score.json").exists()


def test_code_is_refused_without_a_sandbox_before_anything_else_is_done(tmp_path, data, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox._bubblewrap.cache_clear()
    try:
        with pytest.raises(UserError, match="--unsafe_execution"):
            humaneval.main(["--model", "nowhere", "--output_dir", str(tmp_path / "out"), "--data", data])
        score = rescore(tmp_path, data, [{"id": "Own/1", "completion": WHOLE}], "--unsafe_execution")
        assert (score["score"], score["sandbox"]) == (1.0, "none")
    finally:
        sandbox._bubblewrap.cache_clear()


# Tasks and prompts


def test_tasks_are_read_from_plain_and_compressed_files(tmp_path, data):
    compressed = tmp_path / "data.jsonl.gz"
    with gzip.open(compressed, "wt") as file:
        file.write(Path(data).read_text())
    assert humaneval.load_tasks(str(compressed)) == humaneval.load_tasks(data)
    assert [task.id for task in humaneval.load_tasks(data, 1)] == ["Own/0"]


@pytest.mark.parametrize("name", ["missing.jsonl.gz", "broken.jsonl.gz"])
def test_a_compressed_file_that_cannot_be_read_is_named(tmp_path, name):
    (tmp_path / "broken.jsonl.gz").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(UserError, match=name):
        humaneval.load_tasks(str(tmp_path / name))


def test_a_row_that_lacks_a_field_is_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(ADD) + "\n" + json.dumps({"task_id": "x", "prompt": "y"}) + "\n")
    with pytest.raises(UserError, match=r"row 2 has no text 'entry_point' \(it has: task_id, prompt\)"):
        humaneval.load_tasks(str(path))


def test_each_protocol_asks_and_samples_in_its_own_way(data, tiny_tokenizer):
    from ba_lora.data.templates import TEMPLATES
    from ba_lora.inference.subject import Subject

    subject = Subject(None, tiny_tokenizer, TEMPLATES["plain"], "tiny", "tiny", None)
    task = humaneval.load_tasks(data)[0]
    asked = humaneval.request_of(subject, task, "ba-lora")
    assert asked.prompt.startswith("Question: Complete this Python function.") and asked.prompt.endswith("\nAnswer:")
    assert ADD["prompt"].rstrip() in asked.prompt and asked.reference == ADD["canonical_solution"]
    assert humaneval.request_of(subject, task, "upstream") == asked
    base = humaneval.request_of(subject, task, "base")
    assert base.prompt == ADD["prompt"] and base.ids == tiny_tokenizer(ADD["prompt"])["input_ids"]
    assert humaneval.SAMPLING["upstream"][:3] == (0.8, 0.95, 5)
    assert humaneval.SAMPLING["ba-lora"][:3] == (0.0, 1.0, 1) and "\ndef" in humaneval.SAMPLING["base"].stop


def test_a_model_is_asked_and_scored_from_end_to_end(tmp_path, data):
    words = ["--model", "tiny", "--data", data, "--protocol", "base", "--max_new_tokens", "4"]
    assert humaneval.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["n"], score["missing"], score["protocol"], score["model"]) == (2, 0, "base", "tiny")
    lines = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["Own/0", "Own/1"] and lines[0]["prompt"] == ADD["prompt"]


# The benchmark itself


@pytest.fixture(scope="module")
def tasks():
    try:
        return humaneval.load_tasks()
    except UserError as error:
        pytest.skip(str(error))


def test_all_164_canonical_programs_pass(tasks):
    assert len(tasks) == 164
    records = [{"id": task.id, "completion": task.reference} for task in tasks]
    score, lines = score_records(records, {task.id: task for task in tasks})
    assert [line for line in lines if not line["correct"]] == []
    assert (score["score"], score["n"], score["one_process"]) == (1.0, 164, [])


def test_the_canonical_programs_of_other_tasks_score_zero(tasks):
    chosen = tasks[::8]
    bodies = [task.reference for task in chosen]
    records = [{"id": task.id, "completion": body} for task, body in zip(chosen, bodies[1:] + bodies[:1], strict=True)]
    score, lines = score_records(records, {task.id: task for task in tasks})
    assert [line["id"] for line in lines if line["correct"]] == [] and score["score"] == 0.0


# The canonical programs as chat models write them


def check_forms(tasks) -> list[tuple[str, str]]:
    """(form, task) of every canonical program that does not pass its tests in a form; in this process, as the programs are known."""
    verdicts, failed = {}, []
    for task in tasks:
        for name, form in FORMS.items():
            source = program_of(
                form(task.prompt + task.reference, task.reference, task.prompt), task.names, task.prompt
            )
            if source not in verdicts:
                verdicts[source] = passes_here(task, source)
            if not verdicts[source]:
                failed.append((name, task.id))
    return failed


def passes_here(task, source) -> bool:
    space = {"__name__": "tests"}
    try:
        program = inside.load(source, task.names)
        exec(task.setup, space)
        space |= {name: vars(program)[name] for name in task.names}
        exec(task.tests, space)
    except Exception:  # a program that was put together wrongly may raise anything
        return False
    return True


@pytest.fixture
def no_input(monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: int("no input"))


def test_canonical_programs_pass_in_every_form_of_an_answer(tasks, no_input):
    assert len(FORMS) >= 22
    assert check_forms(tasks[::16]) == []


@pytest.mark.slow
def test_all_canonical_programs_pass_in_every_form_of_an_answer(tasks, no_input):
    assert check_forms(tasks) == []
