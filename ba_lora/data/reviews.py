"""Rated sentences from four domains, in a registry package: the embedded task "reviews" and its test sets.

The source distribution of vaderSentiment holds sentences of movie reviews, product reviews, tweets and New York Times
editorials, each with the mean of at least 20 ratings from -4 to 4 (Hutto and Gilbert, ICWSM 2014). A mean of 0.5 or more is
positive, -0.5 or less is negative; sentences in between are left out and counted. The movie sentences are split by a hash of
their text, so that no text is in two splits. The task has the shape of SST-2 and GLUE-X, but not their data.
"""

import hashlib
from functools import cache

from ..errors import UserError
from ..packages import fetch_source, read_member

LABELS = ("negative", "positive")
DISTRIBUTION, VERSION = "vaderSentiment", "3.3.2"
SOURCE = f"package:{DISTRIBUTION}"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = f"{DISTRIBUTION}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
}
THRESHOLD = 0.5
PARTS = {"train": range(0, 80), "validation": range(80, 90), "test": range(90, 100)}  # hundredths of the hash


def labelled(domain: str, split: str | None = None) -> tuple[list[tuple[str, str, dict]], dict]:
    """(rows (its place, id, {"sentence", "label"}), {"rated": sentences, "between": left out}) of a domain.

    split: train, validation or test; None = all rows.
    """
    rows, rated, between = [], 0, 0
    for place, key, rating, text in rated_sentences(domain):
        if split is not None and part_of(text) not in PARTS[split]:
            continue
        rated += 1
        if abs(rating) < THRESHOLD:
            between += 1
        else:
            rows.append((place, key, {"sentence": text, "label": int(rating > 0)}))
    return rows, {"rated": rated, "between": between}


def part_of(text: str) -> int:
    """A number from 0 to 99 that depends only on the words of a text, not on case or white space."""
    words = " ".join(text.lower().split())
    return int(hashlib.sha256(words.encode()).hexdigest(), 16) % 100


@cache
def rated_sentences(domain: str) -> list[tuple[str, str, float, str]]:
    """All (its place, id, mean rating, text) of a domain, a key of FILES."""
    archive = read_member(fetch_source(DISTRIBUTION, VERSION, SHA256), INNER)
    name = f"hutto_ICWSM_2014/{FILES[domain]}_GroundTruth.txt"
    sentences = []
    for number, line in enumerate(read_member(archive, name).decode("utf-8").split("\n"), 1):
        if line.strip():
            place, fields = f"{name}, line {number}", line.rstrip("\r").split("\t")
            if len(fields) != 3:
                raise UserError(f"{place}: {len(fields)} fields where 3 are needed; remove the package from the cache")
            sentences.append((place, fields[0], float(fields[1]), fields[2].strip()))
    return sentences
