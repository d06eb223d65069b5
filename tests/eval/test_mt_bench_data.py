"""The data of MT-Bench, from a folder, a file or the package; and what is refused, in one line that names the problem."""

from pathlib import Path

import pytest

pytest.importorskip("openai", reason="judges are asked with the package openai; pip install -r requirements.txt")

from ba_lora.errors import UserError
from eval.judging.judge import PROMPTS
from eval.judging.questions import PACKAGE_DATA, load_bench, prompt_version
from eval.judging.ratings import CATEGORIES
from eval.mt_bench import TEMPERATURES, main, make_tasks
from tests.common import command
from tests.eval.json_lines import read, write
from tests.eval.judging.scripted_judge import ScriptedJudge
from tests.eval.three_questions import ANSWERS, QUESTIONS, TEXTS, rate, rescore, run, write_folder


@pytest.fixture
def data(tmp_path):
    return write_folder(tmp_path / "data")


# The data


def test_questions_of_a_folder_carry_references_where_the_judge_gets_them(tmp_path, data):
    questions, prompts = load_bench(data)
    assert [question["id"] for question in questions] == [81, 111, 141]
    assert [question["reference"] for question in questions] == [None, ["five", "six"], None]
    assert set(prompts) == set(TEXTS) == set(PROMPTS.values()) and len(load_bench(data, 2)[0]) == 2
    whole = tmp_path / "fastchat"
    (whole / "mt_bench").mkdir(parents=True)
    Path(data, "judge_prompts.jsonl").rename(whole / "judge_prompts.jsonl")
    for name in ("question.jsonl", "reference_answer"):
        Path(data, name).rename(whole / "mt_bench" / name)
    assert load_bench(str(whole)) == (questions, prompts)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"turns": ["one"]}, r"line 4: 'turns' is .*, a list of two texts is needed"),
        ({"turns": ["one", 2]}, "line 4: 'turns' is"),
        ({"category": 3}, "line 4: 'category' is 3, a text is needed"),
        ({"category": "coding"}, "line 4: coding is judged with two reference answers and there are none"),
        ({"question_id": 81}, "id 81 stands for more than one question"),
    ],
)
def test_a_question_that_cannot_be_asked_or_judged_is_named(tmp_path, question, message):
    good = {"question_id": 9, "category": "writing", "turns": ["a", "b"]}
    with pytest.raises(UserError, match=message):
        load_bench(write_folder(tmp_path / "data", [*QUESTIONS, good | question]))


@pytest.mark.parametrize("name", ["question.jsonl", "judge_prompts.jsonl", "reference_answer/gpt-4.jsonl"])
def test_a_folder_that_lacks_a_file_is_refused(data, name):
    Path(data, name).unlink()
    with pytest.raises(
        UserError, match=f"has no {name}; give the folder of FastChat's llm_judge/data, or leave --data"
    ):
        load_bench(data)


def test_a_folder_that_lacks_a_judge_prompt_is_refused(data):
    path = Path(data, "judge_prompts.jsonl")
    write(path, read(path)[:3])
    with pytest.raises(UserError, match="has no prompt 'single-math-v1-multi-turn'"):
        load_bench(data)


@pytest.fixture(scope="module")
def published():
    try:
        return load_bench(PACKAGE_DATA)
    except UserError as error:
        pytest.skip(f"the registry package is not to be had: {error}")


def test_the_package_holds_the_80_published_questions_and_their_prompts(published):
    questions, prompts = published
    assert len(questions) == 80 and [question["id"] for question in questions] == list(range(81, 161))
    categories = [question["category"] for question in questions]
    assert {name: categories.count(name) for name in CATEGORIES} == dict.fromkeys(CATEGORIES, 10)
    assert set(CATEGORIES) == set(TEMPERATURES)
    assert [question["id"] for question in questions if question["reference"]] == list(range(101, 131))
    assert prompt_version(prompts) == "fastchat single-v1 (sha256 867ed14f4605)"
    records = [{"id": q["id"], "turn": turn, "completion": "{a}"} for q in questions for turn in (1, 2)]
    tasks = make_tasks(records, questions, prompts)
    assert len(tasks) == 160 and all('"[[rating]]"' in "".join(m["content"] for m in t.messages) for t in tasks)


def test_questions_of_a_file_get_the_package_s_references_or_keep_their_own(tmp_path, published):
    known = next(question for question in published[0] if question["id"] == 123)
    rows = [
        {"prompt": known["turns"], "prompt_id": 7, "category": "coding", "reference": []},
        {"prompt": ["new", "more"], "prompt_id": 8, "category": "math", "reference": ["1", "2"]},
        {"prompt": ["free", "more"], "prompt_id": 9, "category": "humanities", "reference": []},
    ]
    questions, prompts = load_bench(write(tmp_path / "questions.jsonl", rows))
    assert [question["id"] for question in questions] == [7, 8, 9] and prompts == published[1]
    assert [question["reference"] for question in questions] == [known["reference"], ["1", "2"], None]


# Refusals, each one line that names the problem and its place


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([ANSWERS[0], "{broken"], "given.jsonl, line 2: not valid JSON"),
        ([{"id": 81, "completion": "x"}], "line 1: no 'turn'"),
        ([ANSWERS[0] | {"turn": 3}], "line 1: 'turn' is 3; it must be 1 or 2"),
        ([ANSWERS[0], ANSWERS[1], ANSWERS[0]], "line 3: id 81, turn 1 was already on .* line 1"),
        ([ANSWERS[0] | {"id": 82}], "line 1: id 82 is not a question of --data"),
        ([], "has no line of these questions"),
    ],
)
def test_a_file_of_answers_that_cannot_be_judged_is_refused(tmp_path, data, lines, message):
    with pytest.raises(UserError, match=message):
        rescore(tmp_path, data, rate, lines)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny"], r"--judge is missing; name the judge's model \(--judge gpt-4\), or add --generate_only"),
        (["--model", "tiny", "--judge", "j", "--samples", "2"], "--samples 2: MT-Bench judges one answer per turn"),
        (["--model", "tiny", "--judge", "j", "--generate_only"], "--generate_only goes with --model and without"),
        (["--rescore", "f", "--generate_only"], "--generate_only goes with --model and without"),
        (["--rescore", "f", "--judge", "j", "--judge_attempts", "0"], "--judge_attempts is 0; it must be at least 1"),
        (["--rescore", "f", "--judge", "j", "--judge_retries", "-1"], "--judge_retries is -1; it must be at least 0"),
        (
            ["--rescore", "f", "--judge", "j", "--judge_options", "{x"],
            "--judge_options '{x': not valid JSON .*; write ",
        ),
        (["--rescore", "f", "--judge", "j", "--judge_options", "[]"], r"--judge_options \[\] is not an object"),
        (["--rescore", "f", "--judge_url", "u"], "--judge_url and --judge_options have no effect without --judge"),
        (["--rescore", "f", "--protocol", "fastcaht"], "did you mean 'fastchat'"),
        (["--rescore", "missing.jsonl", "--judge", "j"], "file missing.jsonl does not exist"),
        (["--model", "tiny", "--judge", "gpt-4"], "OPENAI_API_KEY is not set"),
        (["--model", "tiny", "--generate_only"], r"question 81 has \d+ tokens, .* 1024 positions; lower it to \d+"),
    ],
)
def test_options_that_cannot_work_are_refused_with_their_remedy(tmp_path, monkeypatch, data, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match=message):
        main([*arguments, "--data", data, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_missing_judgments_without_a_judge_are_counted_in_the_refusal(tmp_path, data):
    source = write(tmp_path / "out" / "generations.jsonl", ANSWERS)
    arguments = ["--rescore", source, "--data", data, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--judge is missing and there are no judgments in"):
        main(arguments)
    run(ScriptedJudge(rate), *arguments)
    lines = (tmp_path / "out" / "judgments.jsonl").read_text().splitlines()
    write(tmp_path / "out" / "judgments.jsonl", lines[:4])
    with pytest.raises(UserError, match="2 of 6 judgments are not on file; name the judge"):
        main([*arguments, "--overwrite"])


def test_the_command_says_the_score_and_exits_2_with_one_line_when_refused(tmp_path, data, capsys):
    rescore(tmp_path, data)
    shown = capsys.readouterr().out
    assert "mt_bench 5.83 of 10 over 6 answers (first turn 7.33, second 4.33; 0 without a rating)" in shown
    arguments = ["--rescore", str(tmp_path / "given.jsonl"), "--data", data, "--output_dir", str(tmp_path / "out")]
    refused = command("-m", "eval.mt_bench", *arguments)
    assert refused.returncode == 2 and refused.stderr.startswith("error: --output_dir")
    assert len(refused.stderr.splitlines()) == 1
