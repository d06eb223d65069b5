"""Damage to valid files: to the values of a document, and to its bytes. A given `random.Random` always does the same damage."""

import copy
import json
from collections.abc import Iterator
from random import Random

import yaml

NESTED = json.loads("[" * 300 + "]" * 300)  # as deep as Python's own writers go
VALUES = (
    *(None, True, False, 0, -7, 2, 2.5, 10**25, float("inf"), float("nan"), 1e300, -1e-300),
    *(
        "",
        "  ",
        "word",
        "two\nlines",
        "tab\there",
        "nul\0here",
        "grün\u202e",
        "\ud83d",
        "../up",
        "/etc",
        "{0}{x}",
        "%s%d",
    ),
    *("y" * 40_000, "1e3", "1e400", "-5", "2021-05-06", "null", "true", "--seed", "-x", "--help", "nan", "²", "٣"),
    *([], {}, [None], [[1, 2]], ["a", 1], ["a", "a"], [{}], {"k": None}, {"k": {"k": [0]}}, {"": 1}, NESTED),
)
NAMES = ("", "é", "new", "two\nlines", "id", "name", "seed", "score", "k" * 300)
BYTES = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\xe2\x80\xa8",
        b"\x85",
        b"\x1b[2J",
        b"\r",
        b"\n\n",
        b"\t",
    ),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"'",
        b",",
        b":",
        b"- ",
        b": ",
        b"#",
        b"|",
        b"%",
        b"<<: ",
        b"&a ",
        b"*a",
        b"? ",
        b"---\n",
        b"\\u",
    ),
    *(
        b"!!python/name:os.system ",
        b"!!binary x",
        b"!!float x",
        b"!!int x",
        b"2021-13-45",
        b"NaN",
        b"-Infinity",
        b"\\ud800",
    ),
    *(b"9" * 5000, b"[" * 5000, b"{" * 200, b'{"a":' * 5000, b"- " * 3000, b"0x", b"1e999", b"1:70"),
)


def places(document, path: tuple = ()) -> Iterator[tuple]:
    """The path (keys and positions) of every value in a document, the document's own, (), first."""
    yield path
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from places(document[key], (*path, key))


def change_values(document, random: Random):
    """A copy with one to three values replaced, removed, added or renamed."""
    document = copy.deepcopy(document)
    for _ in range(random.choice((1, 1, 2, 3))):
        path = random.choice(list(places(document)))
        value = copy.deepcopy(random.choice(VALUES))
        if not path:
            if random.random() < 0.3:
                return value
            _add(document, random.choice(NAMES), value)
            continue
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        action = random.choice(("replace", "replace", "replace", "remove", "add", "rename"))
        if action == "remove":
            del holder[path[-1]]
        elif action == "add":
            _add(holder, random.choice(NAMES), value)
        elif action == "rename" and isinstance(holder, dict):
            holder[random.choice(NAMES)] = holder.pop(path[-1])
        else:
            holder[path[-1]] = value
    return document


def _add(holder, name: str, value) -> None:
    if isinstance(holder, dict):
        holder[name] = value
    elif isinstance(holder, list):
        holder.append(value)


def change_bytes(content: bytes, random: Random) -> bytes:
    """A copy with one to four stretches removed, inserted, flipped, repeated, or cut off."""
    content = bytearray(content)
    for _ in range(random.randint(1, 4)):
        place = random.randrange(len(content) + 1)
        action = random.randrange(7)
        if action == 0:
            del content[place : place + random.randint(1, 25)]
        elif action <= 2:
            content[place:place] = random.choice(BYTES)
        elif action == 3 and place < len(content):
            content[place] ^= 1 << random.randrange(8)
        elif action == 4:
            content[place:place] = content[max(0, place - 30) : place]
        elif action == 5:
            content = bytearray(bytes(content).replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n", b"")), 2))
        elif random.random() < 0.3:
            del content[place:]
    return bytes(content)


def written(document, form: str) -> bytes:
    """A document as a file of the form "json", "jsonl" (a line per entry of a list) or "yaml"."""
    if form == "yaml":
        text = yaml.safe_dump(document, allow_unicode=True, sort_keys=False)
    elif form == "jsonl" and isinstance(document, list):
        text = "".join(json.dumps(row) + "\n" for row in document)
    else:
        text = json.dumps(document, indent=2)
    return text.encode("utf-8", "surrogatepass")


def damaged(valid, form: str, random: Random) -> bytes:
    """The bytes of a file that was valid: a document of the given form, or, for the form "bytes", its content."""
    while form != "bytes" and random.random() < 0.65:
        try:
            return written(change_values(valid, random), form)
        except (ValueError, TypeError, yaml.YAMLError):  # not every value has a place in every form
            continue
    return change_bytes(valid if form == "bytes" else written(valid, form), random)
