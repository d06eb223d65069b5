"""MATH: the problems, both judges, the command, the real gold solutions, and the embedded model asked with examples."""

import json
import os
import random
from functools import partial
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval.answers import lm_eval
from eval.answers.latex import read_reference, same_string, same_values
from eval.hendrycks_math import load_problems, main, score_records
from tests.eval import json_lines
from tests.eval.json_lines import read, write

HALF = {"solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "2", "subject": "Algebra"}
LINES = [
    {"id": 0, "completion": "So $\\boxed{\\frac{2}{4}}$.", "reference": HALF},
    {"id": 1, "completion": "The answer is: \\frac12", "reference": HALF | {"level": "5"}},
    {"id": "two", "completion": "The answer is: 7.", "reference": "7"},
    {"id": 3, "completion": "It is 8.", "reference": 8},
]
rescore = partial(json_lines.rescore, main)


# Scoring from a file


def test_rescore_gives_both_judges_scores_and_follows_math_verify(tmp_path):
    score = rescore(tmp_path, LINES)
    expected = {"benchmark": "math", "score": 0.75, "n": 4, "n_correct": 3, "n_unparsable": 1, "judge": "math-verify"}
    expected |= {"score_math_verify": 0.75, "score_string": 0.5, "n_without_verdict": 0, "protocol": "ba-lora"}
    expected |= {"protocol_version": "3", "missing": None, "model": None, "shots_data": None, "n_truncated": None}
    assert {key: score[key] for key in expected} == expected
    scored = read(tmp_path / "out" / "scored.jsonl")
    assert scored[0] == {"id": 0, "answer": "\\frac{2}{4}", "correct": True, "math_verify": True, "string": False}
    assert [(line["answer"], line["correct"]) for line in scored[1:]] == [
        ("\\frac12", True),
        ("7", True),
        (None, False),
    ]


def test_rescore_under_the_upstream_protocol_follows_the_string(tmp_path):
    score = rescore(tmp_path, LINES, "--protocol", "upstream")
    assert (score["score"], score["judge"], score["n_unparsable"]) == (0.5, "string", 2)
    assert score["score_math_verify"] == 0.5


def test_upstream_counts_an_equal_value_in_another_form_as_wrong(tmp_path):
    lines = [{"id": 0, "completion": "The answer is: \\frac{2}{4}", "reference": HALF}]
    score = rescore(tmp_path, lines, "--protocol", "upstream")
    assert (score["score"], score["score_string"], score["score_math_verify"]) == (0, 0, 1)


def test_scores_are_divided_by_level_and_subject(tmp_path):
    lines = [
        {
            "id": n,
            "completion": "\\boxed{1}",
            "reference": {"solution": f"\\boxed{{{n}}}", "level": level, "subject": subject},
        }
        for n, (level, subject) in enumerate([("1", "Algebra"), ("1", "Geometry"), ("5", "Algebra"), ("5", "Algebra")])
    ]
    score = rescore(tmp_path, lines)
    assert {name: (part["score"], part["n"]) for name, part in score["by_level"].items()} == {
        "1": (0.5, 2),
        "5": (0, 2),
    }
    assert {name: part["n_correct"] for name, part in score["by_subject"].items()} == {"Algebra": 0, "Geometry": 1}
    assert rescore(tmp_path, [LINES[2]], "--overwrite")["by_level"] is None


def test_samples_of_a_problem_count_as_their_mean(tmp_path):
    lines = [LINES[2] | {"id": task, "sample": number} for task in range(2) for number in range(2)]
    lines[3] = lines[3] | {"completion": "\\boxed{8}"}
    score = rescore(tmp_path, lines)
    assert (score["n"], score["score"], score["score_math_verify"]) == (2, 0.75, 0.75)
    assert [line["sample"] for line in read(tmp_path / "out" / "scored.jsonl")] == [0, 1, 0, 1]


def test_bare_references_get_level_and_subject_from_the_data(tmp_path):
    rows = [{"problem": "p", "level": "Level 3", "type": "Geometry", "solution": f"\\boxed{{{n}}}"} for n in range(3)]
    lines = [{"id": n, "completion": f"\\boxed{{{n}}}", "reference": str(n)} for n in range(2)]
    score = rescore(tmp_path, lines, "--data", write(tmp_path / "data.jsonl", rows))
    assert (score["by_level"]["3"]["n"], score["by_subject"]["Geometry"]["score"], score["missing"]) == (2, 1.0, 1)


def test_minerva_reads_its_sentence_as_a_string_and_the_whole_completion_as_a_value(tmp_path):
    ending = "Final Answer: The final answer is ${}$. I hope it is correct."
    lines = [
        {"id": 0, "completion": f"So $\\boxed{{0.5}}$.\n{ending.format('0.5')}", "reference": HALF},
        {"id": 1, "completion": "So $\\boxed{0.5}$.", "reference": HALF},
        {"id": 2, "completion": f"So $3$.\n{ending.format('3')}", "reference": HALF},
    ]
    score = rescore(tmp_path, lines, "--protocol", "minerva_math")
    assert (score["score"], score["n_unparsable"], score["judge"]) == (pytest.approx(2 / 3), 1, "math-verify")
    assert score["score_string"] == pytest.approx(1 / 3)


def test_a_hostile_completion_is_wrong_or_without_a_verdict_and_the_others_are_scored(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.hendrycks_math.same_values", partial(same_values, seconds=1))
    lines = [{"id": 0, "completion": "\\boxed{9^{9^{9^{9}}}}", "reference": "9"}, LINES[0] | {"id": 1}]
    score = rescore(tmp_path, lines)
    assert [line["correct"] for line in read(tmp_path / "out" / "scored.jsonl")] == [False, True]
    assert score["n_without_verdict"] in (0, 1)


@pytest.mark.parametrize("reference", ["It is $\\boxed{5", {"solution": "\\boxed{}"}, ""])
def test_a_reference_without_an_answer_is_refused_with_its_id(tmp_path, reference):
    with pytest.raises(UserError, match="id 7: no closed"):
        rescore(tmp_path, [{"id": 7, "completion": "5", "reference": reference}])
    assert not (tmp_path / "out").exists()


# Problems


def test_problems_keep_their_id_or_get_their_index_and_name_level_and_subject(tmp_path):
    rows = [
        {"problem": "a", "solution": "\\boxed{1}", "level": "Level 4", "type": "Algebra"},
        {
            "problem": "b",
            "solution": "\\boxed{2}",
            "answer": "2",
            "level": "5",
            "subject": "Geometry",
            "unique_id": "x",
        },
        {"problem": "c", "answer": "3"},
    ]
    problems = load_problems(write(tmp_path / "data.jsonl", rows))
    assert [problem["id"] for problem in problems] == [0, "x", 2]
    assert problems[0]["reference"] == {"solution": "\\boxed{1}", "level": "4", "subject": "Algebra"}
    assert problems[1]["reference"] == {"solution": "\\boxed{2}", "level": "5", "subject": "Geometry"}
    assert problems[2]["reference"] == {"solution": "3"}
    assert len(load_problems(str(tmp_path / "data.jsonl"), 2)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "b"}, "row 2 has no text 'problem'"),
        ({"problem": "b"}, "row 2 has neither 'solution' nor 'answer'"),
        ({"problem": "b", "solution": "$\\boxed{1$"}, "row 2: no closed"),
        ({"problem": "b", "solution": "\\boxed{1}", "id": 0}, "id 0 stands for more than one row"),
    ],
)
def test_a_row_of_the_data_that_cannot_be_asked_or_scored_is_named(tmp_path, row, message):
    data = write(tmp_path / "data.jsonl", [{"problem": "a", "solution": "\\boxed{1}"}, row])
    with pytest.raises(UserError, match=message):
        load_problems(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --model M .* or --rescore FILE"),
        (["--rescore", "f", "--protocol", "minerva"], "did you mean 'minerva_math'"),
        (["--model", "tiny", "--data", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--model", "tiny", "--shots_data", "f"], "--shots_data f is used when --protocol minerva_math asks"),
        (["--model", "tiny", "--max_new_tokens", "0"], "--max_new_tokens is 0"),
        (["--model", "tiny"], "the hub did not give it"),
    ],
)
def test_options_that_cannot_work_are_refused_with_their_remedy(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# With the embedded model


def test_the_embedded_model_is_asked_and_scored_with_each_protocol(tmp_path):
    rows = [{"problem": f"What is {n} + 1?", "solution": f"It is $\\boxed{{{n + 1}}}$."} for n in range(8)]
    data, shots = write(tmp_path / "data.jsonl", rows[:3]), write(tmp_path / "shots.jsonl", rows[4:])
    options = ["--model", "tiny", "--data", data, "--max_new_tokens", "4"]
    assert main([*options, "--output_dir", str(tmp_path / "ours")]) == 0
    few = ["--protocol", "minerva_math", "--shots_data", shots]
    assert main([*options, *few, "--output_dir", str(tmp_path / "few")]) == 0
    lines = read(tmp_path / "ours" / "generations.jsonl")
    assert lines[0]["prompt"] == "Question: What is 0 + 1?\nAnswer:"
    assert lines[0]["reference"] == {"solution": rows[0]["solution"]}
    shown = lm_eval.load_shots(lm_eval.MINERVA_MATH, shots)
    prompts = [line["prompt"] for line in read(tmp_path / "few" / "generations.jsonl")]
    assert prompts == [lm_eval.write_prompt(lm_eval.MINERVA_MATH, shown, row["problem"]) for row in rows[:3]]
    score = json.loads((tmp_path / "few" / "score.json").read_text())
    assert "Problem:" in score["stop"] and (score["template"], score["shots_data"]) == (None, shots)
    assert (score["n"], score["missing"], score["protocol"]) == (3, 0, "minerva_math")


# The real problems: gold answers must score 1.


@pytest.fixture(scope="module")
def gold():
    """The 500 problems, each with the reference that the benchmark gives it."""
    folder = os.environ.get("BA_LORA_DATA")
    if not folder:
        pytest.skip("needs MATH problems: set BA_LORA_DATA to a folder with math/test_first500.jsonl")
    return load_problems(str(Path(folder) / "math" / "test_first500.jsonl"))


def scores(problems, write_completion, references=None, protocol="ba-lora"):
    references = references or [problem["reference"] for problem in problems]
    records = [
        {"id": problem["id"], "completion": write_completion(problem["reference"]["solution"]), "reference": reference}
        for problem, reference in zip(problems, references, strict=True)
    ]
    return score_records(records, protocol)


def phrase(solution):
    return f"Some steps.\nThe answer is: {read_reference(solution)}"


def test_math_gold_solutions_score_exactly_one_by_both_judges(gold):
    score, scored = scores(gold, str)
    assert [line for line in scored if not line["correct"]] == []
    assert (score["n"], score["score"], score["score_math_verify"], score["score_string"]) == (500, 1, 1, 1)
    assert sum(part["n"] for part in score["by_level"].values()) == 500 and set(score["by_level"]) == set("12345")
    assert set(score["by_subject"]) == {"Algebra", "Counting & Probability", "Geometry", "Number Theory"}


def test_math_gold_answers_behind_the_phrase_score_one_under_upstream(gold):
    score, _ = scores(gold, phrase, protocol="upstream")
    assert (score["score"], score["n_unparsable"]) == (1, 0)


@pytest.mark.slow
def test_math_gold_answers_score_one_in_every_form(gold):
    ending = "\nFinal Answer: The final answer is ${}$. I hope it is correct."
    assert scores(gold, phrase)[0]["score"] == 1
    assert scores(gold, lambda solution: "$" + read_reference(solution) + "$")[0]["n_unparsable"] == 500
    closed = scores(gold, lambda s: s + ending.format(read_reference(s)), protocol="minerva_math")[0]
    assert (closed["score"], closed["n_unparsable"]) == (1, 0)


@pytest.mark.slow
def test_math_gold_with_shuffled_references_scores_only_where_the_answers_are_the_same(gold):
    references = [problem["reference"] for problem in gold]
    random.Random(0).shuffle(references)
    _, scored = scores(gold, str, references)
    right = [read_reference(reference["solution"]) for reference in references]
    assert [line["correct"] for line in scored] == [
        same_string(answer, line["answer"]) for answer, line in zip(right, scored, strict=True)
    ]
    assert sum(line["correct"] for line in scored) < 25
