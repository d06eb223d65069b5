"""Numbers as people and models write them, and the position of the answer in a completion.

`parse_number` is exact: it returns a Fraction, so 18, "18.0", "18." and "36/2" are one number, and rounding as in 0.1 + 0.2 does
not occur. Its decisions, each with a test:

- a comma groups thousands ("1,234,567"); before anything but three digits it ends the number, so "1,5" reads as 1;
- currency, percent sign and units are dropped: "$5", "50%", "12 apples" are 5, 50, 12, as GSM8K's references are written;
- "1/2", "\\frac{1}{2}", "½" are a half; "1 1/2", "1 and 1/2" and "1\\frac{1}{2}" are three halves; "1/0" is not a number;
- "1e3" is 1000 (at most two digits of exponent, so that an answer cannot ask for a gigabyte of zeros);
- a minus is a sign only if it touches its number and nothing before it: "10-7" holds 10 and 7, "- 3" holds 3.

Two protocols read a completion. "ba-lora" is the correct one; "upstream" repeats what the published code does, including its
flaws, for comparison with published numbers. See `extract_answer`.
"""

import math
import re
import unicodedata
from fractions import Fraction

from ba_lora.errors import choose

PROTOCOLS = {"ba-lora": "2", "upstream": "1"}  # name → version; a change in what is read raises the version

MAX_DIGITS = 100  # endlessly repeated digits are not a number
CLAIM = 300  # characters after a marker in which its number is searched

_UNSIGNED = r"""(?:
    (?P<mixed>\d+)(?:[ \t]+and[ \t]+|[ \t]+|(?=\\frac)) (?: (?P<mn>\d+)/(?P<md>\d+) | \\frac\{(?P<mfn>\d+)\}\{(?P<mfd>\d+)\} )
  | \\frac\{(?P<fn>-?\d+)\}\{(?P<fd>\d+)\}
  | (?P<num> (?:\d{1,3}(?:,\d{3})+(?!\d)|\d+) (?:\.\d+)? | \.\d+ ) (?P<exp>[eE][-+]?\d{1,2}(?!\w))? (?:/(?P<den>\d+(?:\.\d+)?))?
)"""
_NUMBER = re.compile(r"(?P<sign>(?<![\w)\]}.])[-+])?\$?(?P<inner>(?<=\$)-)?" + _UNSIGNED, re.VERBOSE | re.ASCII)

# Text that opens another question or turn: a line "Q2: …", "### Instruction:", "**Problem 3:** …", or "Question:" anywhere, or
# the turn markers of chat templates.
_NEW_QUESTION = re.compile(
    r"^[ \t#*>]*(?:question|q|problem|instruction|response|human|user)[ \t]*\d*[ \t]*\**[ \t]*:|(?-i:\bQuestion)[ \t]*\d*[ \t]*:"
    r"|<\|im_start\|>|\[INST\]|<start_of_turn>",
    re.IGNORECASE | re.MULTILINE,
)
_HASHES = re.compile(r"####")
_ANSWER_IS = re.compile(r"\bthe\s+(?:final\s+)?answer\s+is\b", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{")
_EQUATION = re.compile(r"^(?:[^A-Za-z\n\\]|\\[A-Za-z]+|\b[A-Za-z]\b)*=")  # "3 + 4 =", "x =": the number follows it
_DIGIT = re.compile("[0-9]")
_NO_WORDS = re.compile(r"(?:[^A-Za-z0-9\n\\]|\\(?:boxed|text|textbf|mathbf|[dt]?frac(?!\w))?)*")


def _normalise(text: str) -> str:
    """Unify spellings: minus signs, spaces, LaTeX's thousands and fractions, ½."""
    text = re.sub("[\u2012\u2013\u2212\ufe63\uff0d]", "-", text)
    text = re.sub("[€£¥]", "$", text)
    text = re.sub(r"\\([$%])", r"\1", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\!,?)(?=\d{3})", ",", text)
    text = re.sub("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3}(?!\\d))", ",", text)
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda mark: " " + unicodedata.normalize("NFKC", mark.group()).replace("⁄", "/"), text)
    return re.sub(r"(?<=\d) ?/ ?(?=\d)", "/", text)


def _value(match: re.Match) -> Fraction | None:
    """Return the value of a match of _NUMBER; None for a zero denominator or an absurd length."""
    part = match.groupdict()
    if len(match.group()) > MAX_DIGITS:
        return None
    whole = Fraction(part["mixed"] or 0)
    if part["num"]:
        top, bottom = Fraction(part["num"].replace(",", "") + (part["exp"] or "")), Fraction(part["den"] or 1)
    else:
        top = Fraction(part["mn"] or part["mfn"] or part["fn"])
        bottom = Fraction(part["md"] or part["mfd"] or part["fd"])
    if not bottom:
        return None
    value = whole + top / bottom
    return -value if (part["sign"] == "-") != (part["inner"] == "-") else value


def _numbers(text: str) -> list[tuple[str, Fraction]]:
    """Return every number in a normalised text as (text, value), in order."""
    if not _DIGIT.search(text):
        return []
    found = [(match.group(), _value(match)) for match in _NUMBER.finditer(text)]
    return [(written, value) for written, value in found if value is not None]


def all_numbers(text: str) -> list[Fraction]:
    """Return every number written in `text`, exactly, in order."""
    return [value for _, value in _numbers(_normalise(text))]


def parse_number(text: str) -> Fraction | None:
    """Return the first number written in `text`, exactly; None if there is none."""
    found = _numbers(_normalise(text))
    return found[0][1] if found else None


def same_number(a: str, b: str) -> bool:
    """Return True if the texts `a` and `b` both hold a number, and the same one: "18.0" and "18", "1/2" and "0.5"."""
    first, second = parse_number(a), parse_number(b)
    return first is not None and first == second


def extract_answer(completion: str, protocol: str = "ba-lora") -> str | None:
    """Return the answer of a completion as text that `parse_number` reads, or None if it states none.

    "ba-lora": a model that was not stopped continues with a new question, so the completion is split at lines that open one
    ("Question:", "### Instruction:"), and the first part that states an answer is read. A part states its answer in "#### N",
    else in "The answer is N" (any case, with or without a colon), else in a balanced \\boxed{N}; if there are several, the last
    one with a number counts, because a model may correct itself. If no part states one: the last number of the first part that
    has a number.

    "upstream": the text after the last "The answer is: ", of which the first match of [-+]?\\d*[.,/]?\\d+ is rounded to
    an integer (halves to even). So "1,234,567" is 1234, "18.4" is 18, "1/2" is 0, and every other form has no answer.

    Raises UserError for another protocol.
    """
    choose("protocol", protocol, PROTOCOLS)
    if protocol == "upstream":
        return _extract_upstream(completion)
    parts = [part for part in split_questions(_normalise(completion)) if part.strip()]
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
    for match in reversed(list(_NUMBER.finditer(text))):
        if _value(match) is not None:
            return match.group()
    return None


def _stated(text: str) -> str | None:
    """Return the answer of one part: "####", else "The answer is", else \\boxed{}; in each case the last one with a number."""
    hashes, phrases, boxes = (list(mark.finditer(text)) for mark in (_HASHES, _ANSWER_IS, _BOXED))
    # A number that follows directly goes before one after words ("The answer is correct because 3 …"); "#### Step 1" is a heading.
    for marks, read, direct in (
        *((hashes, _statement, True), (phrases, _statement, True)),
        *((phrases, _statement, False), (boxes, _braced, False)),
    ):
        for mark in reversed(marks):
            statement = read(text, mark.end())
            found = _numbers(statement)
            if found and not (direct and not _starts_with_number(statement)):
                return found[0][0]
    return None


def _statement(text: str, start: int) -> str:
    """Return the statement at `start`: the rest of the line or of the next nonempty one, after the last "=" of an equation."""
    lines = text[start : start + CLAIM].lstrip(" \t\r\n:*$").split("\n", 1)
    sentence = re.split(r"[.;?!]\s", lines[0], maxsplit=1)[0]
    return _EQUATION.sub("", sentence)


def _starts_with_number(statement: str) -> bool:
    end = _NO_WORDS.match(statement).end()
    return statement[end : end + 1].isdigit()


def _braced(text: str, start: int) -> str:
    """Return the content of the braces opened just before `start`; "" if they are not closed."""
    depth = 1
    for match in re.compile("[{}]").finditer(text, start, start + CLAIM):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return _EQUATION.sub("", text[start : match.start()])
    return ""


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
