"""Numbers as people and models write them, each read as an exact Fraction.

`unify` rewrites a text so that each number has one of a few spellings; `NUMBER` matches these, and `value_of` computes a match.
The decisions, each with a test:

- Thousands are grouped by a comma, an apostrophe, an underscore, LaTeX's small spaces, a thin or a non-breaking blank: "1'234'567",
  "1\\,234", "1_000"; in India also as "1,00,000". A plain blank groups nothing. A comma before anything else ends the number, so "1,5"
  reads as 1.
- Currency, percent sign and units are dropped: "$5", "50%", "12 apples" are 5, 50, 12, as GSM8K's references are written. A dozen is a
  unit too. "2.5 million", "3 lakh" and "$50k" are multiplied.
- "1/2", "\\frac{1}{2}", "½" are a half; "1 1/2", "1 and 1/2" and "1\\frac{1}{2}" are three halves; "1/0" is not a number.
- "1e3", "10^3" and "1 \\times 10^{3}" are 1000 (at most two digits of exponent, so that an answer cannot ask for a gigabyte of zeros).
- A minus is a sign only if it touches its number and nothing before it: "10-7" holds 10 and 7, "- 3" holds 3. Every dash up to the
  length of an en dash is a minus.
- The subscript of a name is not a number: "x_1".
"""

import re
import unicodedata
from fractions import Fraction

MAX_DIGITS = 100  # endlessly repeated digits are not a number
SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
} | {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}

_PLAIN = r"(?:(?:\d{1,2}(?:,\d{2})+,\d{3}(?!\d)|\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![A-Za-z])\.\d+)"
_EXPONENT = r"(?:[eE][-+]?\d{1,2}(?!\w))?"
_SCALE = r"(?:[ \t]+|-)(?i:hundred|thousand|lakh|million|crore|billion|trillion)s?(?![\w-])"
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}.])[-+])?\$?(?P<inner>(?<=\$)-)?"
    r"(?:(?P<mixed>\d+)(?:[ \t]+and[ \t]+|[ \t]+|(?=\\frac))"
    r"(?:(?P<mtop>\d+)/(?P<mbottom>\d+)|\\frac\{(?P<mftop>\d+)\}\{(?P<mfbottom>\d+)\})"
    rf"|\\frac\{{(?P<ftop>-?{_PLAIN}{_EXPONENT})\}}\{{(?P<fbottom>-?{_PLAIN}{_EXPONENT})\}}"
    rf"|(?P<top>{_PLAIN}{_EXPONENT})(?:/(?P<bottom>-?\d+(?:\.\d+)?))?)"
    rf"(?P<scale>(?:{_SCALE})+|(?:[kKMB]|[mb]n)(?!\w))?",
    re.ASCII,
)
_DIGIT = re.compile("[0-9]")

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SEPARATOR = "\\{,\\}|,?\\\\[,;: ]|[~'\u2019_\u00a0\u2007\u2009\u200a\u202f]"
_GROUPED = re.compile(rf"(?<![\d.,])(\d{{1,3}})({_SEPARATOR})\d{{3}}(?:\2\d{{3}})*(?!\d)", re.ASCII)
_ARGUMENT = rf"\s*(?:\{{\s*\$?(-?{_PLAIN}{_EXPONENT})\s*\}}|(\d))"
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|mbox)\s*\{([^{}]*)\}")
_REWRITINGS = (  # in this order
    (re.compile("(?<=10)[⁺⁻]?[⁰¹²³⁴-⁹]+"), lambda found: "^" + unicodedata.normalize("NFKC", found[0])),
    (re.compile("[\u2010-\u2013\u2212\ufe63]"), "-"),
    (re.compile("[£¥\u20a0-\u20cf]"), "$"),  # signs of currencies
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\\!"), ""),
    (_TEXT, lambda found: f" {found[1]}" if found[1][:1].isalpha() else found[1]),
    (_GROUPED, lambda found: found[0].replace(found[2], ",")),
    (re.compile("(?<!\\\\)\\\\[,;: ]|\\\\q?quad(?![A-Za-z])|[~\u00a0\u2007\u2009\u200a\u202f]"), " "),
    (re.compile(r"\{([-+])\}"), r"\1"),
    (re.compile(r"(?<=[A-Za-z])_(?:\{[^{}]*\}|\d+)"), ""),
    (re.compile(r"(?<![\d.,^])10\^(?:\{\s*([-+]?\d{1,2})\s*\}|([-+]?\d{1,2})(?!\d))"), r"1e\1\2 "),
    (re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|[×x*·⋅])\s*1(?=e[-+]?\d{1,2} )"), ""),
    (
        re.compile(rf"\\[dtc]?frac(?![A-Za-z]){_ARGUMENT}{_ARGUMENT}", re.ASCII),
        lambda found: f"\\frac{{{found[1] or found[2]}}}{{{found[3] or found[4]}}}",
    ),
    (re.compile("(?<=\\d)[ \t]*(?=[¼-¾⅐-⅞])"), " "),
    (re.compile("[¼-¾⅐-⅞]"), lambda found: unicodedata.normalize("NFKC", found[0])),
    (re.compile("(?<=\\d) ?[/\u2044] ?(?=-?\\d)"), "/"),
)


def unify(text: str) -> str:
    """Rewrite each number to a spelling that NUMBER matches, and drop \\text around words."""
    text = text.translate(_FULL_WIDTH)
    for written, instead in _REWRITINGS:
        text = written.sub(instead, text)
    return text


def value_of(match: re.Match) -> Fraction | None:
    """Return the value of a match of NUMBER; None for a zero denominator or an absurd length."""
    part = match.groupdict()
    if len(match.group()) > MAX_DIGITS:
        return None
    top, bottom = (
        _fraction(next(filter(None, (part[name] for name in names)), "1"))
        for names in (("mtop", "mftop", "ftop", "top"), ("mbottom", "mfbottom", "fbottom", "bottom"))
    )
    if not bottom:
        return None
    value = (Fraction(part["mixed"] or 0) + top / bottom) * _scale(part["scale"] or "")
    return -value if (part["sign"] == "-") != (part["inner"] == "-") else value


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _scale(words: str) -> int:
    """Return the product of the words after a number: "hundred thousand" → 100,000; 1 if there is none."""
    product = 1
    for word in words.replace("-", " ").split():
        word = word.lower().removesuffix("s") if len(word) > 2 else word
        product *= SCALES[word]
    return product


def numbers(text: str) -> list[tuple[str, Fraction]]:
    """Return every number in a unified text as (text, value), in order."""
    if not _DIGIT.search(text):
        return []
    found = [(match.group(), value_of(match)) for match in NUMBER.finditer(text)]
    return [(written, value) for written, value in found if value is not None]
