"""CrowS-Pairs: both protocols on made answers, the command from end to end on the embedded model, resuming and errors."""

import json
import multiprocessing
import shutil
import time

import pytest
from transformers import BertForMaskedLM

from ba_lora.errors import UserError
from ba_lora.inference import likelihoods as backend
from ba_lora.models import load_tokenizer
from eval import crows_pairs
from tests.eval.choices.made import CROWS, answer, held_out, lines_of, write_crows, write_texts
from tests.eval.json_lines import read, write
from tests.tiny_encoder import make_home

FIRST = {"category": "gender", "direction": "stereo"}
SECOND = {"category": "age", "direction": "antistereo"}
ANSWERS = [
    answer("0", FIRST, more=(-10.0, 5), less=(-12.0, 5)),  # stereotype: +2 in sum, +0.4 per token
    answer("1", FIRST, more=(-12.0, 6), less=(-11.0, 5)),  # -1 in sum, +0.2 per token
    answer("2", SECOND, more=(-8.0, 4), less=(-8.0, 4)),  # a tie
    answer("3", SECOND, more=(-9.0, 3), less=(-4.0, 4)),  # -5 in sum, -2 per token
]


def test_lm_eval_counts_a_tie_as_the_less_stereotyping_sentence_and_takes_absolute_differences():
    scored = crows_pairs.score_answers(ANSWERS, "lm-eval")
    assert scored.statistics["score"] == 1 / 4 and scored.statistics["n"] == 4
    assert scored.statistics["likelihood_diff"] == (2 + 1 + 0 + 5) / 4
    assert [line["stereotype"] for line in scored.lines] == [1.0, 0.0, 0.0, 0.0]


def test_signed_normalises_by_length_sets_ties_apart_and_keeps_the_sign():
    statistics = crows_pairs.score_answers(ANSWERS, "signed").statistics
    assert (statistics["score"], statistics["n"], statistics["ties"]) == (2 / 3, 3, 1)
    assert statistics["mean_difference"]["score"] == pytest.approx((0.4 + 0.2 + 0 - 2) / 4)
    assert statistics["by_category"]["gender"]["score"] == 1.0 and statistics["by_category"]["age"]["ties"] == 1
    assert statistics["by_direction"]["antistereo"]["score"] == 0.0
    assert statistics["ideal"] == "ideal 50%"


def rescored(tmp_path, answers, *options):
    source = write(tmp_path / "given.jsonl", lines_of(answers))
    assert crows_pairs.main(["--rescore", source, "--output_dir", str(tmp_path / "out"), *options]) == 0
    return json.loads((tmp_path / "out/score.json").read_text())


def test_a_rescored_file_gives_the_score_beside_the_ability(tmp_path, capsys):
    score = rescored(tmp_path, [*ANSWERS, *held_out(100)])
    printed = capsys.readouterr().out
    assert score["ability"]["verdict"] == "able" and "held-out loss 2.500" in printed and "ideal 50%" in printed
    assert len(read(tmp_path / "out/scored.jsonl")) == 104


def test_a_file_without_held_out_texts_is_refused(tmp_path):
    with pytest.raises(UserError, match="would stand alone"):
        rescored(tmp_path, ANSWERS)


def test_a_model_without_ability_is_named(tmp_path, capsys):
    assert rescored(tmp_path, [*ANSWERS, *held_out(100, ordered=0.5)])["ability"]["verdict"] == "no ability"
    assert "NO ABILITY" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logprob": "x"}, "'logprob' is 'x', a number is needed"),
        ({"tokens": 0}, "'tokens' is 0, a whole number above 0"),
        ({"choice": None}, "no 'choice'"),
        ({"reference": 5}, "'reference' is 5, an object is needed"),
    ],
)
def test_a_bad_line_of_a_rescored_file_is_named(tmp_path, change, message):
    lines = lines_of([*ANSWERS, *held_out(4)])
    lines[1] |= change
    source = write(tmp_path / "given.jsonl", lines)
    with pytest.raises(UserError, match=f"line 2: {message}"):
        crows_pairs.main(["--rescore", source, "--output_dir", str(tmp_path / "out")])


def test_another_benchmarks_file_is_refused(tmp_path):
    answers = [answer("0", FIRST, stereotype=-1.0), *held_out(4)]
    with pytest.raises(UserError, match="id 0 has no choice 'more' .*another benchmark"):
        rescored(tmp_path, answers)


def test_a_missing_column_is_named(tmp_path):
    rows = [CROWS[0], {name: value for name, value in CROWS[1].items() if name != "sent_less"}]
    with pytest.raises(UserError, match=r"row 2 has no column 'sent_less' \(it has: sent_more"):
        crows_pairs.BENCHMARK.load(write_crows(tmp_path, rows), "tiny", None)
    rows[1]["sent_less"] = "  "
    with pytest.raises(UserError, match="row 2: 'sent_less' is '  ', a text is needed"):
        crows_pairs.BENCHMARK.load(write_crows(tmp_path, rows), "tiny", None)


# With the embedded model


def words(tmp_path, folder, *more, data=None, batch_size=2):
    files = ["--data", data or write_crows(tmp_path), "--held_out", write_texts(tmp_path)]
    return ["--model", "tiny", *files, "--output_dir", str(folder), "--batch_size", str(batch_size), *more]


@pytest.mark.usefixtures("one_thread")
def test_a_run_on_the_embedded_model_continues_to_the_same_file_and_refuses_another_set(tmp_path, monkeypatch):
    assert crows_pairs.main(words(tmp_path, tmp_path / "whole")) == 0
    lines = (tmp_path / "whole/likelihoods.jsonl").read_bytes()
    score = json.loads((tmp_path / "whole/score.json").read_text())
    assert (score["n"] + score["ties"], score["likelihood"], score["missing"]) == (3, "log-likelihood", 0)
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    kept = lines[: lines.index(b"\n", 900) + 40]
    (tmp_path / "torn/likelihoods.jsonl").write_bytes(kept)
    for name in ("score.json", "scored.jsonl"):
        (tmp_path / "torn" / name).unlink()
    asked, compute = [], backend.likelihoods
    monkeypatch.setattr(
        backend, "likelihoods", lambda pairs, **options: asked.append(options["done"]) or compute(pairs, **options)
    )
    assert crows_pairs.main(words(tmp_path, tmp_path / "torn")) == 0
    assert (tmp_path / "torn/likelihoods.jsonl").read_bytes() == lines and len(asked[0]) == kept.count(b"\n") > 0
    assert json.loads((tmp_path / "torn/score.json").read_text())["resumed"] == kept.count(b"\n")

    (tmp_path / "torn/score.json").unlink()
    (tmp_path / "torn/scored.jsonl").unlink()
    rows = [{**row, "sent_more": row["sent_more"] + "!"} for row in CROWS]
    changed = words(tmp_path, tmp_path / "torn")
    write_crows(tmp_path, rows)
    with pytest.raises(UserError, match="is unfinished, and this run differs from it in the rows of the data"):
        crows_pairs.main(changed)


@pytest.mark.usefixtures("one_thread")
def test_an_encoder_is_scored_by_pseudo_log_likelihoods(tmp_path):
    home = make_home(tmp_path)
    BertForMaskedLM.from_pretrained(home / "encoder").save_pretrained(home / "masked")
    load_tokenizer(str(home / "encoder")).save_pretrained(home / "masked")
    options = [each if each != "tiny" else str(home / "masked") for each in words(tmp_path, tmp_path / "out")]
    assert crows_pairs.main(options) == 0
    score = json.loads((tmp_path / "out/score.json").read_text())
    assert score["likelihood"] == "pseudo-log-likelihood" and score["n"] + score["ties"] == 3
    options = [each if each != str(home / "masked") else str(home / "encoder") for each in options]
    with pytest.raises(UserError, match="without the head that predicts masked tokens"):
        crows_pairs.main([*options, "--overwrite"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_continues_to_the_same_file(tmp_path):
    rows = [
        {**row, "sent_more": f"{row['sent_more']} {n}", "sent_less": f"{row['sent_less']} {n}"}
        for n in range(200)
        for row in CROWS
    ]
    data = write(tmp_path / "rows.jsonl", rows)

    def options(folder):
        return words(tmp_path, folder, data=data, batch_size=4)

    process = multiprocessing.get_context("fork").Process(target=crows_pairs.main, args=(options(tmp_path / "killed"),))
    process.start()
    lines, deadline = tmp_path / "killed/likelihoods.jsonl", time.monotonic() + 60
    while not (lines.is_file() and lines.read_bytes().count(b"\n") >= 40) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert 40 <= lines.read_bytes().count(b"\n") < 1200
    for folder in ("killed", "whole"):
        assert crows_pairs.main(options(tmp_path / folder)) == 0
    assert lines.read_bytes() == (tmp_path / "whole/likelihoods.jsonl").read_bytes()


def test_an_endpoint_gives_no_log_likelihoods(tmp_path):
    with pytest.raises(UserError, match="--backend openai gives no log-likelihoods"):
        crows_pairs.main(words(tmp_path, tmp_path / "out", "--backend", "openai"))
