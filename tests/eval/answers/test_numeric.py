"""Where a completion states its answer, under both protocols."""

import json
import os
import random
from fractions import Fraction
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from eval.answers.numeric import PROTOCOLS, extract_answer, parse_number, same_answer, same_number
from eval.gsm8k import score_records
from tests.eval.answers.growth import assert_linear

# (completion, what protocol ba-lora reads, what protocol upstream reads)
COMPLETIONS = [
    ("She has 6 * 3 = 18 eggs.\nThe answer is: 18", 18, 18),
    (" 6 * 3 = 18. The answer is: 18.", 18, 18),
    ("The answer is 18", 18, None),
    ("the answer is: 18", 18, None),
    ("THE ANSWER IS 18!", 18, None),
    ("The final answer is 18.", 18, None),
    ("The answer is:\n18", 18, None),
    ("The answer is: $18 a day", 18, 18),
    ("The answer is: 1,234,567", 1234567, 1234),
    ("The answer is: 1,234", 1234, 1234),
    ("The answer is: 18.4", "92/5", 18),
    ("The answer is: 18.6", "93/5", 19),
    ("The answer is: 2.5", "5/2", 2),
    ("The answer is: -7", -7, -7),
    ("The answer is: \u22127", -7, 7),
    ("The answer is: 1/2", "1/2", 0),
    ("The answer is: 7/2", "7/2", 4),
    ("The answer is: 5/0", None, 5),
    ("The answer is: 50%", 50, 50),
    ("The answer is: 1 1/2", "3/2", 1),
    ("The answer is: \\boxed{18}", 18, 18),
    ("The answer is: \\frac{1}{2}", "1/2", 1),
    ("The answer is: **18**", 18, 18),
    ("The answer is: 6 * 3 = 18", 18, 6),
    ("The answer is: x = 18", 18, 18),
    ("The answer is: 18, because 6 * 3 = 20 - 2", 18, 18),
    ("The answer is: Rs 500", 500, 500),
    ("The answer is that 18 eggs are left", 18, None),
    ("The answer is: 5. No, wait.\nThe answer is: 6", 6, 6),
    ("The answer is: 18\nThe answer is: 18\nThe answer is", 18, 18),
    ("The answer is: 18. The answer is right since 3 ducks lay 6.", 18, 18),
    ("The answer is: 18\nQuestion: Tom has 3 eggs.\nAnswer: The answer is: 3", 18, 3),
    ("The answer is: 18 Question: Tom has 3 eggs. The answer is: 3", 18, 3),
    ("The answer is: 18\n\n### Instruction:\nCount.\n\n### Response: The answer is: 3", 18, 3),
    ("#### 18\n\nQ: Tom has 3 eggs.\nA: 3\n#### 3", 18, None),
    ("Question: 6 boxes of 3 eggs?\nAnswer: The answer is: 18", 18, 18),
    ("#### 18", 18, None),
    ("6 * 3 = 18\n####18", 18, None),
    ("#### $1,200.50", "2401/2", None),
    ("#### -10", -10, None),
    ("#### 18\nThe answer is: 3", 18, 3),
    ("The answer is: 3\n#### 18", 18, 3),
    ("#### Step 1\n6 * 3 = 18\n#### Step 2\nThe answer is: 18", 18, 18),
    ("#### unknown\nThe answer is: 18", 18, 18),
    ("So $\\boxed{18}$ is left of 20.", 18, None),
    ("\\boxed{3}, or rather \\boxed{18}", 18, None),
    ("\\boxed{\\frac{1}{2}}", "1/2", None),
    ("\\boxed{\\text{all of the } 18}", 18, None),
    ("\\boxed{x = 18}", 18, None),
    ("\\boxed{18", 18, None),
    ("The answer is \\boxed{18}, out of 20", 18, None),
    ("6 * 3 = 18", 18, None),
    ("He has 5 and buys 13, so 18.", 18, None),
    ("It is 18\nQuestion: Tom has 3 eggs.", 18, None),
    ("I do not know.", None, None),
    ("The answer is: none", None, None),
    ("", None, None),
    ("The answer is: " + "9" * 5000, None, None),
    # thousands
    ("The answer is: 12,345.67", "1234567/100", 12345),
    ("The answer is: 1{,}234", 1234, 1),
    ("The answer is: 1\\,234", 1234, 1),
    ("The answer is: 1\u00a0234", 1234, 1),
    ("The answer is: 10,000 steps", 10000, 10000),
    ("The answer is: 100,00", 100, 10000),
    ("The answer is: 1,000,000", 1000000, 1000),
    ("#### 2,125", 2125, None),
    ("#### 1,234,567.89", "123456789/100", None),
    # units
    ("The answer is: 18 eggs", 18, 18),
    ("The answer is: 3.5 hours", "7/2", 4),
    ("The answer is: 2.5kg", "5/2", 2),
    ("The answer is: 60mph", 60, 60),
    ("The answer is: 45°", 45, 45),
    ("The answer is: 12 cm^2", 12, 12),
    ("The answer is: 7 \\text{ apples}", 7, 7),
    ("#### 7 \\text{ apples}", 7, None),
    # percent
    ("The answer is: 12.5%", "25/2", 12),
    ("The answer is: 50\\%", 50, 50),
    ("The answer is: $50\\%$", 50, 50),
    ("The answer is: 150 percent", 150, 150),
    ("#### 0.5%", "1/2", None),
    # currency
    ("The answer is: $0.75", "3/4", 1),
    ("The answer is: $0.50", "1/2", 0),
    ("The answer is: $1,234.50 per month", "2469/2", 1234),
    ("The answer is: \\$20", 20, 20),
    ("The answer is: -$5", -5, 5),
    ("The answer is: $ 18", 18, 18),
    ("The answer is: £12.50", "25/2", 12),
    ("The answer is: 20 dollars", 20, 20),
    ("The answer is: USD 20", 20, 20),
    ("The answer is: 99¢", 99, 99),
    # fractions
    ("The answer is: 3/4", "3/4", 1),
    ("The answer is: -3/4", "-3/4", -1),
    ("The answer is: 5/8 of the cake", "5/8", 1),
    ("The answer is: \\frac{3}{4}", "3/4", 3),
    ("The answer is: \\dfrac{10}{4}", "5/2", 10),
    ("The answer is: \\tfrac34", "3/4", 34),
    ("The answer is: ¾", "3/4", None),
    ("The answer is: 1/3 + 1/6 = 1/2", "1/2", 0),
    # mixed numbers
    ("The answer is: 2 3/4", "11/4", 2),
    ("The answer is: 2 and 1/2", "5/2", 2),
    ("The answer is: 2½", "5/2", 2),
    ("The answer is: 2\\frac{1}{2}", "5/2", 2),
    ("The answer is: -1 1/2", "-3/2", -1),
    ("#### 3 1/3", "10/3", None),
    # several numbers
    ("The answer is: 3 and 5", 3, 3),
    ("The answer is: 4 boys and 6 girls", 4, 4),
    ("The answer is: between 10 and 20", 10, 10),
    ("The answer is: 10 - 7 = 3", 3, 10),
    ("The answer is: 5 * $4 = $20", 20, 5),
    ("The answer is: 2^3 = 8", 8, 2),
    ("The answer is: 2 hours 30 minutes", 2, 2),
    ("the answer is 18 eggs and the price is 36", 18, None),
    # repetition after the answer
    ("The answer is: 18. The answer is: 18. The answer is: 18. The answer", 18, 18),
    ("The answer is: 18\n18\n18\n18", 18, 18),
    ("#### 18\n#### 18\n#### 18\n####", 18, None),
    ("The answer is: 18\n### Response:\nThe answer is: 20", 18, 20),
    ("The answer is: 18\n<|im_start|>user\nNext.\nThe answer is: 20", 18, 20),
    ("The answer is: 18 [INST] Next. [/INST] The answer is: 20", 18, 20),
    ("The answer is: 18\n\nProblem 2: 4 + 4?\nThe answer is: 8", 18, 8),
    ("The answer is: 18\n\n\n\n", 18, 18),
    # truncation
    ("The answer is:", None, None),
    ("The answer is: $", None, None),
    ("The answer is: -", None, None),
    ("The answer is: .", None, None),
    ("The answer is: \\boxed{18", 18, 18),
    ("The answer is: 1,23", 1, 123),
    ("#### ", None, None),
    ("6 * 3 = 18. The answer", 18, None),
    ("She has 6 * 3 =", 3, None),
    # text
    ("The answer is: eighteen", None, None),
    ("The answer is: yes, 18", 18, 18),
    ("The answer is: A) 18", 18, 18),
    ("The answer is: Monday the 3rd", 3, 3),
    # marks around numbers
    ("**The answer is: 18**", 18, 18),
    ("The answer is: `18`", 18, 18),
    ("The answer is: $18$", 18, 18),
    ("The answer is: \\(18\\)", 18, 18),
    ("The answer is: \\[18\\]", 18, 18),
    ("The answer is: \\text{18}", 18, 18),
    ("The answer is: (18)", 18, 18),
    ("$$\\boxed{18}$$", 18, None),
    # other spellings
    ("The answer is: 1e3", 1000, 1),
    ("The answer is: 1.5e3", 1500, 2),
    ("The answer is: 007", 7, 7),
    ("The answer is: +18", 18, 18),
    ("The answer is:18", 18, None),
    ("The answer is : 18", 18, None),
    ("Answer: 18", 18, None),
    # numbered headings
    ("#### **1. Cost**\n3*5=15\n#### **2. Tax**\n15+1=16\nThe answer is 16.", 16, None),
    ("#### (1) Cost\n3*5=15\n#### (2) Tax\n15+1=16\n#### 16", 16, None),
    ("#### 1 - Cost\n3*5=15\n#### 2 - Tax\n15+1=16\nFinal answer: 16", 16, None),
    ("#### 1: Cost\n3*5=15\n#### 2: Tax\n15+1=16", 16, None),
    ("#### 1.1 Cost\n3*5=15\n#### 1.2 Tax\n15+1=16\nSo \\boxed{16}.", 16, None),
    ("##### 1. Cost\n3*5=15\nSo \\boxed{15}.", 15, None),
    ("### 1. Cost\n3*5=15\n#### 2. Tax\n15+1=16\nThe answer is 16.", 16, None),
    ("3*6=18\n#### 18. Enjoy!\nShe keeps 3.", 18, None),
    ("#### 1. One egg is left.", 1, None),
    ("6*3=18\n#### 18.\nThat is 3 times 6.", 18, None),
    ("#### 18 eggs\nNote: 3 ducks.", 18, None),
    ("#### 1) Cost\n4*4=16\nSo \\boxed{16}", 16, None),
    # equations
    ("The answer is 5 apples + 3 apples = 8 apples.", 8, None),
    ("\\boxed{5 \\text{ apples} + 3 \\text{ apples} = 8 \\text{ apples}}", 8, None),
    ("\\boxed{\\text{Total cost} = 18 \\text{ dollars}}", 18, None),
    ("The answer is 6 boxes x 3 eggs = 18 eggs.", 18, None),
    ("The answer is 50% of 36 = 18.", 18, None),
    ("The answer is: Total cost = $5 + $13 = $18", 18, 5),
    ("The answer is 18 = 6 * 3.", 18, None),
    ("The answer is 18 eggs because 20 eggs - 2 eggs = 18 eggs", 18, None),
    ("The answer is 18 eggs, since each box = 6 eggs", 18, None),
    ("\\boxed{T_{1} = 18}", 18, None),
    ("\\boxed{x_{12} = -4}", -4, None),
    ("\\boxed{f(3) = 18}", 18, None),
    ("#### x_2 = 7", 7, None),
    ("\\boxed{3 - 8 = - 5}", -5, None),
    ("The answer is 3 apples/day * 6 days = 18 apples", 18, None),
    ("The answer is $3 \\times 6 = 18$.", 18, None),
    ("The answer is: 3 times 6 equals 18", 18, 3),
    ("Final answer = $42. (There are 3 left.)", 42, None),
    ("Answer: 6 * 3 = 18\nThen 18 + 2 = 20.", 20, None),
    ("Let us find the final answer:\n6 * 3 = 18\n18 + 2 = 20", 20, None),
    ("The answer is 3 dozen = 36", 3, None),
    ("The answer is total = 3 dozen = 36", 36, None),
    ("The answer is that Mr. Gray had 50 and sold 43, so he has 50 - 43 = 7 left.", 7, None),
    ("The answer is about 18 eggs since each box = 6 eggs.", 18, None),
    ("The answer is: 18. The answer is right since 3 * 6 = 20 - 2.", 18, 18),
    ("Our final answer is the product of 6 and 3, which is \\boxed{18}.", 18, None),
    ("#### Cost: 3 * 5 = 15\n15 + 1 = 16\nThe answer is 16.", 16, None),
    # abbreviations
    ("The answer is Rs. 50 for 3 items.", 50, None),
    ("The answer is approx. 50 km in 3 hours.", 50, None),
    ("The answer is Rs.50 for 3 items.", 50, None),
    ("The answer is No. 5 of 7.", 5, None),
    ("The answer is, e.g. 50 km in 3 hours", 50, None),
    ("The answer is ca. 50 km. It takes 3 hours.", 50, None),
    ("The answer is U.S. $50 for 3 items", 50, None),
    ("The answer is about 50 km/hr. It takes 3 hours.", 50, None),
    # an afterthought
    ("**Final Answer:** 42\n\nNote that 3 eggs are left over.", 42, None),
    ("Answer: 42\n\nNote that 3 eggs are left over.", 42, None),
    ("**Answer:** 42 eggs\n\n(3 are left over)", 42, None),
    ("### Final Answer\n42\n\nNote that 3 eggs are left.", 42, None),
    ("### Final Answer\n\\[\n\\boxed{42}\n\\]\nNote that 3 eggs are left.", 42, None),
    ("My final answer is 42. I used 3 steps.", 42, None),
    ("The correct answer is 42, and 3 are left.", 42, None),
    ("Answer: She has 6 boxes of 3 eggs, so 18.", 18, None),
    ("**Answer: $18**", 18, None),
    ("Answer: \\$18 per day.\nThat is 3 times 6.", 18, None),
    ("The answer is: 18\nAnswer: 3", 18, 18),
    # spellings where they are stated
    ("\\boxed{- 5}", -5, None),
    ("The answer is 2.5 million dollars.", 2500000, None),
    ("#### $50k", 50000, None),
    ("\\boxed{3\\text{ thousand}}", 3000, None),
    ("The answer is $1.2 billion", 1200000000, None),
    ("The answer is 2 dozen eggs", 2, None),
    ("The answer is 2 lakh rupees", 200000, None),
    ("The answer is \\(-\\frac{3}{4}\\)", "-3/4", None),
    ("The answer is:\n\\[\n-5\n\\]", -5, None),
    ("The answer is \u22125.", -5, None),
    ("\\boxed{\u20115}", -5, None),
    ("#### \u2013½", "-1/2", None),
    ("#### 12\u2009345", 12345, None),
    ("The answer is 1'234'567.", 1234567, None),
    ("The answer is ₹1,00,00,000.", 10000000, None),
    ("The answer is 3 × 10⁴ km", 30000, None),
    ("The answer is $2 \\cdot 10^{-2}$", "1/50", None),
    ("The answer is 10^6.", 1000000, None),
    ("\\boxed{\\frac 12}", "1/2", None),
    ("\\boxed{\\frac{-3.5}{2}}", "-7/4", None),
    ("\\boxed{-\\dfrac{1}{2}}", "-1/2", None),
    ("\\boxed{{-}\\frac{1}{2}}", "-1/2", None),
    ("\\boxed{18}. Put it in \\boxed{...}", 18, None),
    ("The answer is 18 m. Each of the 3 is 6 m.", 18, None),
    ("\\boxed{2 \\text{ and } \\frac{1}{2}}", "5/2", None),
    ("The answer is 5:30", 5, None),
    ("The answer is 18 (= 6 * 3).", 18, None),
    ("The answer is 10/3 ≈ 3.33", "10/3", None),
    ("The total is 3(5)+3=18. \\boxed{\\$18.00}", 18, None),
]


def fraction(value):
    return None if value is None else Fraction(value)


@pytest.mark.parametrize(("completion", "ours", "theirs"), COMPLETIONS, ids=[repr(row[0])[:40] for row in COMPLETIONS])
def test_each_protocol_reads_its_answer_from_a_completion(completion, ours, theirs):
    answers = [extract_answer(completion, protocol) for protocol in ("ba-lora", "upstream")]
    assert [None if answer is None else parse_number(answer) for answer in answers] == [
        fraction(ours),
        fraction(theirs),
    ]


@pytest.mark.parametrize(
    ("a", "b"), [("18", "18.0"), ("1/2", "0.5"), ("1,000", "$1000"), ("1 1/2", "1.50"), ("-7", "\u22127")]
)
def test_two_ways_of_writing_a_number_are_the_same_number(a, b):
    assert same_number(a, b)


@pytest.mark.parametrize(("a", "b"), [("18", "18.4"), ("18", "-18"), ("0.33", "1/3"), ("none", "none"), ("", "18")])
def test_different_numbers_and_no_numbers_are_not_the_same(a, b):
    assert not same_number(a, b)


def test_an_unknown_protocol_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'upstream'"):
        extract_answer("18", "upstraem")


def test_a_million_may_be_a_unit_of_the_question_and_no_other_factor_is_left_out():
    pairs = [("60 million", "60"), ("60 million", "60000000"), ("$2k", "2"), ("60", "60 million"), ("60 million", "6")]
    assert [same_answer(*pair) for pair in pairs] == [True, True, True, False, False]
    score, _ = score_records([{"id": 0, "completion": "#### 60 million", "reference": "4*15 = $60 million\n#### 60"}])
    assert score["score"] == 1


DEGENERATE = ["1", "1,", "1 ", "\\boxed{", "= 1 ", "The answer is ", "####", "Question: "]
DEGENERATE += ["#### 1. a 1\n", "Final answer: ", "Answer: 1 a\n", "\\boxed{a + 1 = ", "1 a + ", "Rs. "]


@pytest.mark.parametrize("piece", DEGENERATE)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_work_for_a_degenerate_completion_is_proportional_to_its_length(piece, protocol):
    assert_linear(lambda text: extract_answer(text, protocol), piece)


# The real GSM8K test file: gold answers must score 1.


@pytest.fixture(scope="module")
def gold():
    """[(solution without its last line, last number as written)] for GSM8K's 1,319 test problems."""
    folder = os.environ.get("BA_LORA_DATA")
    if not folder:
        pytest.skip("needs GSM8K's test.jsonl: set BA_LORA_DATA to a folder with gsm8k/test.jsonl")
    with open(Path(folder) / "gsm8k" / "test.jsonl", encoding="utf-8") as file:
        return [tuple(json.loads(line)["answer"].split("#### ")) for line in file]


def scores(completions, references, protocol="ba-lora"):
    records = [
        {"id": number, "completion": completion, "reference": reference}
        for number, (completion, reference) in enumerate(zip(completions, references, strict=True))
    ]
    return score_records(records, protocol)[0]


FORMS = {
    "hashes": "{0}#### {1}",
    "phrase": "{0}The answer is: {1}",
    "boxed": "{0}That makes $\\boxed{{{1}}}$.",
    "phrase, then another question": "{0}The answer is: {1}\n\nQuestion: How many are 2 and 2?\nAnswer: The answer is: 4",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reference", ["{0}#### {1}", "{1}"], ids=["whole solution", "bare number"])
def test_gsm8k_gold_solutions_score_exactly_one(gold, form, reference):
    score = scores([FORMS[form].format(*pair) for pair in gold], [reference.format(*pair) for pair in gold])
    assert (score["score"], score["n"], score["n_unparsable"]) == (1.0, 1319, 0)


def test_gsm8k_gold_with_shuffled_references_scores_near_zero(gold):
    references = [number for _, number in gold]
    random.Random(0).shuffle(references)
    assert scores([FORMS["hashes"].format(*pair) for pair in gold], references)["score"] < 0.1


def test_upstream_loses_exactly_the_gold_answers_above_a_million(gold):
    score = scores([FORMS["phrase"].format(*pair) for pair in gold], [number for _, number in gold], "upstream")
    large = sum(number.count(",") > 1 for _, number in gold)
    assert large and score["n_correct"] == 1319 - large
