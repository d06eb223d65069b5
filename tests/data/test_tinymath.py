"""The generator of word problems and stories: disjoint, reproducible, and right in every computation."""

import hashlib
import itertools
import json
import re

import pytest

from ba_lora.data import tinymath
from ba_lora.data.tinymath import SPLITS, TEXT_SPLITS, final_number, generate, plain_text
from ba_lora.data.tinywords import WORDINGS

# sha256 of the first 50 items of each split with seed 0: a change here changes the data behind the shipped weights.
FROZEN_PROBLEMS = {
    "pretrain": "da88916de14b2895c6add0ca8c4b8b2a13971d1da4f51957231d440cdd5e9be4",
    "pretrain-test": "d334e8321171ec9c91f9175f30dabf18cccbefdb2190121e79d669980763e706",
    "train": "e46deeef174178e5170ab16bbde2f49908fcb922458bee783e22b78f69e09753",
    "validation": "34a5d818b6540048558b9a6f7cedb61b41b54e6c5ccaf6eaaeffbad628f5d457",
    "test": "a203cf4bf20ea5755038db5e231d242453df4fd5972be801c9a32fbe1fae7676",
    "shifted": "5dc917a7d70f955fdaf63314c60e51ab6e71efe1a38f9856cefa3c0ef3ab9917",
}
FROZEN_STORIES = {
    "pretrain": "f88fbbe5df8e81cc4043bcfe621387f8144eca33a8ff7eb99a6acdc76e04fb36",
    "pretrain-test": "e2b0970a783d14469aec2924ac4367196b10a4afa167bc2850f240cd4bce642d",
}


def sha256(items):
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


@pytest.fixture(scope="module")
def problems():
    return {split: generate(split, 800, seed=1) for split in SPLITS}


def test_splits_share_no_question(problems):
    questions = {split: {p["question"] for p in problems[split]} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not questions[one] & questions[other], (one, other)


def test_splits_of_a_task_stay_disjoint_across_seeds(problems):
    train = {p["question"] for seed in (2, 3) for p in generate("train", 2000, seed)}
    assert not train & {p["question"] for split in ("validation", "test") for p in problems[split]}


def test_buckets_of_a_task_do_not_overlap():
    for task in WORDINGS:
        buckets = [bucket for owner, owned in SPLITS.values() if owner == task for bucket in owned]
        assert sorted(buckets) == list(range(tinymath.BUCKETS)), task


def test_a_wording_belongs_to_one_task_only():
    owners = {}
    for task, wordings in WORDINGS.items():
        for wording in wordings:
            fixed = re.sub(r"\{\w+\}", "", wording.question)
            assert owners.setdefault(fixed, task) == task, wording.question


def test_no_question_is_repeated_within_a_call(problems):
    for split in SPLITS:
        assert len({p["question"] for p in problems[split]}) == 800


@pytest.mark.parametrize("split", SPLITS)
def test_a_shorter_list_is_a_prefix_of_a_longer_one(split):
    assert generate(split, 100) == generate(split, 200)[:100]


@pytest.mark.parametrize("split", SPLITS)
def test_the_first_problems_never_change(split):
    assert sha256(generate(split, 50)) == FROZEN_PROBLEMS[split]


@pytest.mark.parametrize("split", TEXT_SPLITS)
def test_the_first_stories_never_change(split):
    assert sha256(plain_text(split, 50)) == FROZEN_STORIES[split]


def test_another_seed_gives_other_problems():
    assert generate("test", 50, seed=0) != generate("test", 50, seed=1)


def test_every_computation_is_right_and_the_answer_is_the_last_result(problems):
    evaluate = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": lambda x, y: x / y}
    for problem in itertools.chain(*problems.values()):
        work, _, final = problem["answer"].rpartition(" The answer is: ")
        steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", work)
        assert 1 <= len(steps) <= 3, problem
        assert " ".join(f"{x} {op} {y} = {z}." for x, op, y, z in steps) == work, problem
        assert all(evaluate[op](int(x), int(y)) == int(z) for x, op, y, z in steps), problem
        number = re.fullmatch(r"\$?(\d{1,3}(?:,\d{3})*)(?: [a-z]+)?", final)
        assert number, problem
        assert int(number[1].replace(",", "")) == int(steps[-1][3]) == final_number(problem["answer"]), problem


def test_every_number_of_the_work_comes_from_the_question_or_an_earlier_step(problems):
    for problem in itertools.chain(*problems.values()):
        known = set(re.findall(r"\d+", problem["question"])) | {"2"}  # "twice", "and back"
        for x, y, z in re.findall(r"(\d+) [-+*/] (\d+) = (\d+)\.", problem["answer"]):
            assert {x, y} <= known, problem
            known.add(z)


def test_answers_come_in_every_format(problems):
    finals = [p["answer"].rpartition(": ")[2] for p in problems["train"]]
    for form in (r"\d+", r"\$\d+", r"\d+ km", r"\d+ pages", r"\d,\d{3}"):
        assert any(re.fullmatch(form, final) for final in finals), form


def test_the_fine_tuning_task_has_one_two_and_three_steps(problems):
    assert {p["answer"].count(" = ") for p in problems["train"]} == {1, 2, 3}
    assert {p["answer"].count(" = ") for p in problems["pretrain"]} == {1, 2}


def test_questions_are_single_lines_without_open_slots(problems):
    for problem in itertools.chain(*problems.values()):
        assert not re.search(r"[{}\n]|  ", problem["question"]), problem


def test_stories_of_the_two_splits_are_disjoint_and_distinct():
    pretrain, held_out = plain_text("pretrain", 2000, seed=4), plain_text("pretrain-test", 1000, seed=5)
    assert len(set(pretrain)) == 2000 and len(set(held_out)) == 1000
    assert not set(pretrain) & set(held_out)


def test_stories_have_two_to_four_sentences_and_pronouns_that_agree():
    for story in plain_text("pretrain-test", 500):
        assert 2 <= len(re.findall(r"[.](?: |$)", story)) <= 4, story
        assert not (re.search(r"\b[Ss]he\b", story) and re.search(r"\b[Hh]e\b", story)), story


def test_final_number_reads_units_separators_and_the_last_answer():
    assert final_number("1 + 1 = 2. The answer is: $1,250") == 1250
    assert final_number("The answer is: 3. No. The answer is: 15 km") == 15
    assert final_number("12 + 7 = 19.") is None


def test_an_unknown_split_is_named_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="'tets' is not known, did you mean 'test'"):
        generate("tets", 1)
    with pytest.raises(ValueError, match="'test' is not known"):
        plain_text("test", 1)


def test_asking_for_more_problems_than_exist_raises(monkeypatch):
    tiny = [tinymath.WORDINGS["shifted"][0]._replace(question="What is {a} + 1?", ranges="a 1-9", steps="a + 1")]
    monkeypatch.setitem(tinymath.WORDINGS, "shifted", tiny)
    assert len(generate("shifted", 9)) == 9
    with pytest.raises(ValueError, match="count 10 is too large"):
        generate("shifted", 10)


def test_the_command_writes_json_lines(tmp_path, capsys):
    file = tmp_path / "test.jsonl"
    assert tinymath.main(["--split", "test", "--count", "7", "--output", str(file)]) == 0
    assert [json.loads(line) for line in file.read_text().splitlines()] == generate("test", 7)
    assert list(tmp_path.iterdir()) == [file]
    tinymath.main(["--split", "test", "--count", "7"])
    assert capsys.readouterr().out == file.read_text()
