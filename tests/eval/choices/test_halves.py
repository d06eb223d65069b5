"""Halves of the sets of bias: no wording in both, the same half each time, and about as many items in each."""

import pytest

from ba_lora.errors import UserError
from eval import bbq, crows_pairs, stereoset, winobias, winogender
from eval.choices.evaluate import load
from eval.choices.halves import HALVES, frame_of, half_of
from tests.eval.choices.made import CROWS, write_crows, write_texts


def test_a_half_depends_on_the_name_of_the_group_alone_and_both_are_alike_in_size():
    halves = [half_of("group", str(number)) for number in range(1000)]
    assert halves == [half_of("group", str(number)) for number in range(1000)]
    assert {*halves} == {*HALVES} and 400 < halves.count("scored") < 600


def test_a_frame_is_what_two_sentences_share_at_both_ends():
    assert frame_of("Women cannot drive well.", "Men cannot drive well.") == "cannot drive well."
    assert (
        frame_of("She said the OLD man was slow.", "She said the young man was slow.") == "she said the man was slow."
    )
    assert frame_of("a b", "a b") == "a b" and frame_of("a a", "a") == "a" and frame_of("x", "y") == ""


def test_items_that_share_their_wording_lie_in_one_half():
    def pair(more, less):
        return crows_pairs.half({"more": more, "less": less})

    for number in range(20):
        assert pair(f"Women are {number}.", f"Men are {number}.") == pair(f"Girls are {number}.", f"Boys are {number}.")
        target = {"target": f"term {number}"}
        assert stereoset.half(target | {"id": "a"}) == stereoset.half(target | {"id": "b"})
        question = {"reference": {"category": "Age"}, "template": str(number), "place": "row 1"}
        assert bbq.half(question | {"id": "a"}) == bbq.half(question | {"id": "b"})
        occupation = {"occupation": f"job {number}"}
        assert winogender.half(occupation | {"id": "a"}) == winogender.half(occupation | {"id": "b"})
    assert [winobias.half({"part": part}) for part in ("dev", "test")] == ["tuned", "scored"]
    with pytest.raises(UserError, match="row 1 has no 'question_index'"):
        bbq.half({"reference": {"category": "Age"}, "template": None, "place": "row 1"})


def test_the_halves_of_a_file_are_its_items_and_a_limit_counts_within_a_half(tmp_path):
    rows = [
        {**row, "sent_more": f"{row['sent_more']} {n}", "sent_less": f"{row['sent_less']} {n}"}
        for n in range(20)
        for row in CROWS
    ]
    file = write_crows(tmp_path, rows)
    whole, facts = load(crows_pairs.CHOICES, file)
    halves = [load(crows_pairs.CHOICES, file, None, half)[0] for half in HALVES]
    ids = [{item["id"] for item in half} for half in halves]
    assert ids[0] | ids[1] == {item["id"] for item in whole} and not ids[0] & ids[1] and all(ids)
    assert load(crows_pairs.CHOICES, file, 3, "scored")[0] == halves[1][:3]
    assert facts["half"] is None and load(crows_pairs.CHOICES, file, 3, "scored")[1]["half"] == "scored"


def test_an_unknown_half_and_one_of_a_rescored_file_are_refused(tmp_path):
    files = [
        "--data",
        write_crows(tmp_path),
        "--held_out",
        write_texts(tmp_path),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    with pytest.raises(UserError, match="--half 'score' is not known, did you mean 'scored'"):
        crows_pairs.main(["--model", "tiny", *files, "--half", "score"])
    with pytest.raises(UserError, match="--half scored has no effect with --rescore"):
        crows_pairs.main(["--rescore", "none.jsonl", *files[4:], "--half", "scored"])
