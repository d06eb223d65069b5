"""The position of the answer in a completion whose answer is one number; `eval.answers.spelling` reads the number itself.

Two protocols read a completion. "ba-lora" is the correct one; "upstream" repeats what the published code does, including its
flaws, for comparison with published numbers. See `extract_answer`.
"""

import math
import re
from fractions import Fraction

from ba_lora.errors import choose

from .spelling import NUMBER, numbers, unify, value_of

PROTOCOLS = {"ba-lora": "3", "upstream": "1"}  # name → version; a change in what is read raises the version

CLAIM = 300  # characters after a marker in which its number is searched

# Text that opens another question or turn: a line "Q2: …", "### Instruction:", "**Problem 3:** …", or "Question:" anywhere, or
# the turn markers of chat templates.
_NEW_QUESTION = re.compile(
    r"^[ \t#*>]*(?:question|q|problem|instruction|response|human|user)[ \t]*\d*[ \t]*\**[ \t]*:|(?-i:\bQuestion)[ \t]*\d*[ \t]*:"
    r"|<\|im_start\|>|\[INST\]|<start_of_turn>",
    re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"#{4,}")
_HEADING = re.compile(  # "#### 1. Cost", "#### **2)** Tax", "#### 3 - Total", "#### 1.2 Tips"
    r"^[ \t>]*(?P<hashes>#+)[ \t]*[*_(]*(?P<label>\d{1,2}(?:\.\d{1,2})*)"
    r"(?:[*_]*[.):][*_]*(?=[ \t]+\S)|[ \t]+[-:](?=[ \t]+\S)|(?<=\.\d)(?=[ \t]+[*_]*[A-Z]))",
    re.MULTILINE,
)
ANSWER_IS = re.compile(
    r"\b(?:(?:the|my|our)\s+(?:(?:final|correct)\s+)?|final\s+)answer\s+is\b"
    r"|^[ \t#>*_-]*final\s+answer[*_ \t]*(?:[:=]|$)",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER = re.compile(r"^[ \t#>*_-]*answer[*_ \t]*[:=]", re.IGNORECASE | re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{")
_LEAD = re.compile(r"(?:[\s:*$=`_]|\\[\[(])*")
# "x =" is not a word
_WORD_OR_DIGIT = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{2,}|[A-Za-z](?!\s*[=(]))|(?P<digit>[0-9])")
_UNIT_ONLY = re.compile(r"[^\w\n]*(?:[A-Za-z]+[^\w\n]+){0,3}[A-Za-z]*[^\w\n]*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:rs|re|rp|tk|kr|fr|k?sh|approx|appr|ca|abt|est|avg|nos?|max|min|incl|resp|viz|vs|mrs?|ms|dr|prof|st"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)|\b[a-z](?:\.[a-z])+)$",
    re.IGNORECASE,
)

# Equations, in which every number is written as 0
_OPERATOR = (
    r"(?:[+*/×÷·⋅]|(?<![A-Za-z])-(?![A-Za-z])|\\(?:times|cdot|div)(?![A-Za-z])"
    r"|(?<![A-Za-z])(?:x|plus|minus|times|of|divided\s+by|multiplied\s+by)(?![A-Za-z]))"
)
_EQUALS = re.compile(r"=|\bequals\b|\bis\s+equal\s+to\b")
_JOINED = re.compile(_OPERATOR + "|=")
_OPERATION = re.compile(rf"\W*0(?:\s*[A-Za-z]+(?:\s+[A-Za-z]+){{0,2}})?\s*{_OPERATOR}\W*0")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_CAUSES = {"because", "since", "as"}
_CONJUNCTIONS = _CAUSES | set("if when where while which who that given but or".split())


def all_numbers(text: str) -> list[Fraction]:
    """Return every number written in `text`, exactly, in order."""
    return [value for _, value in numbers(unify(text))]


def parse_number(text: str) -> Fraction | None:
    """Return the first number written in `text`, exactly; None if there is none."""
    return next(iter(all_numbers(text)), None)


def same_number(a: str, b: str) -> bool:
    """Return True if the texts `a` and `b` both hold a number, and the same one: "18.0" and "18", "1/2" and "0.5"."""
    first, second = parse_number(a), parse_number(b)
    return first is not None and first == second


def same_answer(answer: str, reference: str) -> bool:
    """Return True if an answer is the number of the reference, with or without a factor like "million".

    GSM8K's references leave units out, and to "How many million dollars …?" million is a unit: "60 million" equals "60" too.
    """
    found = NUMBER.search(unify(answer))
    bare = answer if found is None else found.group()[: -len(found["scale"] or "") or None]
    return same_number(answer, reference) or same_number(bare, reference)


def extract_answer(completion: str, protocol: str = "ba-lora") -> str | None:
    """Return the answer of a completion as text that `parse_number` reads, or None if it states none.

    "ba-lora": a model that was not stopped continues with a new question, so the completion is split at lines that open one
    ("Question:", "### Instruction:"), and the first part that states an answer is read. A part states its answer in "#### N",
    else in "The answer is N" or "Final answer: N" (any case, with or without a colon), else in a balanced \\boxed{N}, else in a line
    "Answer: N" with nothing but a unit behind the number; if there are several, the last one with a number counts, because a
    model may correct itself. A numbered heading ("#### 1. Cost") states nothing. The result of an equation counts. If no part
    states an answer: the last number of the first part that has a number.

    "upstream": the text after the last "The answer is: ", of which the first match of [-+]?\\d*[.,/]?\\d+ is rounded to
    an integer (halves to even). So "1,234,567" is 1234, "18.4" is 18, "1/2" is 0, and every other form has no answer.

    Raises UserError for another protocol.
    """
    choose("protocol", protocol, PROTOCOLS)
    if protocol == "upstream":
        return _extract_upstream(completion)
    parts = [part for part in split_questions(unify(completion)) if part.strip()]
    for read in (_stated, _last_number):
        for part in parts:
            if answer := read(part):
                return answer
    return None


def split_questions(text: str) -> list[str]:
    """Split `text` before each line or marker that opens another question."""
    starts = [match.start() for match in _NEW_QUESTION.finditer(text)]
    return [text[start:end] for start, end in zip([0, *starts], [*starts, len(text)], strict=True)]


def _last_number(text: str) -> str | None:
    for match in reversed(list(NUMBER.finditer(text))):
        if value_of(match) is not None:
            return match.group()
    return None


def _stated(text: str) -> str | None:
    """Return the answer that one part states, in the order of `extract_answer`; None if it states none."""
    hashes, phrases, boxes, labels = (
        [mark.end() for mark in marker.finditer(text)] for marker in (_HASHES, ANSWER_IS, _BOXED, _ANSWER)
    )
    headings = _headings(text) if hashes else ()
    hashes = [end for end in hashes if end not in headings]
    # A number that follows directly goes before one after words ("The answer is correct because 3 …"); "#### Step 1" is a heading.
    for ends, read, direct in (
        *((hashes, _statement, True), (phrases, _statement, True)),
        *((phrases, _claim, False), (boxes, _braced, False), (labels, _only_number, False)),
    ):
        for end in reversed(ends):
            statement = read(text, end)
            if direct and not _starts_with_number(statement):
                continue
            if found := numbers(_result(statement)):
                return found[0][0]
    return None


def _headings(text: str) -> set[int]:
    """Return where the hashes of numbered headings end. Headings count up from 1, and another number follows below them."""
    seen, ends = set(), set()
    last_digit = max(map(text.rfind, "0123456789"))
    for match in _HEADING.finditer(text):
        *above, number = map(int, match["label"].split("."))
        line_end = text.find("\n", match.end())
        if (number == 1 or (*above, number - 1) in seen) and -1 < line_end < last_digit:
            seen.add((*above, number))
            ends.add(match.end("hashes"))
    return ends


def _line(text: str, start: int) -> str:
    """Return the rest of the line at `start`, or the next line that is not empty, without marks around its content."""
    claim = text[start : start + CLAIM]
    return claim[_LEAD.match(claim).end() :].split("\n", 1)[0]


def _statement(text: str, start: int) -> str:
    """Return the sentence at `start`."""
    line = _line(text, start)
    for end in re.finditer(r"[.;?!]\s", line):
        if not (end[0][0] == "." and _ABBREVIATION.search(line, 0, end.start())):
            return line[: end.start()]
    return line


def _claim(text: str, start: int) -> str:
    """Return the box in the sentence at `start`, else the sentence: "The answer is 5 more than 3, that is \\boxed{8}"."""
    statement = _statement(text, start)
    box = _BOXED.search(statement)
    return _braced(statement, box.end()) if box else statement


def _only_number(text: str, start: int) -> str:
    """Return the line at `start` if it holds a number, at most a unit behind it, and nothing else; otherwise ""."""
    line = _line(text, start)
    number = NUMBER.match(line)
    return line if number and _UNIT_ONLY.fullmatch(line, number.end()) else ""


def _starts_with_number(statement: str) -> bool:
    """Return True if no word stands before the first number."""
    first = _WORD_OR_DIGIT.search(statement)
    return bool(first and first["digit"])


def _braced(text: str, start: int) -> str:
    """Return the content of the braces opened just before `start`; "" if they are not closed."""
    depth = 1
    for match in re.compile("[{}]").finditer(text, start, start + CLAIM):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return _signed(text[start : match.start()])
    return ""


def _signed(text: str) -> str:
    """Attach a minus at the front to its number: nothing stands before it from which it could subtract."""
    return re.sub(r"^\s*-\s+(?=[$\\.\d])", "-", text)


def _result(text: str) -> str:
    """Return the side of an equation that holds its result: the last one, or the one before if the last is an operation.

    "3 apples + 5 apples = 8 apples" → "8 apples"; "18 = 6 * 3" → "18"; "so he has 5 - 3 = 2 left" → "2 left". A text whose number is
    given before the equation, or that argues ("because"), is returned unchanged.
    """
    sides = _EQUALS.split(text)
    for count in range(len(sides) - 1, 0, -1):
        if _is_left_side("=".join(sides[:count])):
            result, before = "=".join(sides[count:]), sides[count - 1]
            swap = _is_operation(result) and numbers(before) and not _is_operation(before)
            return _signed(before if swap else result)
    argues = not _CAUSES.isdisjoint(word.lower() for word in _WORD.findall(text))
    return text if argues or _starts_with_number(text) else sides[-1]


def _is_operation(text: str) -> bool:
    """Return True if a text begins with two numbers and an operator between them."""
    return bool(_OPERATION.match(NUMBER.sub("0", text)))


def _is_left_side(text: str) -> bool:
    """Return True if the text before a "=" belongs to an equation: a name, or numbers with units that operators join."""
    bare = NUMBER.sub("0", text)
    words = {word.lower() for word in _WORD.findall(bare)}
    if not words:
        return True
    gaps = bare.split("0")
    between = gaps[1:-1] if len(gaps) != 2 else ["".join(gaps)]  # an operator joins a single number to a name
    return not words & _CONJUNCTIONS and all(_JOINED.search(gap) for gap in between)


def _extract_upstream(completion: str) -> str | None:
    _, phrase, tail = completion.rpartition("The answer is: ")
    match = re.search(r"[-+]?\d*[.,/]?\d+", tail)
    if not phrase or not match:
        return None
    top, slash, bottom = match.group().replace(",", "").partition("/")
    if top in ("", "+", "-"):
        return None
    value = float(top)
    if slash and bottom != "0":  # a denominator of 0 is ignored there
        value = value / float(bottom) if float(bottom) else math.inf
    return None if math.isinf(value) else str(round(value))
