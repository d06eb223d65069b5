"""Answers written in LaTeX: where a completion states one, and whether two are the same, as strings and as values.

There are two judges, each with its own weakness. `same_string` is the classical one of the MATH paper (Hendrycks et al. 2021,
arXiv 2103.03874): a fixed list of rewritings, then string equality; to it "\\frac{2}{4}" and "\\frac{1}{2}" differ. `same_values`
asks math-verify, which computes: to it they are equal, and so are "10\\%" and "10". It has a verdict only if both answers were
read completely (`eval.answers.formulas`).

Completions are hostile: "9^{9^{9^9}}" never finishes. So math-verify runs in its own process (`eval.answers.latex_worker`), with a
time limit per pair; a process that does not answer in time is killed, and the pair has no verdict.
"""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from ba_lora.errors import UserError, choose

from ..harness.workers import ask
from .numeric import ANSWER_IS, split_questions

PROTOCOLS = {"ba-lora": "3", "upstream": "1"}  # name → version; a change in what is read raises the version

CLAIM = 2000  # characters after a marker within which its answer must end
SECONDS = 10  # for one comparison
VERSION = "0.9.0"  # of math-verify: `eval.answers.formulas` replaces a function inside it

_BOXED = re.compile(r"\\(?:boxed|fbox)(?:\s*(?P<brace>\{)|\s+|(?=\d|\\[A-Za-z]))")
_TO_DELIMITER = re.compile(r"[^$\n]{1,2000}?(?=\$|\\\)|\\\])")
_ONE_WORD = re.compile(r"[^\s${}]*[\d\\][^\s${}]*(?=[\s$}]|\Z)")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_TEXT = re.compile(r"\\text\w*\s*\{[^{}]*\}")
_PLACEHOLDER = re.compile(  # "\\boxed{...}", "\\boxed{\\text{your answer}}"
    r"(?:[\s.…_?<>\[\]{}]|\\(?:text\w*|mathrm|[lcv]?dots|square)(?![A-Za-z])|(?i:\b(?:your|the|my|final|answer|result|here)\b))*"
)
_MATH = re.compile(
    r"\$\$(?P<display>(?:[^$]|\\\$)+)\$\$|\\\[(?P<bracket>.+?)\\\]|\\\((?P<paren>.+?)\\\)"
    r"|\$(?!\s)(?P<inline>(?:\\.|[^$\\\n])+)(?<!\s)\$(?!\d)",
    re.DOTALL,
)
_DOLLAR = re.compile(r"(?<!\\)\$")
_GOES_ON = re.compile(r"\s*(?:,|and\b|or\b)\s*(?:and\b|or\b)?\s*(?:\$|\\\(|\\\[|-?\d)")  # "$3$ and $4$" is one answer
_NESTING = re.compile(r"\\begin\b|\\end\b|\\[{}]|[{}]|\n|[.!?](?=\s|$)")
_TRAILING_WORDS = re.compile(r"(?<=[\d)}\]%])(?:\s+[A-Za-z]+)*\s+[A-Za-z]{3,}[\s.]*$")  # "18 dollars a day" is 18
_WORDS = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}\s+)+[A-Za-z]+")


def extract_latex(completion: str, protocol: str = "ba-lora") -> str | None:
    """Return the answer that a completion states, as LaTeX without its dollars, or None if it states none.

    "ba-lora": as in `eval.answers.numeric`, the completion is split at lines that open another question, and the first part that
    states an answer is read: its last balanced \\boxed{} with more than a placeholder in it, else its last "The answer is" or "Final
    answer:" (up to the end of the formula, else of the sentence). Text that was cut off inside braces is not an answer.

    "upstream": the text after the last "The answer is: " up to the first period that ends a line, without one final period.

    Raises UserError for another protocol.
    """
    choose("protocol", protocol, PROTOCOLS)
    if protocol == "upstream":
        _, phrase, tail = completion.rpartition("The answer is: ")
        return tail.split(".\n")[0].strip().removesuffix(".").strip() if phrase else None
    for part in split_questions(completion):
        if answer := last_boxed(part) or _last_claim(part):
            return answer
    return None


def read_reference(reference: str, protocol: str = "ba-lora") -> str | None:
    """Return the answer of a solution: in its last \\boxed{}, or the whole text if there is none (a bare answer).

    Returns None if the box is not closed or is empty; "upstream" reads only "\\boxed{", not \\fbox{} or "\\boxed 5".
    """
    if "\\boxed" not in reference and "\\fbox" not in reference:
        return reference.strip().strip("$").strip() or None
    if protocol != "upstream":
        return last_boxed(reference)
    start = reference.rfind("\\boxed{")
    return (
        _braced(reference, start + len("\\boxed{"), _closing_braces(reference))
        if start == reference.rfind("\\boxed") != -1
        else None
    )


def last_boxed(text: str) -> str | None:
    """Return the content of the last \\boxed{} or \\fbox{} that is closed and holds an answer, or of "\\boxed 5"; else None.

    "\\boxed{...}" and "\\boxed" in a sentence about the form hold none.
    """
    boxes = list(_BOXED.finditer(text))
    closing = _closing_braces(text) if boxes else {}
    for match in reversed(boxes):
        inside = _braced(text, match.end(), closing) if match["brace"] else _unbraced(text, match.end())
        if inside and not _PLACEHOLDER.fullmatch(inside):
            return inside.strip()
    return None


def _unbraced(text: str, start: int) -> str | None:
    """Return what follows a \\boxed without braces: the rest of the formula, or one word like a number; None if it is prose."""
    found = _TO_DELIMITER.match(text, start)
    if not found or _PROSE.search(_TEXT.sub("", found[0])):
        found = _ONE_WORD.match(text, start)
    return found[0].rstrip(" .,;:") if found else None


def _closing_braces(text: str) -> dict[int, int]:
    """Return where each pair of braces closes: position after the opening brace → position of the closing one."""
    opened, closing = [], {}
    for match in re.finditer("[{}]", text):
        if match[0] == "{":
            opened.append(match.end())
        elif opened:
            closing[opened.pop()] = match.start()
    return closing


def _braced(text: str, start: int, closing: dict[int, int]) -> str | None:
    """Return the content of the braces opened just before `start`; None if they are not closed within CLAIM characters."""
    end = closing.get(start)
    return text[start:end] if end is not None and end < start + CLAIM else None


def _last_claim(text: str) -> str | None:
    for match in reversed(list(ANSWER_IS.finditer(text))):
        if claim := _claim(text[match.end() : match.end() + CLAIM].lstrip(" \t\r\n:*=_")):
            return claim
    return None


def _claim(text: str) -> str | None:
    """Return the answer at the start of `text`: a formula between its delimiters, else the sentence; None if it is cut off."""
    formula = _MATH.match(text)
    if formula and not _GOES_ON.match(text, formula.end()):
        answer = formula[formula.lastgroup]
    else:
        answer = _sentence(text)
        if answer and len(_DOLLAR.findall(answer)) == 1:  # "$18 a day": money
            answer = _DOLLAR.sub("", answer)
    answer = (answer or "").strip(" \t\r\n*,;:").removesuffix(".")
    return _TRAILING_WORDS.sub("", answer).strip() or None


def _sentence(text: str) -> str | None:
    """Return the text up to the first line end or full stop outside braces and environments; None if these are not closed."""
    depth = 0
    for match in _NESTING.finditer(text):
        token = match.group()
        if token in ("{", "\\begin"):
            depth += 1
        elif token in ("}", "\\end"):
            depth -= 1
        elif depth <= 0 and token not in ("\\{", "\\}"):
            return text[: match.start()]
    return text if depth == 0 else None


# As strings. The order matters: "\\tfrac" and "\\dfrac" become "\\frac" before fractions are rewritten.
_REWRITINGS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
_PERIOD = re.compile(r"(?<!\.)\.\s*$")
_UNIT = "\\text{ "  # a unit, as written in MATH's solutions; everything after it is removed


def same_string(reference: str, answer: str) -> bool:
    """Return True if two answers are one string after the classical normalisation, or unchanged if that fails on either."""
    try:
        return normalise_string(reference) == normalise_string(answer)
    except ValueError:
        return reference == answer


def same_text(reference: str, answer: str) -> bool:
    """Like `same_string`, but units count, and a final period does not: nothing else is removed from answers of unknown value."""
    reference, answer = (_PERIOD.sub("", text).replace(_UNIT, "\\text{") for text in (reference, answer))
    return same_string(reference, answer)


def normalise_string(text: str) -> str:
    """Apply the classical normalisation of MATH's answers, as in the published code. Raises ValueError if that fails ("x/2").

    Removed: white space, \\left and \\right, degrees, dollar and percent signs, a unit in \\text{ }, a short "x =" at the
    front. Rewritten to one form: fractions ("\\dfrac12", "1/2", and 0.5 but no other decimal), roots ("\\sqrt2") and ".5".
    """
    for written, instead in _REWRITINGS:
        text = text.replace(written, instead)
    if text.count(_UNIT) > 1:
        raise ValueError("two units")
    text = text.split(_UNIT)[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    text = _brace_fractions(_brace_roots(text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    if text.count("/") != 1:
        return text
    top, bottom = map(int, text.split("/"))  # ValueError if they are not integers, as in the published code
    return f"\\frac{{{top}}}{{{bottom}}}" if text == f"{top}/{bottom}" else text


def _brace_roots(text: str) -> str:
    """ "\\sqrt2x" → "\\sqrt{2}x": the character after a root is its radicand, even a blank."""
    first, *others = text.split("\\sqrt")
    if "" in others:
        raise ValueError("a root of nothing")
    return "".join([first, *("\\sqrt" + (o if o[0] == "{" else "{" + o[0] + "}" + o[1:]) for o in others)])


def _brace_fractions(text: str) -> str:
    """ "\\frac12" → "\\frac{1}{2}" and "\\frac1{23}" → "\\frac{1}{23}"; unchanged if only one character follows."""
    first, *others = text.split("\\frac")
    braced = [first]
    for other in others:
        if not other:
            raise ValueError("a fraction of nothing")
        if other[0] != "{" and len(other) < 2:
            return text
        if other[0] != "{":
            other = "{" + other[0] + "}" + (other[1:] if other[1] == "{" else "{" + other[1] + "}" + other[2:])
        braced.append("\\frac" + other)
    return "".join(braced)


# As values.


def as_formula(answer: str) -> str:
    """Return an answer as math-verify finds it: between dollars, except words with a number, which stay a sentence."""
    prose = _WORDS.search(re.sub(r"\\text\w*\s*\{[^{}]*\}", "", answer)) and re.search(r"\d", answer)
    return answer if prose or _DOLLAR.search(answer) else f"${answer}$"


def same_values(
    pairs: Sequence[tuple[str, str]], seconds: float = SECONDS, workers: int | None = None, whole: bool = True
) -> list[bool | None]:
    """Return math-verify's verdict on each (reference, answer), texts with their formulas between dollars; in order.

    A verdict is None if one of the two could not be read completely (`eval.answers.formulas`), if a pair took more than `seconds`,
    or if its process died. Without `whole`, math-verify reads what it finds, as in other evaluations. Duplicate pairs are asked
    once. Works in any thread. Raises UserError if math-verify is not installed, or its version is not VERSION.
    """
    try:
        found = version("math-verify")
    except PackageNotFoundError:
        raise UserError(
            "math-verify is not installed, and MATH is scored with it; pip install -r requirements.txt"
        ) from None
    if found != VERSION:
        raise UserError(
            f"math-verify {found} is installed, and MATH needs {VERSION}; pip install math-verify=={VERSION}"
        )
    unique = list(dict.fromkeys(pairs))
    replies = ask("eval.answers.latex_worker", [(*pair, whole) for pair in unique], seconds, workers)
    verdicts = {pair: reply[0] if reply else None for pair, reply in zip(unique, replies, strict=True)}
    return [verdicts[pair] for pair in pairs]
