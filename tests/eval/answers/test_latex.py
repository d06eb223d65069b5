"""Where a completion states a LaTeX answer under both protocols, the two judges of equality, and hostile answers."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval.answers.latex import (
    PROTOCOLS,
    VERSION,
    as_formula,
    extract_latex,
    last_boxed,
    normalise_string,
    read_reference,
    same_string,
    same_values,
)
from tests.eval.answers.growth import assert_linear

ROOT = Path(__file__).parents[3]

# (completion, what protocol ba-lora reads, what protocol upstream reads)
COMPLETIONS = [
    # position of the answer
    ("So $x = \\boxed{5}$.", "5", None),
    ("The answer is: 5", "5", "5"),
    ("The answer is 5.", "5", None),
    ("the final answer is 5", "5", None),
    ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)", None),
    ("So \\boxed{5}. The answer is: 5", "5", "5"),
    ("So \\boxed{5}. The answer is: 6", "5", "6"),
    ("First \\boxed{3}, no: \\boxed{4}.", "4", None),
    ("The answer is: 3. No, wait.\nThe answer is: 4", "4", "4"),
    ("The answer is: $x^2 + 1$.", "x^2 + 1", "$x^2 + 1$"),
    ("The answer is: $$x^2 + 1$$", "x^2 + 1", "$$x^2 + 1$$"),
    ("The answer is: \\[x^2 + 1\\]", "x^2 + 1", "\\[x^2 + 1\\]"),
    ("The answer is \\(x^2 + 1\\), as was to be shown.", "x^2 + 1", None),
    ("The answer is:\n$$\\frac{1}{2}$$", "\\frac{1}{2}", None),
    ("**The answer is: 5**", "5", "5**"),
    ("The answer is: **5**.", "5", "**5**"),
    ("The answer is: 5.\nThis is right.", "5", "5"),
    ("The answer is: 5. This is right.", "5", "5. This is right"),
    ("The answer is: 3.5.", "3.5", "3.5"),
    ("The answer is: 5..", "5", "5."),
    ("The answer is: \\boxed{\\text{(A)}}", "\\text{(A)}", "\\boxed{\\text{(A)}}"),
    ("\\fbox{5}", "5", None),
    ("$\\boxed 5$", "5", None),
    ("$\\boxed {5}$", "5", None),
    ("$\\boxed5$", "5", None),
    ("$\\boxed\\frac{1}{2}$", "\\frac{1}{2}", None),
    ("\\(\\boxed x\\)", "x", None),
    ("It is \\boxed 5.", "5", None),
    # a box in a sentence about the form
    ("\\boxed{5}. I have put it in \\boxed as asked.", "5", None),
    ("\\boxed{5}, in \\boxed as you asked for $x$.", "5", None),
    ("\\boxed{5}, in the \\boxed{} form", "5", None),
    ("\\boxed{5}. It stands in the form \\boxed{...}", "5", None),
    ("\\boxed{5} as \\boxed{\\text{your answer}}", "5", None),
    ("\\boxed{5} as \\boxed{\\ldots}, asked", "5", None),
    ("The answer is 5. It is not in \\boxed{answer}.", "5", None),
    ("I put it in \\boxed as asked.", None, None),
    ("\\boxed{\\{\\}}", "\\{\\}", None),
    ("\\boxed{\\emptyset}", "\\emptyset", None),
    # a label
    ("**Final Answer:** $x^2$\n\nNote that 3 is left.", "x^2", None),
    ("### Final Answer\n\\(x^2\\)", "x^2", None),
    ("It is 5.", None, None),
    ("5", None, None),
    ("", None, None),
    # nesting
    ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}", None),
    ("$\\boxed{\\sqrt{\\frac{a}{b}} + c}$", "\\sqrt{\\frac{a}{b}} + c", None),
    ("$\\boxed{\\left\\{1, 2\\right\\}}$", "\\left\\{1, 2\\right\\}", None),
    ("$\\boxed{ 7 }$", "7", None),
    # thousands, units, percent, currency
    ("\\boxed{10,\\!080}", "10,\\!080", None),
    ("The answer is: 1,234,567", "1,234,567", "1,234,567"),
    ("The answer is: 18 dollars per day.", "18", "18 dollars per day"),
    ("The answer is: $18 a day", "18", "$18 a day"),
    ("The answer is: \\$18.90", "\\$18.90", "\\$18.90"),
    ("The answer is: 5 \\text{ inches}", "5 \\text{ inches}", "5 \\text{ inches}"),
    ("\\boxed{5\\text{ inches}}", "5\\text{ inches}", None),
    ("The answer is: 36\\%", "36\\%", "36\\%"),
    ("The answer is: 36%.", "36%", "36%"),
    ("The answer is: 45^\\circ", "45^\\circ", "45^\\circ"),
    ("The answer is: $\\frac{639}{40}$ inches.", "\\frac{639}{40}", "$\\frac{639}{40}$ inches"),
    # fractions and mixed numbers
    ("The answer is: \\dfrac{5}{143}", "\\dfrac{5}{143}", "\\dfrac{5}{143}"),
    ("The answer is: 5/143", "5/143", "5/143"),
    ("\\boxed{1\\frac{12}{13}}", "1\\frac{12}{13}", None),
    ("The answer is: 1\\frac{12}{13}.", "1\\frac{12}{13}", "1\\frac{12}{13}"),
    # intervals, points, sets, several answers
    (
        "The answer is: (-\\infty, -14)\\cup(-3,\\infty)",
        "(-\\infty, -14)\\cup(-3,\\infty)",
        "(-\\infty, -14)\\cup(-3,\\infty)",
    ),
    ("The answer is $[-3, 2)$.", "[-3, 2)", None),
    ("The answer is: (6, 7).", "(6, 7)", "(6, 7)"),
    ("\\boxed{7,9,12,13}", "7,9,12,13", None),
    ("The answer is: $3$ and $4$.", "$3$ and $4$", "$3$ and $4$"),
    ("The answer is: $x = 3$, $y = 4$", "$x = 3$, $y = 4$", "$x = 3$, $y = 4$"),
    ("The answer is: x = 9", "x = 9", "x = 9"),
    # matrices over several lines
    (
        "\\boxed{\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}}",
        "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}",
        None,
    ),
    (
        "The answer is: \\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}.\nDone.",
        "\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}",
        "\\begin{pmatrix} 1 \\\\\n2 \\end{pmatrix}",
    ),
    # text
    ("The answer is: \\text{Tuesday}", "\\text{Tuesday}", "\\text{Tuesday}"),
    ("The answer is: Tuesday.", "Tuesday", "Tuesday"),
    ("\\boxed{\\text{even}}", "\\text{even}", None),
    # repetition, another question
    ("\\boxed{5}\n\nProblem 2: What is 1+1?\nSolution: \\boxed{2}", "5", None),
    (
        "The answer is: 5\nThe answer is: 5\nThe answer is: 5\nThe answer is",
        "5",
        "5\nThe answer is",
    ),
    ("The answer is: 5\n\n### Instruction:\nCount.\n\n### Response: The answer is: 3", "5", "3"),
    ("The answer is: 5 Question: 1+1? The answer is: 2", "5", "2"),
    # truncation
    ("$\\boxed{\\frac{1}{", None, None),
    ("\\boxed{5}, and so \\boxed{", "5", None),
    ("\\boxed{}", None, None),
    ("The answer is: \\frac{1}{", None, "\\frac{1}{"),
    ("The answer is: \\begin{pmatrix} 1 \\\\", None, "\\begin{pmatrix} 1 \\\\"),
    ("The answer is: \\boxed{5", None, "\\boxed{5"),
    ("The answer is:", None, None),
    ("The answer is: ", None, ""),
]


@pytest.mark.parametrize(("completion", "ours", "theirs"), COMPLETIONS, ids=[repr(row[0])[:40] for row in COMPLETIONS])
def test_each_protocol_reads_its_answer_from_a_completion(completion, ours, theirs):
    assert (extract_latex(completion), extract_latex(completion, "upstream")) == (ours, theirs)


def test_an_unknown_protocol_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'upstream'"):
        extract_latex("5", "upstraem")


DEGENERATE = [
    "\\boxed{",
    "\\boxed{1}",
    "The answer is ",
    "The answer is: {",
    "$",
    "\\begin{a}",
    "{",
    "Question: ",
    "\\frac",
]


@pytest.mark.parametrize("piece", DEGENERATE)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_work_for_a_degenerate_completion_is_proportional_to_its_length(piece, protocol):
    assert_linear(lambda text: extract_latex(text, protocol), piece)


@pytest.mark.parametrize(
    ("solution", "ours", "theirs"),
    [
        ("Add: $\\boxed{3}$, then $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}", "\\frac{1}{2}"),
        ("It is $\\fbox{5}$.", "5", None),
        ("It is $\\boxed 5$.", "5", None),
        ("It is $\\boxed{5}$, not $\\boxed {6}$.", "6", None),
        ("It is $\\boxed{5", None, None),
        ("\\frac{1}{2}", "\\frac{1}{2}", "\\frac{1}{2}"),
        (" $5$ ", "5", "5"),
        ("", None, None),
    ],
)
def test_a_reference_is_the_last_box_of_a_solution_or_a_bare_answer(solution, ours, theirs):
    assert (read_reference(solution), read_reference(solution, "upstream")) == (ours, theirs)


def test_the_last_box_is_one_that_is_closed_and_not_empty():
    assert last_boxed("\\boxed{1} \\boxed{2} \\boxed{} \\boxed{3") == "2"


# As strings

NORMALISED = [
    ("\\dfrac{1}{2}", "\\frac{1}{2}"),
    ("\\tfrac12", "\\frac{1}{2}"),
    ("\\frac1{72}", "\\frac{1}{72}"),
    ("\\frac12x", "\\frac{1}{2}x"),
    ("\\frac{1}{2}", "\\frac{1}{2}"),
    ("\\frac1", "\\frac1"),
    ("\\frac1\\frac23", "\\frac1\\frac23"),
    ("\\frac 54", "\\frac{5}{4}"),
    ("1/2", "\\frac{1}{2}"),
    ("-3/4", "\\frac{-3}{4}"),
    ("1/2/3", "1/2/3"),
    ("01/2", "01/2"),
    ("0.5", "\\frac{1}{2}"),
    (".5", "\\frac{1}{2}"),
    ("0.25", "0.25"),
    ("x = .5", "\\frac{1}{2}"),
    ("\\frac{.5}{2}", "\\frac{0.5}{2}"),
    ("\\sqrt3", "\\sqrt{3}"),
    ("\\sqrt{3}", "\\sqrt{3}"),
    ("10\\sqrt 2", "10\\sqrt{}2"),
    ("10,\\!080", "10,080"),
    ("\\left(1, 2\\right)", "(1,2)"),
    ("45^\\circ", "45"),
    ("45^{\\circ}", "45"),
    ("\\$76.80", "76.80"),
    ("36\\%", "36"),
    ("36%", "36%"),
    ("65 \\text{ children tickets }", "65"),
    ("5\\text{ or }6", "5"),
    ("5\\text{inches}", "5\\text{inches}"),
    ("x=9", "9"),
    ("k = 9", "9"),
    ("xyz=9", "xyz=9"),
    ("x=y=9", "x=y=9"),
    ("1\\\\2", "1\\2"),
    ("", ""),
]


@pytest.mark.parametrize(("written", "normal"), NORMALISED)
def test_the_classical_normalisation_rewrites_what_it_always_did(written, normal):
    assert normalise_string(written) == normal


@pytest.mark.parametrize("text", ["\\sqrt", "\\frac", "3\\text{ m}4\\text{ cm}", "x/2", "1/"])
def test_where_the_normalisation_fails_the_strings_are_compared_as_they_stand(text):
    with pytest.raises(ValueError):
        normalise_string(text)
    assert same_string(text, text) and not same_string(text, text + " ")


# As values, and as strings for comparison: (reference, answer, string, math-verify)

PAIRS = [
    ("\\frac{1}{2}", "0.5", True, True),
    ("\\frac{1}{2}", "\\frac{2}{4}", False, True),
    ("\\frac{639}{40}", "15.975", False, True),
    ("10,\\!080", "10080", False, True),
    ("1{,}234", "1,234", False, True),
    ("x^2 + 1", "1 + x^2", False, True),
    ("4(3-x)(3+x)", "36 - 4x^2", False, True),
    ("2\\sqrt{3} - 2", "-2 + 2\\sqrt3", False, True),
    ("1\\frac{12}{13}", "\\frac{25}{13}", False, True),
    ("7,9,12,13", "13, 12, 9, 7", False, True),
    ("[2,5)", "\\left[2, 5\\right)", True, True),
    ("(-\\infty,0)\\cup (0,\\infty)", "(-\\infty, 0) \\cup (0, \\infty)", True, True),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", True, True),
    ("\\text{Tuesday}", "Tuesday", False, True),
    ("\\frac{68}{3}\\text{ pounds}", "\\frac{68}{3}", True, True),
    ("5\\text{ inches}", "5", True, True),
    ("45^\\circ", "45", True, True),
    ("\\$76.80", "76.8", False, True),
    ("36", "36\\%", True, True),
    ("x = 9", "9", True, True),
    ("9", "x = 9", True, True),
    ("18", "that there are 18 eggs", False, True),
    ("\\frac{1}{3}", "0.33", False, False),
    ("18", "19", False, False),
    ("18", "-18", False, False),
    ("(1,4)", "(4,1)", False, False),
    ("[2,5)", "(2,5)", False, False),
    ("(1,5)", "1.5", False, False),
    ("\\pi", "3.14", False, False),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}", False, False),
    ("\\text{Tuesday}", "Monday", False, False),
    ("5", "5 \\text{ or } 6", True, False),
    ("x^2", "\\frac{", False, None),
    ("5", "\\boxed{", False, None),
]


def test_two_judges_say_whether_two_answers_are_the_same():
    verdicts = same_values([(as_formula(reference), as_formula(answer)) for reference, answer, _, _ in PAIRS])
    strings = [same_string(reference, answer) for reference, answer, _, _ in PAIRS]
    found = [(*pair[:2], string, value) for pair, string, value in zip(PAIRS, strings, verdicts, strict=True)]
    assert found == PAIRS


@pytest.mark.parametrize(
    ("answer", "formula"),
    [
        ("\\frac{1}{2}", "$\\frac{1}{2}$"),
        ("Tuesday", "$Tuesday$"),
        ("\\$18.90", "$\\$18.90$"),
        ("$3$ and $4$", "$3$ and $4$"),
        ("that there are 18 eggs", "that there are 18 eggs"),
        ("5\\text{ all of them}", "$5\\text{ all of them}$"),
    ],
)
def test_an_answer_is_put_between_dollars_unless_it_is_a_sentence(answer, formula):
    assert as_formula(answer) == formula


HOSTILE = [
    "9^{9^{9^{9^{9}}}}",
    "\\sqrt{" * 400 + "2" + "}" * 400,
    "(" * 5000,
    "\\int_0^1 x^x dx",
    "\x00",
    "é" * 9999,
]


@pytest.mark.slow
def test_hostile_answers_end_at_their_time_limit_and_cost_no_later_verdict():
    pairs = []
    for number, answer in enumerate(HOSTILE):
        pairs += [("$2$", f"${answer}$"), (f"${number}$", f"${number}$"), (f"${number}$", f"${number + 1}$")]
    verdicts = same_values(pairs, seconds=2, workers=1)
    assert not any(verdicts[::3])
    assert verdicts[1::3] == [True] * len(HOSTILE) and verdicts[2::3] == [False] * len(HOSTILE)


def test_a_worker_whose_starter_is_gone_ends_by_itself():
    worker = subprocess.Popen(
        [sys.executable, "-m", "eval.answers.latex_worker", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert worker.stdout.readline() == b"ready\n"
    worker.stdin.write(json.dumps(["$1$", f"${HOSTILE[0]}$", True]).encode() + b"\n")
    worker.stdin.flush()
    assert worker.wait(timeout=30) == -signal.SIGALRM
    worker.stdin.close()
    worker.stdout.close()


def test_verdicts_come_in_order_from_several_processes_and_off_the_main_thread():
    pairs = [(f"${number}$", f"${number % 3}$") for number in range(12)]
    found = []
    thread = threading.Thread(target=lambda: found.extend(same_values(pairs, workers=2)))
    thread.start()
    thread.join()
    assert found == [number < 3 for number in range(12)]


def test_another_version_of_math_verify_is_refused(monkeypatch):
    monkeypatch.setattr("eval.answers.latex.VERSION", "0.8.0")
    with pytest.raises(UserError, match=r"math-verify 0\.9\.0 is installed, and MATH needs 0\.8\.0; pip install"):
        same_values([("$1$", "$1$")])


def test_the_version_of_math_verify_is_the_one_that_the_requirements_pin():
    pinned = re.search(r"^math-verify\S*==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert pinned == VERSION


def test_no_pairs_need_no_process():
    assert same_values([]) == []
