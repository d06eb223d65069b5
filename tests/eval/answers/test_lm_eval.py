"""The prompts and readings of the few-shot protocols, character by character; the examples are the tests' own."""

import argparse
import json
import random
from itertools import islice
from types import SimpleNamespace

import pytest

from ba_lora.errors import UserError
from eval import gsm8k
from eval.answers import lm_eval
from eval.answers.lm_eval import GSM8K, MINERVA_MATH, draw, load_shots, make_requests, write_prompt


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def gsm8k_rows(count):
    return [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(count)]


def test_a_gsm8k_prompt_is_five_examples_and_the_question_and_ends_without_a_blank(tmp_path):
    shots = load_shots(GSM8K, write(tmp_path / "five.jsonl", gsm8k_rows(5)))
    prompt = write_prompt(GSM8K, shots, "How many?")
    assert prompt.startswith(
        "Question: What is 0 + 1?\nAnswer: 0 + 1 = 1\n#### 1\n\nQuestion: What is 1 + 1?\nAnswer: 1"
    )
    assert prompt.endswith("Answer: 4 + 1 = 5\n#### 5\n\nQuestion: How many?\nAnswer:")
    assert prompt.count("Question: ") == 6


def test_a_minerva_prompt_teaches_the_sentence_that_is_read(tmp_path):
    rows = [{"problem": f"Find ${n}\\frac{{1}}{{2}}$.", "solution": f"It is $\\boxed{{{n}.5}}$."} for n in range(3)]
    own = "Clear.\nFinal Answer: The final answer is $7$. I hope it is correct."
    shots = load_shots(MINERVA_MATH, write(tmp_path / "four.jsonl", [*rows, {"problem": "Seven?", "solution": own}]))
    prompt = write_prompt(MINERVA_MATH, shots, "Find {x}.")
    assert prompt.startswith(
        "Problem:\nFind $0\\frac{1}{2}$.\n\nSolution: It is $\\boxed{0.5}$.\n"
        "Final Answer: The final answer is $0.5$. I hope it is correct.\n\nProblem:\nFind $1"
    )
    assert prompt.endswith(f"Problem:\nSeven?\n\nSolution: {own}\n\nProblem:\nFind {{x}}.\n\nSolution:")
    assert lm_eval.read_minerva(shots[0][1]) == "0.5"


def test_as_many_rows_as_are_shown_are_shown_to_every_problem_in_their_order():
    shots = list("abcde")
    assert list(islice(draw(GSM8K, shots), 3)) == [shots] * 3


def test_of_more_rows_each_problem_gets_the_draw_that_the_harness_makes():
    generator = random.Random(1234)
    expected = [generator.sample(range(7473), 5) for _ in range(3)]
    assert list(islice(draw(GSM8K, range(7473)), 3)) == expected
    assert expected[0] != expected[1]


def test_requests_are_encoded_whole_with_the_tokenizers_own_beginning():
    subject = SimpleNamespace(tokenizer=lambda text: {"input_ids": [1, *map(ord, text)]})
    problems = [{"id": n, "question": f"{n}?", "reference": str(n)} for n in range(3)]
    requests = make_requests(GSM8K, subject, problems, [("q", "a")] * 5)
    assert [request.id for request in requests] == [0, 1, 2]
    assert requests[2].prompt.endswith("Question: 2?\nAnswer:") and requests[2].reference == "2"
    assert requests[2].ids == [1, *map(ord, requests[2].prompt)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (gsm8k_rows(4), "has 4 rows, and the protocol shows 5"),
        ([*gsm8k_rows(5), {"question": "q"}], "row 6 has no text 'answer'"),
        ([{"problem": "p", "solution": "s"}] * 5, "row 1 has no text 'question'"),
    ],
)
def test_examples_that_cannot_be_shown_are_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        load_shots(GSM8K, write(tmp_path / "shots.jsonl", rows))


def test_shots_data_without_a_model_or_with_another_protocol_is_refused():
    parser = argparse.ArgumentParser()
    lm_eval.add_option(parser, GSM8K)
    args = parser.parse_args(["--shots_data", "five.jsonl"])
    for rescore, protocol in ((None, "ba-lora"), ("file", "lm-eval")):
        with pytest.raises(UserError, match="--shots_data five.jsonl is used when --protocol lm-eval asks"):
            lm_eval.check_option(SimpleNamespace(**vars(args), rescore=rescore, protocol=protocol), "lm-eval")


# (completion, strict-match, flexible-extract)
READINGS = [
    (" 6 * 3 = 18\n#### 18", "18", "18"),
    ("#### 18\n\nSo 3", "18", "3"),
    ("#### 18 #### 3", "18", "3"),
    ("#### 1,234.50.", "1,234.50.", "1,234.50."),
    ("#### -5", "-5", "-5"),
    ("#### $18", None, "$18"),
    ("####18", None, "18"),
    ("It is $18.", None, "$18."),
    ("It is 7", None, "7"),
    ("It is 7...", None, "7..."),
    ("18 eggs, and so on...", None, "..."),
    ("none", None, None),
]


@pytest.mark.parametrize(("completion", "strict", "flexible"), READINGS)
def test_gsm8k_is_read_strictly_and_flexibly(completion, strict, flexible):
    assert (lm_eval.read_strict(completion), lm_eval.read_flexible(completion)) == (strict, flexible)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("18", "6 * 3 = <<6*3=18>>18\n#### 18", True),
        ("18.", "#### 18", True),
        ("$1,800", "#### 1800", True),
        ("1800", "#### 1,800", True),
        ("18", 18, True),
        ("18.0", "#### 18", False),
        ("018", "#### 18", False),
        ("...", "#### 18", False),
        (None, "#### 18", False),
    ],
)
def test_gsm8k_answers_are_compared_as_strings_without_commas_dollars_and_the_last_period(answer, reference, same):
    assert lm_eval.same_gsm8k(answer, str(reference)) is same


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" Thus.\nFinal Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
        (
            "Final Answer: The final answer is $5$. I hope it is correct.\n\nFinal Answer: The final answer is 6. I",
            "5",
        ),
        ("Final Answer: The final answer is $5$. ", "5"),
        ("Final Answer: The final answer is $5", None),
        ("The final answer is $5$. I hope it is correct.", None),
        ("Final Answer: The final answer is\n$5$. I hope it is correct.", None),
        ("", None),
    ],
)
def test_minerva_reads_its_one_sentence(completion, answer):
    assert lm_eval.read_minerva(completion) == answer


# The command of GSM8K with this protocol (MATH's is in test_hendrycks_math.py)


def test_gsm8k_is_rescored_strictly_and_beside_it_flexibly(tmp_path):
    completions = [" So 18.\n#### 18", " So 18 of 20.", "#### $18", " #### 3\n18"]
    lines = [{"id": n, "completion": text, "reference": "1 + 17\n#### 18"} for n, text in enumerate(completions)]
    options = ["--rescore", write(tmp_path / "given.jsonl", lines), "--protocol", "lm-eval"]
    assert gsm8k.main([*options, "--output_dir", str(tmp_path / "out")]) == 0
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    expected = {
        "score": 0.25,
        "score_flexible": 0.75,
        "n_unparsable": 2,
        "protocol": "lm-eval",
        "protocol_version": "1",
    }
    assert {key: score[key] for key in expected} == expected


def test_the_embedded_model_is_asked_with_examples_and_stops_before_another_question(tmp_path):
    data = write(tmp_path / "test.jsonl", [{"question": "What is 2 + 2?", "answer": "#### 4"}] * 2)
    shots = write(tmp_path / "train.jsonl", gsm8k_rows(7))
    options = ["--model", "tiny", "--protocol", "lm-eval", "--data", data, "--shots_data", shots]
    assert gsm8k.main([*options, "--max_new_tokens", "24", "--output_dir", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "generations.jsonl").read_text().splitlines()]
    drawn = draw(GSM8K, load_shots(GSM8K, shots))
    assert [line["prompt"] for line in lines] == [write_prompt(GSM8K, next(drawn), "What is 2 + 2?") for _ in range(2)]
    assert not any("Question:" in line["completion"] for line in lines)
    score = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (score["template"], score["shots_data"], score["n"]) == (None, shots, 2)
    assert {"Question:", "</s>", "<|im_end|>"} <= set(score["stop"])
