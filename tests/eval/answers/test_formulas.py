"""Two answers share a value only if both were read completely; small values differ; all real answers are read."""

import json
import os
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path

import pytest

from eval.answers.latex import as_formula, read_reference, same_text, same_values
from eval.hendrycks_math import score_records

PLAIN = ["3", "2\\sqrt{3}", "x+1", "(1,2)"]
NOT_WHOLE = [  # text after a plain answer
    "+\\foo{x}",
    "\\foo",
    "(2",
    " [4",
    "\\}",
    "+",
    " \\cdot",
    "^",
    " \\ldots",
    ", \\dots",
    "...",
    "'",
    " & 4",
    " \\\\ 4",
    "\\begin{pmatrix}",
    " \\approx",
    " \\approx 400",
    "^T",
    "^{\\mathrm{T}}",
    "√",
    "∛",
]
OTHER_VALUE = [  # (reference, a completely read answer with another value)
    ("3", "3\\mathrm{i}"),
    ("3", "3\\text{i}"),
    ("3", "3\\mathrm{e}"),
    ("1", "1-\\frac{1}{\\mathrm{e}}"),
    ("2", "2 + \\mathrm{e}^{-1}"),
    ("4", "4\\sqrt(2)"),
    ("4", "4t"),
    ("2", "2d"),
    ("\\frac{1}{2}", "\\frac{1}{2}ab"),
    ("\\frac{1}{2}", "\\frac{1}{2}h"),
    ("5", "5 \\text{ or more}"),
    ("5", "5\\text{ if }x"),
    ("25", "25_6"),
    ("25_{7}", "25_{6}"),
    ("0", "3\\,000"),
    ("1", "1.2"),
    ("3", "$3$ and $4$"),
    ("4", "$3$ or $4$"),
    ("2", "2\\text{x}"),
    ("2", "2\\mathbf{i}"),
    ("2", "2\\text{ \\pi}"),
    ("2", "2\\text{ 3}"),
    ("2", "2\\text{²}"),
    ("2", "2\\frac{\\text{x}}{\\text{s}}"),
    ("2", "2\\text{ cm}\\text{-3}"),
    ("2", "2\\text{ thirds}"),
    ("2", "2\\text{ trillion}"),
    ("25", "25_{\\text{six}}"),
    ("25", "25 _6"),
    ("10100", "(101)_{2}"),
    ("25_7", "25_{\\text{six}}"),
    ("0.\\overline{3}", "0.3"),
    ("\\sqrt{2}", "\\sqrt{2}\\infty"),
    ("\\pi", "\\pi-\\infty"),
    ("e", "e\\infty"),
    ("(1+2i)^2", "-3-4i"),
    ("2", "√2"),
    ("3", "3½"),
    ("3", "3²"),
    ("25", "25₆"),
    ("8", "∛8"),
]
SAME_VALUE = [
    ("3i", "3\\mathrm{i}"),
    ("1-\\frac{1}{e}", "1-\\frac{1}{\\mathrm{e}}"),
    ("e^2", "\\mathrm{e}^{2}"),
    ("4\\sqrt2", "4\\sqrt(2)"),
    ("3", "3\\text{ cm}"),
    ("3", "3\\ \\mathrm{cm}^2"),
    ("3\\pi", "3\\pi cm"),
    ("3", "3\\text{ m}/\\text{s}"),
    ("3", "3 dollars"),
    ("3", "3."),
    ("\\frac{7}{5} + \\frac{1}{5} i.", "\\frac{7+i}{5}"),
    ("\\frac{7}{5} + \\frac{1}{5} i.", "1.4 + 0.2i"),
    ("90", "90°"),
    ("10\\%", "10\\text{ percent}"),
    ("\\frac{71}{6}", "11 5/6"),
    ("\\frac{71}{6}", "11\\frac56"),
    ("3000", "3\\,000"),
    ("1234567", "1{,}234{,}567"),
    ("1000", "1 000"),
    ("25_{6}", "25_6"),
    ("\\frac\\pi2", "\\frac{\\pi}{2}"),
    ("2^{n+1}", "2^(n+1)"),
    ("3,4", "$3$ and $4$"),
    ("x=3, x=4", "x = 4 \\text{ or } x = 3"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}\n1 \\\\\n2\n\\end{pmatrix}"),
    ("-5", "\u20115"),
    ("6\\pi", "2 × 3π"),
    ("(-\\infty, 2]", "(\u2212∞, 2]"),
    ("18", "that there are 18 eggs"),
    ("25_6", "25_{\\text{six}}"),
    ("101_2", "(101)_{2}"),
    ("101_2", "101_{two}"),
    ("12.5", "12.5\\text{ percent}"),
    ("12.5\\%", "12.5"),
    ("12.5\\%", "0.125"),
    ("20", "20^{\\text{th}}"),
    ("20", "20^\\circ\\text{C}"),
    ("20", "20\\text{ m/s}^2"),
    ("20", "20\\,\\frac{\\text{km}}{\\text{h}}"),
    ("20", "20\\text{.}"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\[4pt] 2 \\end{pmatrix}"),
    ("20", "20 \\\\"),
    ("\\frac{4}{11}", "0.\\overline{36}"),
    ("\\frac{1}{6}", "0.1\\overline{6}"),
    ("2\\sqrt{3}", "2\\sqrt{3} \\approx 3.46"),
    ("3.46", "x ≈ 3.46"),
    ("(0,1)", "\\bigl(0,1\\bigr)"),
    ("\\{1,2\\}", "\\lbrace 1,2 \\rbrace"),
    ("[1,2] \\cup [3,4]", "[1,2] \\bigcup [3,4]"),
    ("\\emptyset", "\\varnothing"),
    ("-1", "e^{i\\pi}"),
    ("1-i", "\\frac{2}{1+i}"),
    ("6.02\\times10^{23}", "602000000000000000000000"),
    # periods
    ("5", "5.\\,"),
    ("\\text{Tuesday.}", "\\text{Tuesday}"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}.", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("5\\text{ cm}.", "5"),
    # thousands
    ("12345678", "12\\,345\\,678"),
    ("12345", "12~345"),
    ("1234567", "1'234'567"),
    # characters in place of commands
    ("2\\sqrt{3}", "2√3"),
    ("2\\sqrt{3}", "√12"),
    ("\\frac{3\\sqrt{2}}{2}", "3√(2)/2"),
    ("\\sqrt{x}+1", "√x+1"),
    ("2", "∛8"),
    ("x^{10}+x^{-1}", "x¹⁰ + x⁻¹"),
    ("25_6", "25₆"),
    ("x_1", "x₁"),
    ("\\frac{1}{2}", "½"),
    ("5", "{-}{-}5"),
    # mixed numbers
    ("\\frac{7}{2}", "3½"),
    ("-\\frac{3}{2}", "-1 1/2"),
    ("\\frac{71}{6}", "11~\\tfrac56"),
    ("\\frac{71}{6}", "11\\,5/6"),
    ("x+\\frac{3}{2}", "1\\frac12 + x"),
]
SMALL = ["2^{-100}", "2^{-99}", "10^{-400}", "\\frac{\\sqrt{2}}{10^{30}}", "0"]
LARGE = ["10^{400}", "10^{400}+1", "100000000000000000001"]
DECIMALS = ["0.0000001", "0.0000002", "0.00000011", "0"]


def turned(pairs):
    return [(b, a) for a, b in pairs]


def in_forms(values):
    """Return {(reference, answer): whether they are the same}, for values alone and inside other answers."""
    forms = ["{}", "({}, 5)", "\\{{{}, 5\\}}", "\\begin{{pmatrix}} {} \\\\ 5 \\end{{pmatrix}}", "{}x"]
    pairs = combinations_with_replacement(values, 2)
    return {
        (form.format(a), form.format(b)): a == b
        for a, b in pairs
        for form in forms
        if form != "{}x" or "0" not in (a, b)
    }


UNREAD = [(plain, plain + more) for plain in PLAIN for more in NOT_WHOLE]
UNREAD += turned(UNREAD)
OTHER_FORMS = [
    ("5+2\\sqrt{6}", "(\\sqrt{2}+\\sqrt{3})^2"),
    ("\\frac{1}{3}", "0.333333"),
    ("0.333333", "\\frac{1}{3}"),
    ("\\frac{1}{2^{100}}", "2^{-100}"),
    ("10^{-20}", "\\frac{1}{100000000000000000000}"),
    ("\\sqrt{2}\\sqrt{3}-\\sqrt{6}", "0"),
    ("x^2-1", "(x-1)(x+1)"),
    ("0.5x", "\\frac{x}{2}"),
    ("36", "36\\%"),
    ("\\sqrt{2}", "1.41421356237"),
]
ROUGH = [
    ("\\frac{1}{3}", "0.33"),
    ("\\sqrt{2}", "1.4142"),
    ("0.5x", "0.25x"),
    ("100\\pi", "100.01\\pi"),
    ("3\\sqrt{2}", "3.0001\\sqrt{2}"),
    ("1.4+0.2i", "1.4001+0.2i"),
]
RIGHT = dict.fromkeys([*OTHER_VALUE, *turned(OTHER_VALUE), *ROUGH], False)
RIGHT |= dict.fromkeys([*SAME_VALUE, *OTHER_FORMS], True)
RIGHT |= dict.fromkeys(UNREAD) | in_forms(SMALL) | in_forms(LARGE) | in_forms(DECIMALS)


@pytest.fixture(scope="module")
def judged():
    """The verdict on every pair, from one process."""
    asked = [(as_formula(reference), as_formula(answer)) for reference, answer in RIGHT]
    return dict(zip(RIGHT, same_values(asked, seconds=60, workers=1), strict=True))


def wrong(judged, pairs):
    return {pair: judged[pair] for pair in pairs if judged[pair] is not RIGHT[pair]}


def test_what_is_not_read_whole_has_no_verdict_and_is_not_the_same_text(judged):
    assert wrong(judged, UNREAD) == {}
    assert [pair for pair in UNREAD if same_text(*pair)] == []


def test_an_answer_with_more_behind_it_has_another_value(judged):
    assert wrong(judged, [*OTHER_VALUE, *turned(OTHER_VALUE)]) == {}


def test_units_periods_and_spellings_do_not_change_a_value(judged):
    assert wrong(judged, SAME_VALUE) == {}


@pytest.mark.parametrize("values", [SMALL, LARGE, DECIMALS], ids=["small", "large", "decimals"])
def test_values_of_any_size_equal_themselves_alone(judged, values):
    assert wrong(judged, in_forms(values)) == {}


def test_exact_values_in_other_forms_and_rounded_ones_stay_equal_and_rough_ones_differ(judged):
    assert wrong(judged, [*OTHER_FORMS, *ROUGH]) == {}


def test_an_answer_without_a_verdict_is_right_where_it_is_the_same_text_and_is_counted():
    texts = ["\\foo{x} + 1", " \\foo{x}+1", "\\foo{x}", "5\\foo\\text{ cm}", "1, 2, \\ldots, n", "5 \\ldots", "5\\foo"]
    references = ["\\foo{x}+1", "\\foo{x}+1", "\\foo{x}+1", "5\\foo\\text{ m}", "1,2,\\ldots,n.", "5", "5\\foo."]
    records = [
        {"id": n, "completion": f"\\boxed{{{text}}}", "reference": f"\\boxed{{{right}}}"}
        for n, (text, right) in enumerate(zip(texts, references, strict=True))
    ]
    score, scored = score_records(records)
    assert [line["correct"] for line in scored] == [True, True, False, False, True, False, True]
    assert (score["n_without_verdict"], score["n_correct"], score["score_math_verify"]) == (7, 4, 0)


def test_minerva_keeps_the_verdicts_of_math_verify_itself():
    ending = "Final Answer: The final answer is ${}$. I hope it is correct."
    record = {"id": 0, "completion": ending.format("3\\mathrm{i}"), "reference": "\\boxed{3}"}
    assert score_records([record], "minerva_math")[0]["score"] == 1
    assert score_records([record])[0]["score"] == 0


def test_a_period_inside_the_box_of_a_solution_is_ignored_but_not_by_the_protocols_that_repeat_others():
    solution = "So $2z = 3,$ and\n\\[z = \\boxed{\\frac{7}{5} + \\frac{1}{5} i.}.\\]"
    answer = (
        "The answer is: $\\frac{7+i}{5}$.\nFinal Answer: The final answer is $\\frac{7+i}{5}$. I hope it is correct."
    )
    record = {"id": 0, "completion": answer, "reference": solution}
    scores = {name: score_records([record], name)[0]["score"] for name in ("ba-lora", "upstream", "minerva_math")}
    assert scores == {"ba-lora": 1, "upstream": 0, "minerva_math": 0}


HOSTILE = {
    "braces": "{" * 10**5,
    "boxes": "\\boxed{" * 10**4,
    "digits": "1" * 10**5,
    "commas": "1," * 10**5,
    "minus signs": "-" * 10**5,
    "brackets": "((((" * 10**4,
    "half a surrogate pair": "\ud83d",
    "NUL": "\x00",
    "line separator": "\u2028",
}


def test_hostile_answers_are_wrong_and_the_others_are_judged(monkeypatch):
    monkeypatch.setattr("eval.hendrycks_math.same_values", partial(same_values, seconds=1, workers=1))
    texts = [form.format(text) for text in HOSTILE.values() for form in ("The answer is: {}\n", "\\boxed{{{}}}")]
    completions = [completion for text in texts for completion in (text, "\\boxed{5}")]
    records = [{"id": n, "completion": text, "reference": "5"} for n, text in enumerate(completions)]
    _, scored = score_records(records)
    assert [line["correct"] for line in scored] == [False, True] * len(texts)


def test_all_real_answers_are_read_whole():
    folder = os.environ.get("BA_LORA_DATA")
    if not folder:
        pytest.skip("needs MATH problems: set BA_LORA_DATA to a folder with math/test_first500.jsonl")
    lines = (Path(folder) / "math" / "test_first500.jsonl").read_text().splitlines()
    answers = [read_reference(json.loads(line)["solution"]) for line in lines]
    formulas = list(map(as_formula, answers))
    assert set(same_values(list(zip(formulas, formulas, strict=True)))) == {True}
