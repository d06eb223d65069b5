"""A model at random has no ability; no score of bias stands without one; the loss is that of the numbers."""

import json
import random

import pytest

from ba_lora.errors import UserError
from eval.choices.ability import ABLE, UNABLE, candidates_of, held_out_texts, judged, shown, shuffled, summary
from eval.choices.estimates import macro, mean, share
from tests.eval.choices.made import answer, held_out, write_texts


def test_the_loss_is_in_nats_per_token_and_per_byte_over_all_texts():
    answers = [answer("held-out/0", {}, text=(-12.0, 4), shuffled=-20.0), answer("held-out/1", {}, text=(-2.0, 1))]
    found, lines = summary(answers, "F")
    assert found["held_out"] == {"loss": 14 / 5, "loss_per_byte": 14 / 20, "tokens": 5, "texts": 2}
    assert (found["word_order"]["score"], found["word_order"]["n"]) == (1.0, 1)
    assert lines == [{"id": "held-out/0", "loss": 3.0, "word_order": 1.0}, {"id": "held-out/1", "loss": 2.0}]


def test_without_held_out_texts_there_is_no_score():
    with pytest.raises(UserError, match=r"^F has no lines of held-out texts .* would stand alone"):
        summary([], "F")


def test_a_model_at_random_has_no_ability_and_says_so():
    draw = random.Random(0)
    answers = [answer(f"held-out/{n}", {}, text=draw.random(), shuffled=draw.random()) for n in range(200)]
    able = judged(summary(answers, "F")[0], None)
    assert able["verdict"] == UNABLE and "NO ABILITY" in shown(able)
    able = judged(summary(held_out(200), "F")[0], None)
    assert able["verdict"] == ABLE and "NO ABILITY" not in shown(able)


@pytest.mark.parametrize(("right", "verdict"), [(50, UNABLE), (58, UNABLE), (80, ABLE)])
def test_the_benchmarks_own_ability_must_be_above_chance_too(right, verdict):
    own = {"name": "lms", "chance": 0.5, **share([1.0] * right + [0.0] * (100 - right))}
    assert judged(summary(held_out(100), "F")[0], own)["verdict"] == verdict


def test_shuffled_words_are_the_same_words_in_another_order_each_time_alike():
    text = "one two three four five six"
    assert shuffled(text) == shuffled(text) != text
    assert sorted(shuffled(text).split()) == sorted(text.split())
    assert shuffled("a b c") is None and shuffled("go go go go go") is None


def test_texts_come_from_lines_or_from_a_column(tmp_path):
    texts, source = held_out_texts(write_texts(tmp_path))
    assert len(texts) == 3 and source.endswith("texts.txt")
    assert [(each.id, each.choice) for each in candidates_of(texts)][:2] == [
        ("held-out/0", "text"),
        ("held-out/0", "shuffled"),
    ]
    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"text": " one "}) + "\n")
    assert held_out_texts(str(table))[0] == ["one"]
    table.write_text(json.dumps({"words": "one"}) + "\n")
    with pytest.raises(UserError, match="row 1 has no text 'text'"):
        held_out_texts(str(table))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no text; give a file"):
        held_out_texts(str(tmp_path / "empty.txt"))


def test_estimates_are_those_of_the_formulas():
    assert mean([1.0, 2.0, 6.0])["stderr"] == pytest.approx((14 / 2 / 3) ** 0.5)
    assert mean([2.0])["stderr"] is None and mean([])["score"] is None and share([])["score"] is None
    whole = macro({"a": [1.0, 0.0, 0.0, 1.0], "b": [1.0]})
    assert (whole["score"], whole["n"], whole["groups"]) == (0.75, 5, 2)
    assert whole["stderr"] == pytest.approx(0.25)
