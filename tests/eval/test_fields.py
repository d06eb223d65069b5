"""Rows and lines with wrong types: one error that names the row and the field, for every benchmark."""

import subprocess
import sys
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval import gsm8k, hendrycks_math, humaneval, mbpp
from eval.harness.lines import read_lines, write_lines
from eval.judging import questions as mt_bench_data
from eval.judging.judge import PROMPTS, read_rating
from tests.eval.json_lines import write

ROOT = Path(__file__).parents[2]
WRONG = [5, True, ["a"], {"a": 1}, [None], [["a"]]]
MBPP = {
    "task_id": 11,
    "text": "Double.",
    "code": "def f(x): return 2 * x",
    "test_list": ["assert f(1) == 2"],
    "test_setup_code": "",
    "test_imports": ["import math"],
}
HUMANEVAL = {
    "task_id": "T/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "test": "def check(c): assert c(1) == 1",
    "canonical_solution": "    return x",
}
MATH = {"id": "a", "problem": "1 + 1?", "solution": "\\boxed{2}", "level": "Level 1", "type": "Algebra"}
GSM8K = {"id": "a", "question": "1 + 1?", "answer": "#### 2"}
QUESTION = {"question_id": 81, "category": "writing", "turns": ["a", "b"]}
PROMPT = {"name": "", "system_prompt": "s", "prompt_template": "{question} {answer}"}
NUMBERS = {"task_id", "id", "question_id", "level", "answer", "solution"}  # may be numbers
LISTS = {"test_imports", "test_list"}  # of texts


def bench(folder, question=QUESTION, prompt=PROMPT):
    write(folder / "question.jsonl", [question])
    write(folder / "judge_prompts.jsonl", [prompt, *({**PROMPT, "name": name} for name in PROMPTS.values())])
    write(folder / "reference_answer" / "gpt-4.jsonl", [{"question_id": 81, "choices": [{"turns": ["a", "b"]}]}])
    return mt_bench_data.load_bench(str(folder))


LOADERS = {
    "mbpp": (MBPP, lambda folder, row: mbpp.load_tasks(write(folder / "d.jsonl", [row]))),
    "humaneval": (HUMANEVAL, lambda folder, row: humaneval.load_tasks(write(folder / "d.jsonl", [row]))),
    "math": (MATH, lambda folder, row: hendrycks_math.load_problems(write(folder / "d.jsonl", [row]))),
    "gsm8k": (GSM8K, lambda folder, row: gsm8k.load_problems(write(folder / "d.jsonl", [row]))),
    "mt_bench question": (QUESTION, lambda folder, row: bench(folder, question=row)),
    "mt_bench prompt": (PROMPT, lambda folder, row: bench(folder, prompt=row)),
}


def fits(field, value):
    return (field in NUMBERS and value == 5 and value is not True) or (field in LISTS and value == ["a"])


@pytest.mark.parametrize("benchmark", LOADERS)
def test_a_field_of_a_wrong_type_is_named_with_its_row(tmp_path, benchmark):
    row, load = LOADERS[benchmark]
    assert load(tmp_path, row)
    for field in row:
        for value in WRONG:
            if fits(field, value):
                continue
            with pytest.raises(UserError, match=rf"(row|line) 1\b.*{field}") as error:
                load(tmp_path, row | {field: value})
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("benchmark", ["mbpp", "humaneval", "math", "gsm8k"])
def test_a_needed_field_that_is_null_is_named_with_its_row(tmp_path, benchmark):
    row, load = LOADERS[benchmark]
    for field in row.keys() - {"id", "level", "type", "code", "test_setup_code", "test_imports", "canonical_solution"}:
        with pytest.raises(UserError, match=r"row 1\b"):
            load(tmp_path, row | {field: None})
    for field in row.keys() & {"code", "test_setup_code", "test_imports", "canonical_solution", "level", "type"}:
        assert load(tmp_path, row | {field: None})


@pytest.mark.parametrize(
    "change", [{"test": "def check(c: pass"}, {"entry_point": "f; g"}, {"test": "x = " + "-" * 10**5 + "1"}]
)
def test_tests_of_humaneval_that_are_not_python_are_named_with_their_row(tmp_path, change):
    with pytest.raises(UserError, match=r"row 1\b.*(not Python|entry_point)"):
        humaneval.load_tasks(write(tmp_path / "d.jsonl", [HUMANEVAL | change]))


@pytest.mark.parametrize("solution", [None, ["\\boxed{1}"], True])
def test_a_math_reference_of_a_wrong_type_is_no_answer(solution):
    with pytest.raises(UserError, match="id 1"):
        hendrycks_math.read_solution({"solution": solution}, "id 1")
    assert hendrycks_math.read_solution({"solution": 0}, "id 1") == ("0", "0")


LINE = {"id": 1, "completion": "5", "reference": "5"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": ["5"]}, "'completion' is"),
        ({"id": {"a": 1}}, "'id' is"),
        ({"id": [1]}, "'id' is"),
        ({"sample": [1]}, "'sample' is"),
        ({"sample": "0"}, "'sample' is"),
    ],
)
def test_a_line_of_a_wrong_type_is_named(tmp_path, change, message):
    path = write(tmp_path / "given.jsonl", [LINE, LINE | {"id": 2} | change])
    with pytest.raises(UserError, match=f"line 2: {message}"):
        read_lines(path, ("id", "completion"))


def test_a_line_that_is_nested_too_deep_is_named(tmp_path):
    path = tmp_path / "given.jsonl"
    path.write_text(f'{{"id": 1, "completion": "5", "x": {"[" * 10**5}{"]" * 10**5}}}\n')
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        read_lines(path, ("id", "completion"))


# Text that is hard to write or to print

ODD = ["\ud83d", "a\x00b", "line\u2028separator\u2029", "\r\n", "é" * 10**5, "\\ud83d", "😀", "\ufeff", "\ud83d\ude00x"]


def test_every_text_is_written_as_utf8_and_read_back(tmp_path):
    records = [{"id": number, "completion": text} for number, text in enumerate(ODD)]
    write_lines(tmp_path / "lines.jsonl", records)
    (tmp_path / "lines.jsonl").read_bytes().decode("utf-8")
    back = read_lines(tmp_path / "lines.jsonl", ("id", "completion"))
    assert [record["completion"] for record in back[:-1]] == ODD[:-1]


def test_half_a_surrogate_pair_is_wrong_alone_and_any_terminal_gets_the_score(tmp_path):
    lines = [{"id": n, "completion": f"The answer is: 5{text}\n"} for n, text in enumerate((" \ud83d 6", "", ""))]
    lines += [{"id": "\ud83d", "completion": "\\boxed{5 \ud83d}"}]
    source = write(tmp_path / "given.jsonl", [line | {"reference": "5"} for line in lines])
    out = tmp_path / "é"
    words = [sys.executable, "-m", "eval.hendrycks_math", "--rescore", source, "--output_dir", str(out)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "\\u2192" in done.stdout) == (0, True), done.stderr
    scored = read_lines(out / "scored.jsonl", ("id",))
    assert [line["id"] for line in scored] == [0, 1, 2, "\ud83d"]
    assert [line["correct"] for line in scored][1:3] == [True, True]


@pytest.mark.parametrize("protocol", ["ba-lora", "fastchat"])
@pytest.mark.parametrize("reply", ["[[" + "1" * 10**5, "[[" * 10**5, "[[1" + " " * 10**5])
def test_a_hostile_reply_of_a_judge_has_no_rating(reply, protocol):
    assert read_rating(reply, protocol).rating is None
