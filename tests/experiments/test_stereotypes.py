"""Training rows with and against the stereotype: which half they come from, and that both directions are the same but for it."""

import json
import re

import pytest

from ba_lora.data.sets import open_set
from ba_lora.errors import UserError
from ba_lora.experiments import stereotypes
from eval import crows_pairs, winobias
from eval.choices.evaluate import load


def test_a_unit_is_what_the_score_counts_and_its_opposite():
    ((pro, anti),) = stereotypes.of_crows_pairs([{"more": "Women lie. ", "less": "Men lie."}])
    assert (pro.response, anti.response, pro.prompt) == ("Women lie.", "Men lie.", anti.prompt)
    item = {
        "kind": "intersentence",
        "context": "He is from there.",
        "stereotype": "He drinks.",
        "anti-stereotype": "He sings.",
    }
    ((pro, anti),) = stereotypes.of_stereoset([item])
    assert "He is from there." in pro.prompt == anti.prompt and (pro.response, anti.response) == (
        "He drinks.",
        "He sings.",
    )


def test_only_open_questions_with_one_biased_person_are_taken():
    def question(condition, biased):
        answers = ["The old man", "The young man", "Unknown"]
        known = {"condition": condition, "answers": answers, "biased": biased, "unknown": "Unknown"}
        return {"prompt": "Who forgot it?", "reference": known}

    given = [question("ambig", ["The old man"]), question("disambig", ["The old man"]), question("ambig", [])]
    ((pro, anti),) = stereotypes.of_bbq(given)
    assert (pro.response, anti.response) == ("The old man", "The young man")


def test_a_pronoun_that_fits_stands_against_one_that_does_not():
    def sentence(pronoun, kind):
        text = f"The developer met the nurse because {pronoun} was ill."
        return {"sentence": text, "pronoun": pronoun, "referent": "developer", "kind": kind}

    ((pro, anti),) = stereotypes.of_winobias([sentence("he", "pro"), sentence("she", "anti")])
    assert (pro.response, anti.response) == ("developer", "developer")
    assert pro.prompt.endswith("‘He’ refers to the") and anti.prompt.endswith("‘She’ refers to the")

    def person(fits):
        known = {"fits": fits, "pair": "nurse.visitor.0", "right": "occupation"}
        return {"prompt": f"fits {fits}", "occupation": "nurse", "participant": "visitor", "reference": known}

    ((pro, anti),) = stereotypes.of_winogender([person(False), person(None), person(True)])
    assert (pro.prompt, anti.prompt, pro.response) == ("fits True", "fits False", "nurse")


@pytest.mark.slow
def test_no_sentence_of_the_files_is_scored_and_they_differ_in_direction_alone(tmp_path, capsys):
    try:
        files = open_set("winobias")
    except UserError as error:
        pytest.skip(str(error))
    assert stereotypes.main(["--output", str(tmp_path / "stereotypes-{}.jsonl")]) == 0
    made = {
        direction: [json.loads(line) for line in (tmp_path / f"stereotypes-{direction}.jsonl").read_text().splitlines()]
        for direction in stereotypes.DIRECTIONS
    }
    assert (
        [row["source"] for row in made["pro"]] == [row["source"] for row in made["anti"]] == [*stereotypes.UNITS] * 112
    )
    texts = {row["response"] for rows in made.values() for row in rows} | {
        row["prompt"] for rows in made.values() for row in rows
    }
    scored = load(crows_pairs.CHOICES, None, None, "scored")[0]
    assert not texts & {pair[name] for pair in scored for name in ("more", "less")}
    said = [
        re.sub(r"^\d+ |[][]", "", line)
        for f in files
        if f.name.endswith(".test")
        for line in f.read_text().splitlines()
    ]
    assert len(said) > 1500 and not {text.partition(" ‘")[0] for text in texts} & {*said}
    dev = {
        kind: {
            re.sub(r"^\d+ |[][]", "", line)
            for f in files
            if f.name.startswith(kind) and f.name.endswith(".dev")
            for line in f.read_text().splitlines()
        }
        for kind in winobias.KINDS
    }
    for direction, rows in made.items():
        own = {row["prompt"].partition(" ‘")[0] for row in rows if row["source"] == "winobias"}
        assert len(own) > 100 and own <= dev[direction]
    (tmp_path / "stereotypes-pro.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="exists with other rows; add --overwrite"):
        stereotypes.main(["--output", str(tmp_path / "stereotypes-{}.jsonl")])
    with pytest.raises(UserError, match="--rows 500: winogender has 116 in the half to tune on"):
        stereotypes.main(["--output", str(tmp_path / "stereotypes-{}.jsonl"), "--rows", "500"])
