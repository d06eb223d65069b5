"""Worker processes that die, hang or print: no other question loses its answer."""

import pytest

from ba_lora.errors import RunFailure
from eval.harness.workers import ask

ODD = "tests.eval.harness.odd_worker"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_question_that_ends_its_process_has_no_answer_and_the_others_have_theirs(workers):
    questions = ["a", "abort", "b", "leave", "half", "c", "memory", "print", "\ud83d", "d"]
    lost = ("abort", "leave", "half", "memory")
    assert ask(ODD, questions, 30, workers) == [None if q in lost else [q] for q in questions]


def test_a_question_that_takes_too_long_has_no_answer_and_the_others_have_theirs():
    assert ask(ODD, ["a", "sleep", "b"], 1, 1) == [["a"], None, ["b"]]


def test_no_questions_start_no_process():
    assert ask("no.such.module", [], 1) == []


def test_a_module_that_does_not_start_is_named():
    with pytest.raises(RunFailure, match="no.such.module does not start"):
        ask("no.such.module", ["a"], 1)
