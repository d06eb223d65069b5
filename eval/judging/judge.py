"""A judge model grades answers: it is asked once per answer, over any OpenAI-compatible endpoint; each reply is saved and then read.

Single-answer grading as in Zheng et al. 2023 (arXiv 2306.05685) and FastChat: the judge sees the question, the answer and,
for math, reasoning and coding, a reference answer, and ends its reply with a rating from 1 to 10 as [[7]]. The replies go to
judgments.jsonl, one line per judgment, with a key of judge, options and prompt: an existing judgment is never requested again,
one with a changed prompt always is. Ratings are read from that file, so reading them again needs no judge.

Reading a reply. "ba-lora": the rating is the last number in double brackets, because the prompt asks for it after the
explanation, which may quote another. If there is none, it is the last number in single brackets that the reply calls a rating
("Rating: [7]", "[7/10]", or alone on its line): other single brackets are citations or code. Blanks, LaTeX's backslashes and the
scale are allowed ("[[7/10]]", "[[7]] out of [[10]]"). The prompt's own example, quoted in full, is not the judge's rating. Anything
else is not a rating, nor is a number below 1 or above 10.
"fastchat": the first number in double brackets, else the first in single ones, whatever its size, as published.

A reply without a rating is requested again, at RETRY_TEMPERATURE if the temperature was 0, since the same request would only
give the same reply; the first reply with a rating counts. If no reply has a rating, the judgment has none, and is counted as
such. So is one that the server refuses (HTTP 400, 413, 422: too long, filtered); as it has no reply, the next run asks it again.
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import NamedTuple

from tqdm import tqdm

from ba_lora.errors import UserError, redacted
from ba_lora.files import check_kinds, digest, unsealed
from ba_lora.folders.checksums import check_line, checked_line

PROTOCOLS = {"ba-lora": "2", "fastchat": "1"}  # how a reply is read; a change in what is read raises the version
PROMPTS = {  # (with a reference answer, turn) → the published prompt
    (False, 1): "single-v1",
    (True, 1): "single-math-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 2): "single-math-v1-multi-turn",
}
REFERENCED = ("math", "reasoning", "coding")  # categories that are judged with a reference answer
OPTIONS = {"temperature": 0, "max_tokens": 2048}  # of a request, as published
RETRY_TEMPERATURE = 0.7
LOWEST, HIGHEST = 1, 10

_EXAMPLE = 'for example: "Rating: [[5]]"'  # the example of the form in the published prompts
_NUMBER = r"(\d+(?:\.\d*)?)"
_PUBLISHED = re.compile(rf"\[\[{_NUMBER}\]\]", re.ASCII), re.compile(rf"\[{_NUMBER}\]", re.ASCII)
_INSIDE = rf"[\s*]*(?:(?:rating|score)\s*:\s*)?{_NUMBER}[\s*]*(?P<scale>(?:/|(?:out\s+)?of)\s*10[\s*]*)?"
_BEHIND = r"(?P<scale_behind>\s*(?:/|out\s+of)\s*(?:10\b|\[{1,2}\s*10\s*\]{1,2}))?"
_DOUBLE = re.compile(rf"\[\[{_INSIDE}\]\]{_BEHIND}", re.ASCII | re.IGNORECASE)
_SINGLE = re.compile(rf"(?<![\w\])])\[{_INSIDE}\]{_BEHIND}", re.ASCII | re.IGNORECASE)
_CALLED = re.compile(  # the words before a rating
    r"\b(?:(?:rating|score|grade)[*_\s]*(?:\b(?:is|of|as|would\s+be)\b|[:=-])|(?:rate|give)\s+(?:it|this)(?:\s+an?)?)[^\w\]]*$",
    re.IGNORECASE,
)


class Judge(NamedTuple):
    """The judge: the model's name at its endpoint, and the contents of a request besides model and messages."""

    model: str
    options: dict


class Task(NamedTuple):
    """One judgment to make: of the answer of `turn` (1 or 2) to the question `id`, requested with `messages`."""

    id: str | int
    turn: int
    prompt: str  # the name of the judge's prompt
    messages: list[dict]


class Reading(NamedTuple):
    """The rating in a reply, or why it has none; `several` if it holds different numbers in the same brackets."""

    rating: float | None
    reason: str | None = None
    several: bool = False


def read_rating(reply: str, protocol: str = "ba-lora") -> Reading:
    """Return the rating in one reply; the rules are in the module docstring."""
    found = [pattern.findall(reply) for pattern in _PUBLISHED] if protocol == "fastchat" else _in_brackets(reply)
    numbers = [float(number) for number in found[0] or found[1]]
    if not numbers:
        return Reading(None, "no rating")
    several = len(set(numbers)) > 1
    rating = numbers[0 if protocol == "fastchat" else -1]
    if protocol != "fastchat" and not LOWEST <= rating <= HIGHEST:
        return Reading(None, "out of range", several)
    return Reading(rating, None, several)


def _in_brackets(reply: str) -> tuple[list[str], list[str]]:
    """Return the numbers in double brackets, and those in single ones that the reply calls a rating."""
    reply = re.sub(r"\\(?=[\[\]])", "", reply.replace(_EXAMPLE, ""))
    double = [match[1] for match in _DOUBLE.finditer(reply)]
    single = [match[1] for match in _SINGLE.finditer(reply) if _is_rating(reply, match)]
    return double, single


def _is_rating(reply: str, match: re.Match) -> bool:
    """Return True if a number in single brackets has a scale, follows a word like "Rating:", or is alone on its line."""
    before = reply[reply.rfind("\n", 0, match.start()) + 1 : match.start()]
    after = reply[match.end() :].partition("\n")[0]
    alone = not re.search(r"[\w\]]", before + after)
    return bool(match["scale"] or match["scale_behind"] or _CALLED.search(before[-60:]) or alone)


def read_replies(replies: Sequence[str], protocol: str = "ba-lora") -> Reading:
    """Return the first reading with a rating, else the last one."""
    readings = [read_rating(reply, protocol) for reply in replies]
    return next((reading for reading in readings if reading.rating is not None), readings[-1])


def make_task(prompts: dict[str, dict], question: dict, answers: Sequence[str], turn: int) -> Task:
    """Return the judgment of the last of `answers`, which are those of the turns up to `turn`.

    prompts: name → {"system_prompt", "prompt_template"}. question: {"id", "category", "turns", "reference"}. Raises UserError for a
    prompt with an unknown field.
    """
    name = PROMPTS[question["category"] in REFERENCED, turn]
    values = {"question": question["turns"][0], "answer": answers[0]}
    for number, (asked, answer) in enumerate(zip(question["turns"], answers, strict=False), 1):
        values |= {f"question_{number}": asked, f"answer_{number}": answer}
    values |= {f"ref_answer_{number}": text for number, text in enumerate(question["reference"] or [], 1)}
    try:
        text = prompts[name]["prompt_template"].format(**values)
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{field}}}" for field in values)
        raise UserError(f"judge prompt {name} has an unknown field ({error}); it may hold {known}") from None
    messages = [{"role": "system", "content": prompts[name]["system_prompt"]}, {"role": "user", "content": text}]
    return Task(question["id"], turn, name, messages)


def key_of(judge: Judge, task: Task) -> str:
    """Return the key of a judgment: a hash of judge, options and every word of the prompt, including the answer."""
    return digest([judge.model, judge.options, task.messages])


def connect(url: str | None, timeout: float, retries: int):
    """Return a client of the endpoint; it retries after HTTP 408, 409, 429, 5xx and lost connections, with growing delays.

    Raises UserError if the package openai is not installed, for an invalid address, and if there is neither an address nor a key.
    """
    try:
        from openai import OpenAI
    except ImportError:
        raise UserError(
            "a judge is asked with the package openai, which is not installed; pip install openai"
        ) from None
    url = url or os.environ.get("OPENAI_BASE_URL") or None
    key = os.environ.get("OPENAI_API_KEY")
    if url and not url.startswith(("http://", "https://")):
        raise UserError(f"--judge_url {url} does not begin with http:// or https://; write it as http://host:8000/v1")
    if not key and not url:
        raise UserError("OPENAI_API_KEY is not set; set it, or name the address of a judge without keys by --judge_url")
    return OpenAI(base_url=url, api_key=key or "none", timeout=timeout, max_retries=retries)


class Refused(Exception):
    """The server will not answer this one request."""


def ask_once(client, judge: Judge, messages: list[dict], first: bool = True) -> str:
    """Return one reply. Raises Refused for a request that the server rejects, UserError if the server does not answer."""
    import openai

    options = {name: value for name, value in judge.options.items() if value is not None}
    if not first and options.get("temperature") == 0:
        options["temperature"] = RETRY_TEMPERATURE
    place = redacted(f"judge {judge.model} at {client.base_url}")
    try:
        response = client.chat.completions.create(model=judge.model, messages=messages, extra_body=options)
    except openai.APIStatusError as error:
        if error.status_code in (400, 413, 422):
            raise Refused(f"{place} refused a request ({_short(error)})") from None
        remedy = {401: "check OPENAI_API_KEY", 403: "check OPENAI_API_KEY", 404: "check --judge and --judge_url"}
        remedy = remedy.get(error.status_code, "run again later; finished judgments are kept")
        raise UserError(f"{place} answers with HTTP {error.status_code} ({_short(error)}); {remedy}") from None
    except openai.APIConnectionError as error:
        raise UserError(
            f"{place} gives no answer ({_short(error)}); start it or correct --judge_url, then run again: finished judgments are kept"
        ) from None
    except ValueError:
        response = None
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list):
        raise UserError(
            f"{place} answers with something that is not a chat completion; --judge_url usually ends in /v1"
        )
    content = getattr(getattr(choices[0] if choices else None, "message", None), "content", None)
    return content if isinstance(content, str) else ""


def judge_all(
    tasks: Sequence[Task], judge: Judge, known: dict[str, dict], path: Path, *, client, protocol, attempts, concurrency
) -> tuple[dict[str, dict], dict[str, str]]:
    """Request the judgments that `known` (key → line) lacks, appending replies to `path` → (all of them, key → why refused).

    Raises UserError if the server fails; replies that arrived before are in the file.
    """
    missing = {key: task for task in tasks if (key := key_of(judge, task)) not in known}
    known, refused, failed = dict(known), {}, None
    if not missing:
        return known, refused
    stop = Event()  # replies under way are awaited, because they are paid for; no new request is sent

    def ask(task: Task) -> list[str]:
        if stop.is_set():
            return []
        try:
            return _ask(client, judge, task, protocol, attempts)
        except UserError:
            stop.set()
            raise

    path.parent.mkdir(parents=True, exist_ok=True)
    drop_torn_line(path)
    with (
        open(path, "a", encoding="utf-8") as file,
        ThreadPoolExecutor(concurrency) as pool,
        tqdm(total=len(missing), desc="judge", unit="answer", disable=None) as bar,
    ):
        futures = {pool.submit(ask, task): (key, task) for key, task in missing.items()}
        try:
            for future in as_completed(futures):
                key, task = futures[future]
                try:
                    if replies := future.result():
                        known[key] = _line(judge, task, key, replies)
                        file.write(json.dumps(known[key]) + "\n")
                        file.flush()
                except Refused as error:
                    refused[key] = str(error)
                except UserError as error:
                    failed = failed or error
                bar.update()
        finally:
            stop.set()
    if failed:
        raise failed
    return known, refused


def _ask(client, judge: Judge, task: Task, protocol: str, attempts: int) -> list[str]:
    replies: list[str] = []
    while len(replies) < attempts and (not replies or read_rating(replies[-1], protocol).rating is None):
        replies.append(ask_once(client, judge, task.messages, first=not replies))
    return replies


def _line(judge: Judge, task: Task, key: str, replies: list[str]) -> dict:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return checked_line(
        {
            "id": task.id,
            "turn": task.turn,
            "key": key,
            "judge": judge.model,
            "options": judge.options,
            "prompt": task.prompt,
            "replies": replies,
            "date": now,
        }
    )


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed run left unfinished."""
    if not path.is_file():
        return
    with open(path, "rb+") as file:
        content = file.read()
        if content and not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def read_judgments(paths: Iterable[Path]) -> dict[str, dict]:
    """Return key → line of those judgments.jsonl files that exist; an unfinished last line is skipped.

    Raises UserError naming the file and line of anything else that is not a judgment.
    """
    known = {}
    for path in paths:
        if not path.is_file():
            continue
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                record = unsealed(line, str(path))
                check_kinds(record, str(path), {"key": "a text", "judge": "a text", "replies": "a list of texts"})
                if not record["replies"] or not {"options", "date"} <= set(record):
                    raise ValueError
                known[record["key"]] = record
            except ValueError:  # DamagedFile is one
                raise UserError(
                    f"{path}, line {number}: not a judgment; remove the line, and it is requested again"
                ) from None
            check_line(record, f"{path}, line {number}")
    return known


def judge_of(known: dict[str, dict], path: Path) -> Judge:
    """Return the judge of all of `known`. Raises UserError if there is none, or more than one."""
    judges = {
        digest([line["judge"], line["options"]]): Judge(line["judge"], line["options"]) for line in known.values()
    }
    if len(judges) == 1:
        return next(iter(judges.values()))
    found = f"{path} has judgments of several judges" if judges else f"there are no judgments in {path}"
    raise UserError(f"--judge is missing and {found}; name the judge's model, and its address by --judge_url")


def _short(error: Exception) -> str:
    """Return the first line of an error's message."""
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, dict) else None
    lines = redacted(str(text or error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
