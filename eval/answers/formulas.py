"""Reads an answer in LaTeX as one value, completely or not at all, and compares two values.

math-verify's own extraction takes what it can parse: of "3+\\foo{x}" the 3, of "1-\\frac{1}{\\mathrm{e}}" the 1. Here its parser gets
the whole answer, after simple rules have removed parts without a value: delimiters, space, a unit at the end, the period of a
sentence. If the parser does not consume all of the rest, the answer is `Unread`.

Its comparison treats any two exact values as equal if they differ by less than 2^-54, and any two decimals if they agree in six
places. Here exact values are compared with a thousand digits, and decimals also by relative size. It treats i as a variable;
here i^2 is -1.

Runs only in a worker (`eval.answers.latex_worker`): a hostile answer may take any amount of time.
"""

import re
import unicodedata
from contextlib import contextmanager

import sympy
from latex2sympy2_extended.latex2sympy2 import latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from latex2sympy2_extended.math_normalization import units as UNITS
from math_verify import grader, verify

from .numeric import all_numbers

DIGITS = 1000  # for the difference of exact values
CLOSE = 2e-4  # relative difference between a decimal and its exact value, in addition to math-verify's six places
APPROXIMATE = 0.01  # relative difference of the two sides of "\\approx"

_CLEANUP = NormalizationConfig(units=False, malformed_operators=False, boxed="none")
_FORMULA = re.compile(
    r"(?<!\\)\$\$(.+?)(?<!\\)\$\$|(?<!\\)\$((?:\\.|[^$\\])+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL
)
# separators between the formulas of one answer
_BETWEEN = re.compile(r"(?:[\s,;.]|\band\b|\bor\b)*", re.IGNORECASE)
_CHANGES_MEANING = re.compile(
    r"\b(?:not?|never|none|neither|nor|or|and|if|when|where|for|mod|modulo|base|to|from|between|than|less|more|fewer|greater|least"
    r"|most|over|under|above|below|up|about|approximately|roughly|plus|minus|times|half|halves|twice|double|hundred|thousand|"
    r"[mbtr]+illion|dozen|pi|infinity|inf|squared|cubed|factorial|(?:third|fourth|(?:fif|six|seven|eigh|nin|ten|hundred|thousand)th)s"
    r"|sqrt|ln|log|exp|sin|cos|tan)\b",
    re.IGNORECASE,
)
_LEFT_OUT = re.compile(r"\\[lc]?dots(?![A-Za-z])|\\dots[cbmio](?![A-Za-z])|\\vdots|\\ddots|\.\.\.|…")
_SIGNS = {ord(sign): "-" for sign in "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"} | {
    ord(sign): rf"\{name} "
    for sign, name in zip(
        "×·÷π∞≤≥≠≈∪∩∅±", "times cdot div pi infty le ge neq approx cup cap emptyset pm".split(), strict=True
    )
}
_FINAL_PERIOD = re.compile(r"(?<!\.)(?<!\\right)\.((?:\s|~|\\[,;: !])*\}?)\s*$")  # also inside a last \\text{}
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_TYPED = (  # characters in place of commands; the digits of exponents, indices and fractions
    (
        re.compile(r"([√∛∜])\s*(?:(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z]))|(?=[({\\]))"),
        lambda found: _ROOTS[found[1]] + (f"{{{found[2]}}}" if found[2] else ""),
    ),
    (re.compile("[¼-¾⅐-⅞]"), lambda found: r"\frac{{{}}}{{{}}}".format(*_digits(found[0]).split("\u2044"))),
    (re.compile(r"(?<=[\w)}\]])[⁺⁻]?[⁰¹²³⁴-⁹ⁿ]+"), lambda found: f"^{{{_digits(found[0])}}}"),
    (re.compile(r"(?<=[\w)}\]])[₀-₉]+"), lambda found: f"_{{{_digits(found[0])}}}"),
    (re.compile(r"\{([-+])\}"), r"\1"),
)
_SYNONYMS = (  # commands that the parser does not know
    (re.compile(r"\\[bB]igg?[lrm]?(?![A-Za-z])"), ""),
    (re.compile(r"\\bigcup(?![A-Za-z])"), r"\\cup"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm)\s*\]"), r"\\\\"),  # space between rows
    (re.compile(r"\\\\\s*$"), ""),
)
_PRIME = re.compile(r"(?<!\\)['\"′″]|\\prime")  # the parser drops primes
_SPACE = re.compile(
    r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick)?space(?![A-Za-z])|~|[\u00a0\u2009\u202f]|\n"
)
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,?\\!,?|,\\,|\\,|\\ |~|[ '\u2019\u00a0\u2009\u202f])\d{3})+(?!\d)")
_MIXED = re.compile(r"(?<![\w.^/\\])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.^/])")  # "1 1/2"
_TWO_NUMBERS = re.compile(r"(?<![\w.^\\])\d[\d.]*\s+[\d.]|\.\d*\.")  # the parser adds or multiplies them
_REPEATING = re.compile(r"(?<![\d.])(\d{0,50})\.(\d{0,50})\s*\\(?:overline|bar)\s*(?:\{\s*(\d{1,50})\s*\}|(\d))")
_BASE = re.compile(
    r"(?<![\w}])(\()?([0-9A-F]*\d[0-9A-F]*)(?(1)\))\s*_\s*(\d|\{[^{}]*(?:\{[^{}]*\})?[^{}]*\}|\\(?:text|mathrm)\s*\{[^{}]*\})"
)
_BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
# the parser drops the subscript of a number, and the T of a transpose if there is no matrix
_SUBSCRIPT = re.compile(r"[\d)]\s*_")
_TRANSPOSE = re.compile(
    r"\^\s*(?:T(?![A-Za-z])|\{\s*(?:T|\\(?:text|mathrm)\s*\{\s*T\s*\})\s*\}|\\(?:text|mathrm)\s*\{\s*T\s*\})"
)
_ORDINAL = re.compile(r"(?<=\d)\s*\^\s*\{\s*\\(?:text|mathrm)\s*\{\s*(?:st|nd|rd|th)\s*\}\s*\}\s*$")
_TEXT = r"\\(?:text(?:bf|it|rm|sf|normal)?|mbox|hbox|math(?:rm|bf|it|sf|normal)|operatorname)\s*\{([^{}]*)\}"
_EXPONENT = r"\s*\^\s*(?:\{\s*-?\d\s*\}|\d)|\s*[²³]"
_POWER = rf"(?:{_EXPONENT})?"
_UNIT = rf"{_TEXT}{_POWER}"
_TEXT_UNIT = re.compile(
    rf"(?<=[\w)\]}}%])\s*((?:(?:\s|/|\\cdot|\\times)*(?:{_UNIT}|\\[dt]?frac\s*\{{\s*{_UNIT}\s*\}}\s*\{{\s*{_UNIT}\s*\}}))+)\s*$"
)
_PERCENT = re.compile(r"\\text\s*\{\s*(?:percent|pct)(?:age)?\s*\}|(?<![\\A-Za-z])\s*\b(?:percent|pct)\b")
_ONE_LETTER_UNITS = "mgshlLNJWVKCF"
_LETTER = re.compile(r"\\(?:text|mathrm)\s*\{\s*([A-Za-z])\s*\}")
_MORE_UNITS = set("degree dollar cent euro mile oz mg ml mL yd mi in km/h m/s".split())
_NO_UNITS = set("ab bc th st by rd rs mp lt mt are per sue pie more less prime ratio multiple".split())
_KNOWN = {unit for unit in UNITS if re.fullmatch("[A-Za-z]{2,}", unit)} - _NO_UNITS | _MORE_UNITS
# "3cm" is not a product, "3pm" is
_GLUED = {"cm", "mm", "km", "kg", "mph"} | {unit for unit in _KNOWN if len(unit) > 3}
_ONE_OF = {
    name: "|".join(sorted(map(re.escape, units), key=len, reverse=True))
    for name, units in (("known", _KNOWN), ("glued", _GLUED))
}
_PLAIN_UNIT = re.compile(
    rf"(?:(?<=[\d)}}%])(?:(?:{_ONE_OF['glued']})(?:s|es)?|\s+[mgshlL])|(?<=[\w)\]}}%])\s+(?:{_ONE_OF['known']})(?:s|es)?)"
    rf"\.?{_POWER}\s*$"
    r"|(?<=[\d)}%])(?:\s+[A-Za-z]{2,})*\s+[A-Za-z]{4,}\.?\s*$"  # "18 dollars a day"
)


class Unread(Exception):
    """Part of an answer has no value here."""


def same(reference: str, answer: str) -> bool | None:
    """Return True if two answers have the same value; None if one of them could not be read completely."""
    complex_ = any(grader.should_treat_as_complex(text) or re.search(r"\di\b", text) for text in (reference, answer))
    try:
        values = [read(text, real=not complex_) for text in (reference, answer)]
    except Unread:
        return None
    with _leading_digits():
        return bool(verify(*values, timeout_seconds=None))


def read(text: str, real: bool = True):
    """Return the value of an answer, a sympy object; its formulas are between dollars. Raises Unread."""
    formulas = [next(filter(None, match.groups())) for match in _FORMULA.finditer(text)]
    outside = _FORMULA.sub(" ", text)
    if not formulas or not _BETWEEN.fullmatch(outside):
        return _read_sentence(formulas, outside, real)
    if any(_LEFT_OUT.search(formula) for formula in formulas):
        raise Unread(text)
    latex = clean(", ".join(re.sub(r"(?<!\\)[.,;]\s*$", "", formula) for formula in formulas))
    first, *others = [_parse(side, real) for side in re.split(r"\\approx(?![A-Za-z])", latex)]
    if others and isinstance(first, sympy.Symbol):  # "x \approx 3.4"
        first, *others = others
    if not all(_close(first, other, APPROXIMATE) for other in others):
        raise Unread(latex)
    return first


def _parse(latex: str, real: bool):
    try:
        value = latex2sympy(latex, is_real=real, convert_degrees=False, normalization_config=None)
    except Exception as error:  # the parser raises plain Exception, and whatever its input triggers
        raise Unread(latex) from error
    if value is None or value in (sympy.nan, sympy.zoo):  # "3:00" is a time
        raise Unread(latex)
    return value


def _read_sentence(formulas: list[str], words: str, real: bool):
    """Return the only number, or the only formula, in words that do not change its meaning: "that there are 18 eggs"."""
    numbers = all_numbers(words)
    if _CHANGES_MEANING.search(words) or "\\" in words or len(formulas) + len(numbers) != 1:
        raise Unread(words)
    return read(f"${formulas[0]}$", real) if formulas else sympy.Rational(numbers[0].numerator, numbers[0].denominator)


def clean(latex: str) -> str:
    """Return a formula as math-verify's parser takes it. Drops nothing with a value; raises Unread for what the parser would drop."""
    text = _FINAL_PERIOD.sub(r"\1", latex.translate(_SIGNS)).strip()
    text = _GROUPS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    if _LEFT_OUT.search(text) or _PRIME.search(text):
        raise Unread(latex)
    text = _SPACE.sub(" ", text.replace("\\!", "").replace("{,}", ",")).strip()
    text = re.sub(r"(?:°|\\degree(?![A-Za-z])|\^\s*\{\s*\\degree\s*\})", r"^{\\circ}", text)
    text = re.sub(r"^(?:\\\$|[$€£¥])\s*|\\(?:display|text)style(?![A-Za-z])", "", text)
    for written, instead in _SYNONYMS:
        text = written.sub(instead, text)
    text = re.sub(r"\{\s*\\(?:rm|bf|it)\s+([^{}]*)\}", r"\\text{\1}", text)
    text = _PERCENT.sub(r"\\%", text)
    text = _LETTER.sub(lambda match: f" {match[1]} " if match[1] in "ie" else match[0], text)
    text = _PLAIN_UNIT.sub(_unit, _TEXT_UNIT.sub(_unit, text)).strip()
    for written, instead in _TYPED:
        text = written.sub(instead, text)
    text = _BASE.sub(_in_base, _ORDINAL.sub("", text))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", _REPEATING.sub(_repeating, text))
    text = _brace_arguments(text)
    if _TWO_NUMBERS.search(text) or _SUBSCRIPT.search(text) or ("matrix" not in text and _TRANSPOSE.search(text)):
        raise Unread(latex)
    text = normalize_latex(text, _CLEANUP)
    if not text:
        raise Unread(latex)
    return text


def _digits(text: str) -> str:
    """Return raised, lowered or vulgar characters as plain ones: "⁻¹²" → "-12"."""
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-")


def _unit(match: re.Match) -> str:
    """Remove a unit; words that change the meaning, or that could be variables, are not units."""
    commands = r"\\(?:text|math|operatorname|[mh]box|[dt]?frac)[a-z]*|\\cdot|\\times"
    words = re.sub(rf"{commands}|(?<=[A-Za-z)}}])(?:{_EXPONENT}|[23]\b)", " ", match[0])
    strange = _CHANGES_MEANING.search(words) or re.search(r"[^A-Za-z\s{}().,/°%-]", words)
    texts = [text.strip() for text in re.findall(_TEXT, match[0])]
    variables = any(re.fullmatch("[A-Za-z]", text) and text not in _ONE_LETTER_UNITS for text in texts)
    return match[0] if strange or variables else ""


def _in_base(match: re.Match) -> str:
    """Return a number in another base as a symbol of its own, because the parser would drop the base."""
    digits, base = match[2], re.sub(r"\\(?:text|mathrm)|[\s{}()]", "", match[3]).lower()
    base = str(_BASES.index(base) + 2) if base in _BASES else base
    if not re.fullmatch("[2-9]|[12][0-9]|3[0-6]", base) or any(int(digit, 36) >= int(base) for digit in digits):
        return match[0]
    return f"\\text{{N{digits}base{base}}}"


def _repeating(match: re.Match) -> str:
    """Return 0.1\\overline{6} as an exact fraction."""
    whole, fixed, repeated = match[1], match[2], match[3] or match[4]
    below = 10 ** len(fixed) * (10 ** len(repeated) - 1)
    return f"\\frac{{{int(whole + fixed + repeated) - int('0' + whole + fixed)}}}{{{below}}}"


def _brace_arguments(text: str) -> str:
    """Brace the arguments of fractions, roots and powers, as TeX reads them: \\frac12, \\frac1{72}, \\sqrt2; also \\sqrt(2)."""
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    parts, position = [], 0
    for match in re.finditer(r"\\(frac|sqrt)(?![A-Za-z])\s*|\^\s*(?=\()", text):
        if match.start() < position:
            continue
        parts.append(text[position : match.start()] + match[0].strip())
        position = match.end()
        if match[1] == "sqrt" and text[position : position + 1] == "[":
            end = text.find("]", position) + 1
            parts.append(text[position:end])
            position = max(end, position)
        for _ in range(2 if match[1] == "frac" else 1):
            argument, position = _argument(text, position)
            parts.append("{" + (_brace_arguments(argument) if argument != text else argument) + "}")
    return "".join([*parts, text[position:]])


def _argument(text: str, position: int) -> tuple[str, int]:
    """Return (the argument that begins at `position`, its end): a group, a command, or one character. Raises Unread."""
    while text[position : position + 1].isspace():
        position += 1
    first = text[position : position + 1]
    if first in ("{", "("):
        depth, close = 0, {"{": "}", "(": ")"}[first]
        for end in range(position, len(text)):
            depth += (text[end] == first) - (text[end] == close)
            if depth == 0:
                return text[position + 1 : end], end + 1
        raise Unread(text)
    found = re.compile(r"\\[A-Za-z]+|\w").match(text, position)
    if not found:
        raise Unread(text)
    return found[0], found.end()


# Equality


@contextmanager
def _leading_digits():
    """Run math-verify with this file's comparison of numbers."""
    theirs = grader.sympy_numeric_eq, grader.sympy_symbolic_eq

    def same_symbols(a, b) -> bool:
        return _same_infinite(a, b) if _is_infinite(a) or _is_infinite(b) else theirs[1](a, b)

    grader.sympy_numeric_eq, grader.sympy_symbolic_eq = same_number, same_symbols
    try:
        yield
    finally:
        grader.sympy_numeric_eq, grader.sympy_symbolic_eq = theirs


_I = {sympy.Symbol("i", real=real): sympy.I for real in (True, False)}
_NOT_COMPUTED = (TypeError, AttributeError, ValueError, NotImplementedError, ArithmeticError, RecursionError)


def _is_infinite(value) -> bool:
    """Return True if infinity occurs in a number or formula."""
    return isinstance(value, sympy.Expr) and value.has(sympy.oo, -sympy.oo, sympy.zoo)


def _same_infinite(a, b) -> bool:
    """Equality where infinity occurs: each side is evaluated alone, since a simplified difference may lose the infinity."""
    return grader.safe_sympy_doit(a) == grader.safe_sympy_doit(b)


def _is_zero(difference) -> bool:
    """Return True if an exact value is 0, or so small relative to its terms that none of its digits can be determined."""
    if difference.is_Rational:
        return difference == 0
    value = difference.evalf(15, maxn=DIGITS)
    digits = value.atoms(sympy.Float)
    return value == 0 or (bool(digits) and all(part._prec <= 10 for part in digits))


def _close(a, b, relative) -> bool:
    """Return True if two values differ by less than a fraction of the larger one; False if that cannot be computed."""
    try:
        return bool(abs(a - b).evalf() <= relative * max(abs(a).evalf(), abs(b).evalf()))
    except _NOT_COMPUTED:
        return False


def same_number(a, b, rounding: int, precision: int) -> bool:
    """Replace math-verify's function with these arguments: see the module docstring."""
    matrices = (sympy.MatrixBase, sympy.MatrixExpr)
    if isinstance(a, matrices) or isinstance(b, matrices):
        a, b = grader.safe_sympy_doit(a), grader.safe_sympy_doit(b)
        if not (isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase) and a.shape == b.shape):
            return False
        return all(grader.sympy_expr_eq(x, y, rounding, precision) for x, y in zip(a.flat(), b.flat(), strict=True))
    if _is_infinite(a) or _is_infinite(b):
        return _same_infinite(a, b)
    percent = [grader.get_pct_val(value) for value in (a, b)]
    if percent != [None, None]:  # 36% equals 36, and also 0.36
        plain = [value if number is None else number for value, number in zip((a, b), percent, strict=True)]
        whole = [grader.safe_sympy_doit(value) for value in (a, b)]
        return same_number(*plain, rounding, precision) or (
            None in percent and same_number(*whole, rounding, precision)
        )
    try:
        decimal = a.has(sympy.Float) or b.has(sympy.Float)
        a, b = (grader.safe_sympy_doit(sympy.nsimplify(value, rational=True)).subs(_I) for value in (a, b))
        difference = a - b
        if difference.free_symbols:
            return sympy.expand(difference) == 0
        if not decimal:
            return _is_zero(difference)
        return bool(abs(difference).evalf() <= 10**-rounding / 2) and _close(a, b, CLOSE)
    except _NOT_COMPUTED:
        return False
