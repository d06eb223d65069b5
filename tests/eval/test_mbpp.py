"""The MBPP command: its tasks, its prompts, scoring from a file, and the reference programs."""

import json
import os
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval import mbpp
from eval.execution.programs import score_records
from tests.eval.execution.sandboxes import box_or_skip


def row(number, text="Write a function to double.", name="f", factor=2, **changes):
    tests = [f"assert {name}(1) == {factor}", f"assert {name}(5) == {5 * factor} "]
    code = f"def {name}(x):\r\n  return {factor} * x"
    return {
        "text": text,
        "code": code,
        "task_id": number,
        "test_setup_code": "",
        "test_list": tests,
        "challenge_test_list": [],
    } | changes


TREE = row(
    14,
    code="class Node:\r\n  def __init__(self, value):\r\n    self.value = value\r\ndef f(node): return node.value",
    test_setup_code="root = Node(3) \r\nroot1 = Node(4)",
    test_list=["assert f(root) == 3", "assert f(root1) == 4"],
)
ROWS = [row(number, name=f"f{number}", factor=number) for number in (2, 3, 4, 11, 12)] + [TREE]


@pytest.fixture(scope="session", autouse=True)
def box():
    return box_or_skip()


def write(tmp_path, rows, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return write(tmp_path, ROWS)


def rescore(tmp_path, data, lines, *options):
    source = write(tmp_path, lines, "given.jsonl")
    words = ["--rescore", source, "--data", data, "--output_dir", str(tmp_path / "out"), "--overwrite", *options]
    assert mbpp.main(words) == 0
    return json.loads((tmp_path / "out" / "score.json").read_text())


def answers(*numbers):
    codes = {row["task_id"]: row["code"] for row in ROWS}
    return [{"id": number, "completion": codes[number]} for number in numbers]


def test_reference_programs_pass_and_those_of_other_tasks_do_not(tmp_path, data):
    score = rescore(tmp_path, data, answers(11, 12, 14))
    assert (score["score"], score["n"], score["missing"], score["benchmark"]) == (1.0, 3, 0, "mbpp")
    lines = [{"id": 11, "completion": ROWS[4]["code"]}, {"id": 12, "completion": ROWS[3]["code"]}]
    assert rescore(tmp_path, data, lines)["score"] == 0.0


def test_the_right_name_with_a_wrong_answer_fails(tmp_path, data):
    lines = [{"id": 11, "completion": "```python\ndef f11(x):\n    return 11 if x == 1 else 0\n```"}]
    assert rescore(tmp_path, data, lines)["statuses"]["failed"] == 1


def test_tasks_that_need_the_programs_classes_are_run_in_one_process_and_listed(tmp_path, data, capsys):
    score = rescore(tmp_path, data, answers(11, 14))
    assert (score["score"], score["one_process"]) == (1.0, [14])
    assert "1 of them in one process with their tests" in capsys.readouterr().out


def test_a_row_without_code_whose_tests_make_objects_is_judged_as_with_its_code(tmp_path):
    bare = {name: value for name, value in TREE.items() if name != "code"}
    wrong = TREE["code"].replace("node.value", "node.value + 1")
    data = write(tmp_path, [bare, bare | {"task_id": 15}])
    lines = [{"id": 14, "completion": TREE["code"]}, {"id": 15, "completion": wrong}]
    assert [rescore(tmp_path, data, lines)["statuses"][status] for status in ("passed", "failed")] == [1, 1]


def test_rescore_counts_what_lacks_of_the_test_tasks_and_scores_every_line(tmp_path, data):
    score = rescore(tmp_path, data, answers(2, 11))
    assert (score["n"], score["missing"]) == (2, 2)  # 12 and 14
    score = rescore(tmp_path, data, answers(2, 3))
    assert (score["n"], score["missing"]) == (2, 4)  # without any test task, all of the data is expected
    score = rescore(tmp_path, data, answers(2, 3, 11), "--tasks", "1-10")
    assert (score["n"], score["missing"]) == (2, 1)


def test_limit_takes_the_first_lines_whichever_tasks_they_are_of(tmp_path, data):
    score = rescore(tmp_path, data, answers(14, 12, 11), "--limit", "2")
    assert (score["n"], score["missing"], score["score"]) == (2, 0, 1.0)


def test_ids_may_be_texts(tmp_path, data):
    assert rescore(tmp_path, data, [{"id": "11", "completion": ROWS[3]["code"]}])["score"] == 1.0


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([{"id": 999, "completion": "x"}], [], "no id of .*given.jsonl is a task of --data"),
        ([{"id": 11, "completion": "x"}, {"id": 999, "completion": "x"}], [], "id 999 is not a task of the data"),
        ([{"id": 11, "completion": "x"}], ["--tasks", "2-4"], "no completion is of a task from 2 to 4"),
        ([{"id": 11, "completion": "x"}], ["--tasks", "4-2"], "--tasks 4-2 is not a range"),
        ([{"id": 11, "completion": "x"}], ["--tasks", "some"], "--tasks some is not a range"),
        ([{"id": 11, "completion": "x"}], ["--shots_data", "f"], "--shots_data f has no effect with --rescore"),
        ([{"id": 11, "completion": "x"}], ["--shots", "2"], "--shots 2 has no effect with --rescore"),
        ([{"id": 11, "completion": "x"}], ["--shots", "4"], "--shots is 4; it must be from 0 to 3"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, data, lines, options, message):
    with pytest.raises(UserError, match=message):
        rescore(tmp_path, data, lines, *options)


# Tasks and prompts


def test_the_test_tasks_are_chosen_by_number_and_upstream_takes_all(data):
    assert [task.id for task in mbpp.load_tasks(data, mbpp.read_span(None, "ba-lora"))] == [11, 12, 14]
    assert [task.id for task in mbpp.load_tasks(data, mbpp.read_span(None, "upstream"))] == [2, 3, 4, 11, 12, 14]
    assert [task.id for task in mbpp.load_tasks(data, mbpp.read_span("12", "ba-lora"))] == [12]
    assert mbpp.read_span("all", "base") is None


def test_the_fields_of_the_sanitized_and_the_extended_set_are_read(tmp_path):
    task = row(11, prompt="Write it.", test_imports=["import math"], test_list=["assert math.isclose(f(1), 2)"])
    del task["text"], task["test_setup_code"], task["challenge_test_list"]
    (read,) = mbpp.load_tasks(write(tmp_path, [task | {"task_id": "Mbpp/11"}]), (11, 510))
    assert (read.text, read.names, read.setup, read.one_process) == ("Write it.", ("f",), "import math\n", False)
    assert (
        rescore(tmp_path, str(tmp_path / "data.jsonl"), [{"id": "Mbpp/11", "completion": task["code"]}])["score"] == 1.0
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(11), {"task_id": 12, "text": "x"}], r"row 2: a task needs text \(or prompt\), task_id and test_list"),
        ([row(11), row(12, test_list=["assert f("])], "row 2: the tests are not Python"),
        ([row(11), row(11)], "task_id 11 stands for more than one row"),
        ([row("eleven")], "task_id 'eleven' is not a number"),
        ([row(5)], "has no task from 11 to 510; name others with --tasks, or all"),
        (
            [row(11), row(12, test_list=[None])],
            r"data.jsonl, row 2: 'test_list' is \[None\], a list of texts is needed",
        ),
        (
            [row(11, test_list=["assert f(1)", 5])],
            r"row 1: 'test_list' is \['assert f\(1\)', 5\], a list of texts is needed",
        ),
        ([row(11, test_list=5)], "row 1: 'test_list' is 5, a list of texts is needed"),
        ([row(11, test_list="assert f(1) == 2")], "row 1: 'test_list' is 'assert f.*', a list of texts is needed"),
        ([row(11, test_list=[])], r"row 1: a task needs text \(or prompt\), task_id and test_list"),
        ([row(11, test_list=None)], r"row 1: a task needs text \(or prompt\), task_id and test_list"),
        ([row(11, code=["def f(x):", "  return x"])], r"row 1: 'code' is \['def f\(x\):', .*\], a text is needed"),
        ([row(11, code=3)], "row 1: 'code' is 3, a text is needed"),
        ([row(11, test_imports=[None])], r"row 1: 'test_imports' is \[None\], a list of texts is needed"),
        ([row(11, test_imports=7)], "row 1: 'test_imports' is 7, a list of texts is needed"),
        ([row(11, test_imports="import")], "row 1: the tests are not Python"),
        ([row(11, test_setup_code=["x = 1"])], r"row 1: 'test_setup_code' is \['x = 1'\], a text is needed"),
        ([row(11, text=11)], "row 1: 'text' is 11, a text is needed"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        mbpp.load_tasks(write(tmp_path, rows), mbpp.TEST)


def test_each_protocol_asks_in_its_own_way(data, tiny_tokenizer):
    from ba_lora.data.templates import TEMPLATES
    from ba_lora.inference.subject import Subject

    subject = Subject(None, tiny_tokenizer, TEMPLATES["plain"], "tiny", "tiny", None)
    tasks = mbpp.load_tasks(data, (11, 12))
    asked = mbpp.make_requests(subject, tasks, "ba-lora", [])
    tests = "assert f11(1) == 11\nassert f11(5) == 55"
    assert (
        asked[0].prompt
        == f"Question: Write a function to double.\nYour function should pass these tests:\n\n{tests}\nAnswer:"
    )
    assert [request.id for request in asked] == [11, 12]
    assert mbpp.make_requests(subject, tasks, "upstream", []) == asked
    base = mbpp.make_requests(subject, tasks, "base", mbpp.worked_examples(data, 3))[0]
    assert base.prompt.count("[BEGIN]") == 4 and base.prompt.count("[DONE]") == 3
    assert base.prompt.endswith(f"Your code should pass these tests:\n\n{tests}\n[BEGIN]\n")
    assert "[BEGIN]\ndef f2(x):\n  return 2 * x\n[DONE]" in base.prompt
    assert base.ids == tiny_tokenizer(base.prompt)["input_ids"]
    alone = mbpp.make_requests(subject, tasks, "base", [])[0]
    assert base.prompt.endswith(alone.prompt) and alone.prompt.count("[BEGIN]") == 1
    shown = mbpp.make_requests(subject, tasks, "ba-lora", mbpp.worked_examples(data, 1))[0]
    end = tiny_tokenizer.eos_token
    asked_before = asked[0].prompt.replace("f11", "f2").replace("== 11", "== 2").replace("== 55", "== 10")
    assert shown.prompt == f"{asked_before} def f2(x):\n  return 2 * x{end}\n\n{asked[0].prompt}"


def test_data_without_the_worked_examples_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="has no task 2 with its code.*--shots_data"):
        mbpp.worked_examples(write(tmp_path, ROWS[3:]), 3)
    assert mbpp.worked_examples(write(tmp_path, ROWS[3:]), 0) == []


def test_the_number_of_examples_is_the_protocols_or_the_users_and_in_the_score(tmp_path, data):
    words = ["--model", "tiny", "--data", data, "--max_new_tokens", "2", "--limit", "1"]
    for protocol, given, expected in (
        ("ba-lora", [], 0),
        ("ba-lora", ["--shots", "1"], 1),
        ("base", ["--shots", "0"], 0),
    ):
        folder = tmp_path / f"{protocol}-{expected}"
        mbpp.main([*words, "--protocol", protocol, *given, "--output_dir", str(folder)])
        assert json.loads((folder / "score.json").read_text())["shots"] == expected
    with pytest.raises(UserError, match="--shots_data f has no effect if no example is shown; add --shots 3"):
        mbpp.main([*words, "--shots_data", "f", "--output_dir", str(tmp_path / "refused")])


def test_a_model_is_asked_and_scored_from_end_to_end(tmp_path, data):
    words = ["--model", "tiny", "--data", data, "--max_new_tokens", "4", "--limit", "2"]
    assert mbpp.main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["n"], score["missing"], score["protocol"], score["model"]) == (2, 0, "ba-lora", "tiny")


# The benchmark itself


@pytest.fixture(scope="module")
def tasks():
    folder = os.environ.get("BA_LORA_DATA")
    if not folder or not (file := Path(folder) / "mbpp" / "mbpp_419.jsonl").is_file():
        pytest.skip("BA_LORA_DATA names no folder with mbpp/mbpp_419.jsonl")
    return mbpp.load_tasks(str(file))


@pytest.mark.slow
def test_all_reference_programs_pass(tasks):
    records = [{"id": task.id, "completion": task.reference} for task in tasks]
    score, lines = score_records(records, {str(task.id): task for task in tasks})
    assert [line for line in lines if not line["correct"]] == []
    assert (score["score"], score["n"], score["one_process"]) == (1.0, 419, [367])


def test_some_reference_programs_pass(tasks):
    chosen = [task for task in tasks if task.id % 14 == 3]  # 367 is among them
    records = [{"id": task.id, "completion": f"Here:\n```python\n{task.reference}\n```\nDone."} for task in chosen]
    score, lines = score_records(records, {str(task.id): task for task in tasks})
    assert [line for line in lines if not line["correct"]] == []
    assert score["one_process"] == [367]


def test_the_reference_programs_of_other_tasks_score_zero(tasks):
    chosen = tasks[::14]
    codes = [task.reference for task in chosen]
    records = [{"id": task.id, "completion": code} for task, code in zip(chosen, codes[1:] + codes[:1], strict=True)]
    assert score_records(records, {str(task.id): task for task in tasks})[0]["score"] == 0.0


# Rows without code, and rows that were converted from a table


@pytest.mark.parametrize(
    ("test", "right", "wrong"),
    [
        ("assert max([1, 2]) == 2", "def max(x):\n    return sorted(x)[-1]", "def max(x):\n    return 'wrong'"),
        ("assert sorted([1, 2]) == [2, 1]", "def sorted(x):\n    return x[::-1]", "def sorted(x):\n    return x"),
        ("assert max(f(1), 2) == 3", "def f(x):\n    return 3", "def f(x):\n    return 1"),
    ],
)
def test_without_code_the_tests_name_the_function_even_a_builtins(tmp_path, test, right, wrong):
    rows = [{"task_id": number, "text": "Write it.", "test_list": [test]} for number in (11, 12)]
    lines = [{"id": 11, "completion": f"```python\n{right}\n```"}, {"id": 12, "completion": wrong}]
    rescore(tmp_path, write(tmp_path, rows), lines, "--tasks", "all")
    scored = [json.loads(line) for line in (tmp_path / "out" / "scored.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in scored] == [True, False]


@pytest.mark.parametrize("imports", ["import math", ["import math"], "import math\nimport os"])
def test_the_imports_of_tests_may_be_one_text(tmp_path, imports):
    data = write(tmp_path, [row(11, test_list=["assert f(4) == math.sqrt(64)"], test_imports=imports)])
    assert rescore(tmp_path, data, [{"id": 11, "completion": "def f(x):\n    return 2 * x"}])["score"] == 1


@pytest.mark.parametrize(
    ("test", "right", "wrong"),
    [
        ("assert f((4, 7.7, 1.2), int) == [7.7, 1.2]", "[y for y in x if not isinstance(y, kind)]", "list(x)"),
        ("assert f([1, 2], len) == 2", "kind(x)", "1"),
        ("assert f(2, lambda v: v + 1) == 3", "kind(x)", "x"),
        ("assert f(2, type) == int", "kind(x)", "str"),
        (
            "import datetime\nassert f(2, None) == datetime.date(2020, 1, 2)",
            "__import__('datetime').date(2020, 1, x)",
            "x",
        ),
    ],
)
def test_tests_may_pass_types_and_functions(tmp_path, test, right, wrong):
    code = f"def f(x, kind):\n    return {right}"
    data = write(tmp_path, [row(number, code=code, test_list=[test]) for number in (11, 12)])
    lines = [{"id": 11, "completion": code}, {"id": 12, "completion": code.replace(right, wrong)}]
    score = rescore(tmp_path, data, lines)
    assert (score["score"], score["one_process"]) == (0.5, [])
    scored = [json.loads(line) for line in (tmp_path / "out" / "scored.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in scored] == [True, False]


def test_the_frame_of_the_papers_prompt_is_not_code(tmp_path, data):
    lines = [{"id": 11, "completion": f"[BEGIN]\n{ROWS[3]['code']}\n[DONE]\n\nYou are an expert"}]
    assert rescore(tmp_path, data, lines)["score"] == 1.0
