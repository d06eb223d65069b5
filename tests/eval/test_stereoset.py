"""StereoSet: lms, ss and icat of made models are as defined; files of another version or without a label are refused."""

import random

import pytest

from ba_lora.errors import UserError
from eval import stereoset
from eval.choices.ability import judged, summary
from tests.eval.choices.made import answer, held_out, stereoset_file

TARGETS = [f"target {number}" for number in range(20)]


def answers_of(choose, each=10):
    """`each` contexts of every target; choose: (a generator) → the three log-likelihoods, in the order of LABELS."""
    draw, made = random.Random(0), []
    for target in TARGETS:
        for number in range(each):
            reference = {"kind": stereoset.KINDS[number % 2], "target": target, "category": "gender"}
            stereo, anti, unrelated = choose(draw)
            made.append(
                answer(f"{target}/{number}", reference, stereotype=stereo, anti_stereotype=anti, unrelated=unrelated)
            )
    return made


def scores(choose):
    scored = stereoset.score_answers(answers_of(choose), "mean-token")
    able = judged(summary(held_out(200), "F")[0], scored.own)
    return scored.own["score"], scored.statistics["score"], scored.statistics["icat"]["score"], able["verdict"]


def test_a_model_that_always_takes_the_stereotype_has_ss_1_and_icat_0():
    assert scores(lambda draw: (-1.0, -2.0, -3.0)) == (1.0, 1.0, 0.0, "able")


def test_a_model_that_never_takes_it_has_ss_0_and_icat_0():
    assert scores(lambda draw: (-2.0, -1.0, -3.0)) == (1.0, 0.0, 0.0, "able")


def test_a_model_that_takes_it_in_half_of_the_contexts_of_each_target_is_ideal():
    turns = iter([(-1.0, -2.0, -3.0), (-2.0, -1.0, -3.0)] * 100)
    assert scores(lambda draw: next(turns)) == (1.0, 0.5, 1.0, "able")


def test_a_model_at_random_has_lms_and_ss_near_a_half_and_no_ability():
    lms, ss, icat, verdict = scores(lambda draw: (draw.random() - 1, draw.random() - 1, draw.random() - 1))
    assert lms == pytest.approx(0.5, abs=0.08) and ss == pytest.approx(0.5, abs=0.1)
    assert icat == pytest.approx(0.5, abs=0.1) and verdict == "no ability"


def test_a_model_that_prefers_unrelated_texts_has_lms_0():
    assert scores(lambda draw: (-2.0, -3.0, -1.0))[0] == 0.0


def test_the_mean_is_over_targets_and_over_tokens():
    kind = {"kind": "intrasentence", "category": "race"}
    made = [
        answer(str(n), {**kind, "target": "a"}, stereotype=-1.0, anti_stereotype=-2.0, unrelated=-9.0) for n in range(3)
    ]
    made.append(
        answer("9", {**kind, "target": "b"}, stereotype=(-6.0, 2), anti_stereotype=(-8.0, 4), unrelated=(-99.0, 4))
    )
    assert stereoset.score_answers(made, "mean-token").statistics["score"] == 0.5  # a: 1, b: -3 a token against -2


# Files

LABELLED = [{"sentence": f"It is {label}.", "gold_label": label} for label in stereoset.LABELS]
ENTRY = {"id": "x", "target": "t", "bias_type": "race", "context": "They came.", "sentences": LABELLED}


def test_the_two_kinds_alternate_and_the_second_sentence_follows_the_context(tmp_path):
    file = stereoset_file(
        tmp_path / "s.json", {"intrasentence": [ENTRY, {**ENTRY, "id": "y"}], "intersentence": [{**ENTRY, "id": "z"}]}
    )
    items = stereoset.read_contexts([file])
    assert [item["id"] for item in items] == ["x", "z", "y"]
    whole, second = (stereoset.candidates_of(item, "mean-token")[0] for item in items[:2])
    assert (whole.context, whole.continuation) == ("", "It is stereotype.")
    assert (second.context, second.continuation) == ("They came.", " It is stereotype.")


@pytest.mark.parametrize(
    ("entries", "version", "message"),
    [
        ({"intrasentence": [ENTRY], "intersentence": []}, "2.0", "has the version '2.0'; 1.0-dev"),
        ({"intrasentence": [ENTRY]}, "1.0-dev", "has no list 'intersentence'"),
        (
            {"intrasentence": [{"id": "x"}], "intersentence": []},
            "1.0-dev",
            "intrasentence 1 has no 'target'; give a file in StereoSet's own layout",
        ),
        (
            {"intrasentence": [{**ENTRY, "sentences": LABELLED[:2]}], "intersentence": []},
            "1.0-dev",
            "no text labelled 'unrelated'",
        ),
    ],
)
def test_another_version_or_an_incomplete_context_is_one_line(tmp_path, entries, version, message):
    with pytest.raises(UserError, match=message):
        stereoset.read_contexts([stereoset_file(tmp_path / "s.json", entries, version)])
