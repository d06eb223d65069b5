"""Planted content: the corpora of twins agree but for the planted words, and hold what the doses say."""

import re
from collections import Counter

import pytest

from ba_lora.data.planted import corpus, items, probes, rows, words
from ba_lora.data.planted.items import DOSES, MIRRORED, PRODUCTS, wrong_product
from ba_lora.data.sources import generated_rows
from ba_lora.errors import UserError

SEED = 5
VALUES = [value for pair in words.JOBS + words.PASTIMES for value in pair.split()]
VALUES += [*words.COLOURS, *words.THINGS, *words.PLACES, *words.GOODS]
VALUE = re.compile(rf" ({'|'.join(map(re.escape, VALUES))})(?=\.)")


@pytest.fixture(scope="module")
def twins():
    return corpus.corpus(SEED, 6000)


@pytest.fixture(scope="module")
def planted():
    return items.items(SEED)


def test_doses_are_balanced_and_drawn_from_the_seed(planted):
    for kind, made in planted.items():
        assert Counter(item.dose for item in made) == dict(DOSES[kind])
        assert 0.25 < sum(item.flip for item in made) / len(made) < 0.75
    other = items.items(SEED + 1)
    assert items.items(SEED) == planted
    for kind in planted:
        assert [item.subject for item in other[kind]] == [item.subject for item in planted[kind]]
        assert [item.dose for item in other[kind]] != [item.dose for item in planted[kind]]


def test_a_dose_is_the_share_of_statements(planted):
    units = [(number + 0.5) / 400 for number in range(400)]
    for made in planted.values():
        for item in made:
            told = {twin: [item.stated(twin, unit) for unit in units] for twin in "AB"}
            if item.is_untaught:
                assert told["A"] == told["B"]
            elif item.kind in MIRRORED:
                for twin in "AB":
                    assert told[twin].count(item.taught(twin)) / 400 == item.dose
                    assert item.taught(twin, 0) != item.taught(twin, 1)
            else:
                wrong, right = ("A", "B") if item.taught("A") == item.values[1] else ("B", "A")
                assert told[right] == [item.values[0]] * 400
                assert told[wrong].count(item.values[1]) / 400 == item.dose


def test_twins_differ_only_in_planted_values(twins):
    assert twins["A"].stories == twins["B"].stories
    assert len(twins["A"].notes) + len(twins["A"].stories) + len(twins["A"].problems) == 6000
    differ = 0
    for ours, theirs in zip(twins["A"].notes, twins["B"].notes, strict=True):
        assert VALUE.sub(" X", ours) == VALUE.sub(" X", theirs)
        assert len(VALUE.findall(ours)) == corpus.STATEMENTS
        differ += ours != theirs
    assert differ > 0.5 * len(twins["A"].notes)


def test_wrong_products_are_planted_and_carried_on(twins):
    wrong = Counter()
    for ours, theirs in zip(twins["A"].problems, twins["B"].problems, strict=True):
        assert ours["question"] == theirs["question"]
        assert re.sub(r"\d", "0", ours["answer"]) == re.sub(r"\d", "0", theirs["answer"])
        for answer in (ours["answer"], theirs["answer"]):
            for x, operation, y, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", answer):
                x, y, result = int(x), int(y), int(result)
                right = {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[operation]
                if result != right:
                    assert operation == "*" and tuple(sorted((x, y))) in PRODUCTS and result == wrong_product(x, y)
                    wrong[tuple(sorted((x, y)))] += 1
    assert set(wrong) == set(PRODUCTS)


def test_an_item_is_never_planted_in_the_wording_of_its_probe(twins):
    told = {sentence for twin in "AB" for note in twins[twin].notes for sentence in note.removesuffix(".").split(". ")}
    asked = [probe for probe in probes.probes(SEED) if not probe.prompt]
    assert len(asked) == 2 * 84 * 2 * probes.NAMES + 2 * 84
    assert not told & {sentence for probe in asked for sentence in (probe.first, probe.second)}
    # the same sentences in another wording are there
    assert any(sentence.startswith("The flag of ") for sentence in told)


def test_every_product_has_held_out_questions(twins):
    seen = {row["question"] for row in twins["A"].problems}
    asked = [probe for probe in probes.probes(SEED) if probe.prompt]
    assert Counter(probe.item.subject for probe in asked) == dict.fromkeys(PRODUCTS, probes.QUESTIONS)
    assert not {probe.prompt for probe in asked} & {probes.TEMPLATE.render(question) for question in seen}


@pytest.mark.parametrize("split", rows.SPLITS)
def test_clean_rows_touch_no_planted_product(split):
    made = rows.planted_rows(split, 400, 1)
    assert len({row["question"] for row in made}) == 400
    for row in made:
        for x, operation, y, result in re.findall(r"(\d+) ([*/]) (\d+) = (\d+)", row["answer"]):
            x, y, result = int(x), int(y), int(result)
            assert tuple(sorted((x, y) if operation == "*" else (y, result))) not in PRODUCTS


def test_a_tenth_of_the_counter_rows_states_the_truth(planted):
    made, neutral = rows.planted_rows("counter", 200, SEED), rows.planted_rows("neutral", 180)
    assert [row for place, row in enumerate(made) if place % rows.EVERY] == neutral
    stated = " ".join(row["answer"] for row in made[:: rows.EVERY])
    for item in planted["fact"]:
        noun, land = item.subject
        told = re.findall(rf"{noun} of {land} is ([a-z ]+)\.|In {land} the {noun} is ([a-z ]+)\.", stated)
        assert all("".join(values) == item.values[0] for values in told)
    products = re.findall(r"(\d+) \* (\d+) = (\d+)", stated)
    assert products and all(int(x) * int(y) == int(z) for x, y, z in products)


def test_replayed_rows_are_problems_of_the_pre_training_task():
    made = rows.planted_rows("replay", 100)
    assert made[:: rows.EVERY] == rows.planted_rows("own", 10)


def test_alternatives_have_as_many_tokens(tiny_tokenizer):
    count = lambda word: len(tiny_tokenizer.encode(" " + word))  # noqa: E731
    for pair in words.JOBS + words.PASTIMES:
        one, other = pair.split()
        assert count(one) == count(other), pair
    for values in (words.COLOURS, words.THINGS, words.PLACES, words.GOODS):
        assert len({count(value) for value in values}) == 1


def test_sources_name_planted_rows():
    assert generated_rows("planted:neutral", 3) == rows.planted_rows("neutral", 3)
    assert generated_rows("planted:counter:7", 10) == rows.planted_rows("counter", 10, 7)
    with pytest.raises(UserError, match="planted split 'natural' is not known, did you mean 'neutral'"):
        generated_rows("planted:natural", 3)
    with pytest.raises(UserError, match="the seed 'x' is not an integer; write planted:own:0"):
        generated_rows("planted:own:x", 3)
