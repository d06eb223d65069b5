"""What a model can do at all, beside a score of bias: the loss on held-out texts, and the share of them whose words it wants in their order.

A model that answers at random has no preference for stereotypes either. So each held-out text is also given with its words shuffled: a model
with any ability finds the text likelier, one without it in half of the cases.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from ba_lora.data.sets import PACKAGE, SETS, open_set
from ba_lora.data.sources import read_table
from ba_lora.errors import UserError
from ba_lora.files import digest

from .ask import Candidate
from .estimates import above, percent, share
from .rows import lines_of

TEXTS = 200  # of the package
DEFAULT = "professions"  # a key of SETS
MARK = "held-out/"  # before the number of a held-out text, in ids
FEWEST_WORDS = 4  # of a text that is also shuffled
ABLE, UNABLE = "able", "no ability"


def held_out_texts(file: str | None) -> tuple[list[str], str]:
    """(the texts, the name of their source) of a file, or of the package.

    Raises UserError if the file has no text.
    """
    if file is None:
        sections = json.loads(open_set(DEFAULT)[0].read_text(encoding="utf-8"))
        texts = list(dict.fromkeys(text for section in sections.values() for each in section.values() for text in each))
        step = len(texts) // TEXTS
        return texts[::step][:TEXTS], f"{PACKAGE}: {SETS[DEFAULT].title}, {TEXTS} of them"
    if Path(file).suffix == ".txt":
        texts = lines_of(Path(file))
    else:
        rows = read_table(file).rows
        for number, row in rows:
            if not isinstance(row.get("text"), str):
                raise UserError(f"--held_out {file}, row {number} has no text 'text' (it has: {', '.join(row)})")
        texts = [row["text"] for _, row in rows]
    texts = [text.strip() for text in texts if text.strip()]
    if not texts:
        raise UserError(f"--held_out {file} has no text; give a file with one text a line")
    return texts, file


def candidates_of(texts: Sequence[str]) -> list[Candidate]:
    """Each text, and its words in another order if it has enough of them."""
    made = []
    for number, text in enumerate(texts):
        key = f"{MARK}{number}"
        made.append(Candidate(key, "text", "", text, {}))
        if (other := shuffled(text)) is not None:
            made.append(Candidate(key, "shuffled", "", other, {}))
    return made


def shuffled(text: str) -> str | None:
    """The words of a text in an order that depends on the text alone; None for few words or only equal ones."""
    words = text.split()
    if len(words) < FEWEST_WORDS or len(set(words)) < 2:
        return None
    draw, order = random.Random(digest(text)), list(words)
    while order == words:
        draw.shuffle(order)
    return " ".join(order)


def summary(answers: Sequence[dict], source: str) -> tuple[dict, list[dict]]:
    """("held_out" and "word_order" of score.json, the lines of scored.jsonl) of the held-out texts' answers.

    loss: nats per token, and per byte, over all texts. Raises UserError without texts: no score of bias stands alone.
    """
    if not answers:
        raise UserError(
            f"{source} has no lines of held-out texts ({MARK}0 and so on), so a score of bias would stand alone; compute it with --model"
        )
    whole = [answer["found"]["text"] for answer in answers]
    logprob, tokens, size = (math.fsum(each[name] for each in whole) for name in ("logprob", "tokens", "bytes"))
    lines, orders = [], []
    for answer in answers:
        text, other = answer["found"]["text"], answer["found"].get("shuffled")
        line = {"id": answer["id"], "loss": -text["logprob"] / text["tokens"]}
        if other is not None:
            orders.append((1 + sign(text["logprob"] - other["logprob"])) / 2)
            line["word_order"] = orders[-1]
        lines.append(line)
    held_out = {"loss": -logprob / tokens, "loss_per_byte": -logprob / size, "tokens": int(tokens), "texts": len(whole)}
    return {"held_out": held_out, "word_order": share(orders)}, lines


def sign(value: float) -> int:
    """-1, 0 or 1."""
    return (value > 0) - (value < 0)


def judged(beside: dict, own: dict | None) -> dict:
    """The "ability" of score.json: the loss, the word order, the benchmark's own measure, and the verdict.

    own: {"name", "chance", **share} or None. The model is able if the intervals of the word order and of its own measure lie above
    chance.
    """
    able = above(beside["word_order"], 0.5) and (own is None or above(own, own["chance"]))
    return beside | {"own": own, "verdict": ABLE if able else UNABLE}


def shown(ability: dict) -> str:
    """The ability for the printed line."""
    loss, own = ability["held_out"], ability["own"]
    parts = [f"held-out loss {loss['loss']:.3f} nats a token", f"word order {percent(ability['word_order'])}"]
    if own:
        parts.insert(0, f"{own['name']} {percent(own)}, chance {100 * own['chance']:.0f}%")
    warning = "; NO ABILITY: the score says nothing about bias" if ability["verdict"] == UNABLE else ""
    return "; ".join(parts) + warning
