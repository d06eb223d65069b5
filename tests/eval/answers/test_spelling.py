"""Numbers in their various spellings are read exactly."""

from fractions import Fraction

import pytest

from eval.answers.numeric import all_numbers, parse_number
from tests.eval.answers.growth import assert_linear

WRITTEN_NUMBERS = [
    ("18", 18),
    ("18.", 18),
    ("18.0", 18),
    ("018", 18),
    ("+18", 18),
    ("3.75", "15/4"),
    (".5", "1/2"),
    ("-7", -7),
    ("\u22127", -7),
    ("\u20137", -7),
    ("-0.5", "-1/2"),
    ("1,234,567", 1234567),
    ("12,345", 12345),
    ("1,5", 1),
    ("1,2345", 1),
    ("$1,200.50", "2401/2"),
    ("\\$18", 18),
    ("-$5", -5),
    ("$-5", -5),
    ("€20", 20),
    ("USD18", 18),
    ("50%", 50),
    ("50\\%", 50),
    ("12 apples", 12),
    ("about 12 apples", 12),
    ("12-year-old", 12),
    ("10-7", 10),
    ("- 3", 3),
    ("1/2", "1/2"),
    ("3 / 4", "3/4"),
    ("-3/4", "-3/4"),
    ("36/2", 18),
    ("1 1/2", "3/2"),
    ("-1 1/2", "-3/2"),
    ("2 and 3/4 hours", "11/4"),
    ("½", "1/2"),
    ("1½", "3/2"),
    ("\\frac{1}{2}", "1/2"),
    ("\\dfrac{ 3 }{ 4 }", "3/4"),
    ("\\frac12", "1/2"),
    ("-\\frac{1}{2}", "-1/2"),
    ("\\frac{-1}{2}", "-1/2"),
    ("1\\frac{1}{2}", "3/2"),
    ("\\boxed{12}", 12),
    ("**12**", 12),
    ("\\(12\\)", 12),
    ("1{,}234", 1234),
    ("1\\,234", 1234),
    ("1\u202f234", 1234),
    ("1e3", 1000),
    ("2.5e-1", "1/4"),
    # signs
    ("\u20105", -5),
    ("\u20115", -5),
    ("10\u201017", 10),
    ("{-}5", -5),
    ("-½", "-1/2"),
    ("\u22121½", "-3/2"),
    ("$-$5", -5),
    # thousands
    ("1,00,000", 100000),
    ("12,34,567.50", "2469135/2"),
    ("₹1,00,00,000", 10000000),
    ("1'234'567", 1234567),
    ("1\u2019234.5", "2469/2"),
    ("$1~234$", 1234),
    ("1\\ 234", 1234),
    ("10,\\!080", 10080),
    ("1_000", 1000),
    ("1_0", 1),
    ("1\u2009234\u2009567", 1234567),
    ("1\u00a0234", 1234),
    ("5\u00a0apples", 5),
    ("1 234", 1),
    # powers of ten and words of size
    ("1.5 \\times 10^{6}", 1500000),
    ("5 × 10^3", 5000),
    ("5 × 10³ km", 5000),
    ("2 \\cdot 10^{-2}", "1/50"),
    ("10^6", 1000000),
    ("10^999", 10),
    ("2.5 million", 2500000),
    ("1/2 million", 500000),
    ("3 hundred thousand", 300000),
    ("2 lakh", 200000),
    ("$50k", 50000),
    ("$1.2B", 1200000000),
    ("50km", 50),
    ("5 million-dollar homes", 5),
    ("2 dozen", 2),
    # fractions
    ("\\frac{1}{-2}", "-1/2"),
    ("\\dfrac{3.5}{2}", "7/4"),
    ("\\frac{-1,000}{3}", "-1000/3"),
    ("\\frac 12", "1/2"),
    ("\\frac1{72}", "1/72"),
    ("2\\ \\frac{1}{2}", "5/2"),
    ("1\u20442", "1/2"),
    ("2 ⅓", "7/3"),
    # not part of the number
    ("x_1 = 5", 5),
    ("x_{12} = 5", 5),
    ("Rs.50", 50),
    ("１８", 18),
    ("1/0", None),
    ("\\frac{1}{0}", None),
    ("no number", None),
    ("", None),
    ("9" * 5000, None),
]


@pytest.mark.parametrize(("text", "value"), WRITTEN_NUMBERS, ids=[repr(text)[:30] for text, _ in WRITTEN_NUMBERS])
def test_a_number_is_read_exactly_as_it_is_written(text, value):
    assert parse_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    "piece", ["1", "1,", "1 ", "1\\,", "1_000", "1'", "\\frac{1}{", "10^", "1 million ", "½", "a_1", "\\text{"]
)
def test_the_work_for_a_degenerate_text_is_proportional_to_its_length(piece):
    assert_linear(all_numbers, piece)
