"""eval.compare: one table of what both runs have scored, and a line for what cannot be compared."""

import pytest

from ba_lora.errors import UserError
from eval import compare
from eval.harness.scores import write_score


def evaluated(folder, rights, name="gsm8k", protocol="ba-lora", verdict=None, **facts):
    lines = [{"id": number, "correct": bool(right), "answer": "x"} for number, right in enumerate(rights)]
    place = folder / "eval" / name
    place.mkdir(parents=True)
    score = {"benchmark": name, "metric": "accuracy", "protocol": protocol, "protocol_version": "1", **facts}
    write_score(place, score | ({"ability": {"verdict": verdict}} if verdict else {}), {}, lines)


def table_of(capsys, *words):
    assert compare.main([*map(str, words)]) == 0
    printed = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")
    ]
    return printed, rows[2:]


def test_the_difference_is_over_the_items_of_both(tmp_path, capsys):
    evaluated(tmp_path / "a", [0] * 40 + [1] * 20)
    evaluated(tmp_path / "b", [1] * 40 + [1] * 10)  # ten items fewer
    _, rows = table_of(capsys, tmp_path / "a", tmp_path / "b")
    (row,) = rows
    assert row[:6] == ["gsm8k (ba-lora)", "correct", "50", "0.2000", "1.0000", "+0.8000"]
    assert row[-2:] == ["McNemar", "more"] and float(row[7]) == pytest.approx(2 / 2**40, rel=0.1)


def test_equal_results_are_equivalent_only_if_there_are_enough_of_them(tmp_path, capsys):
    for name, rights in (("a", [1, 0] * 30), ("b", [1, 0] * 30)):
        evaluated(tmp_path / name, rights)
    assert table_of(capsys, tmp_path / "a", tmp_path / "b")[1][0][-1] == "equivalent"
    evaluated(tmp_path / "c", [1, 0] * 28 + [0, 1, 1, 0])
    assert table_of(capsys, tmp_path / "a", tmp_path / "c")[1][0][-1] == "undecided"
    assert table_of(capsys, tmp_path / "a", tmp_path / "c", "--margin", "0.5")[1][0][-1] == "equivalent"


def test_p_values_are_corrected_over_the_whole_table(tmp_path, capsys):
    for name, last in (("a", 0), ("b", 1)):
        for benchmark in ("gsm8k", "mbpp"):
            evaluated(tmp_path / name, [1] * 20 + [last] * 7, name=benchmark)
    _, rows = table_of(capsys, tmp_path / "a", tmp_path / "b")
    assert [(float(row[7]), float(row[8])) for row in rows] == [(0.016, 0.031)] * 2


def test_another_protocol_or_set_and_a_model_without_ability_are_named(tmp_path, capsys):
    for name, version in (("a", "x"), ("b", "y")):
        evaluated(tmp_path / name, [1, 0], verdict="no ability")
        evaluated(tmp_path / name, [1, 0], name="crows_pairs", data_hash=version)
    printed, rows = table_of(capsys, tmp_path / "a", tmp_path / "b")
    assert len(rows) == 1
    assert "crows_pairs (ba-lora): not compared, because data_hash is x in one and y in the other" in printed
    assert printed.count("has no ability") == 2


def test_nothing_in_common_is_one_line(tmp_path):
    evaluated(tmp_path / "a", [1])
    evaluated(tmp_path / "b", [1], name="mbpp")
    with pytest.raises(UserError, match="none in common"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(UserError, match=r"has no score.json"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "c")])
    with pytest.raises(UserError, match="--margin is 0"):
        compare.main([str(tmp_path / "a"), str(tmp_path / "b"), "--margin", "0"])
