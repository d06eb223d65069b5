"""What each item contributes to a score on given texts, as results.jsonl keeps it: numbers in one text, "-" for an item that does not count."""

from pathlib import Path

import numpy as np

from eval.harness.scores import LIKELIHOODS, LOSSES, SCORED

from ..errors import UserError, short
from ..files import digest, read_json_lines

NONE = "-"


def of_given_texts(made: dict, folder: Path) -> dict:
    """The parts of a result that a score.json on given texts has beside the others: data_hash, items, and the ability, if it has one.

    The items' values are such that their mean is the score where it is a mean over tokens. data_hash: of the set, its half, and
    the items that were asked.
    """
    measure = made["item_measure"]
    lines = read_json_lines(folder / SCORED, {"id": "a text or a number"})
    lines = [line for line in lines if measure in line]
    values = [line[measure] for line in lines]
    if lines and all("tokens" in line for line in lines):
        mean = sum(line["tokens"] for line in lines) / len(lines)
        values = [line[measure] * line["tokens"] / mean for line in lines]
    asked = next(folder / name for name in (LIKELIHOODS, LOSSES) if (folder / name).is_file())
    ids = list(dict.fromkeys(str(line["id"]) for line in read_json_lines(asked, {"id": "a text or a number"})))
    found = {"items": " ".join(NONE if value is None else f"{value:.6g}" for value in values)}
    found["data_hash"] = digest([made["data_hash"], made.get("half"), ids])
    if "ability" not in made:
        return found
    ability = made["ability"]
    own = ability["own"]
    return found | {
        "ability": {
            "verdict": ability["verdict"],
            "held_out_loss": ability["held_out"]["loss"],
            "word_order": ability["word_order"]["score"],
            "own": own and own["score"],
            "own_name": own and own["name"],
        }
    }


def items_of(text: str) -> np.ndarray:
    """(items,): the numbers of such a text, NaN for an item that does not count. Raises UserError for anything else."""
    try:
        return np.array([np.nan if word == NONE else float(word) for word in text.split()])
    except ValueError:
        raise UserError(f"'items' is {short(text)}, numbers are needed; collect the result again") from None
