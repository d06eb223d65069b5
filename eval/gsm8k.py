"""GSM8K: grade-school word problems, scored by the final number (Cobbe et al. 2021, arXiv 2110.14168).

Protocol "ba-lora": the training prompt with the question as instruction, no examples, greedy decoding to the
end-of-sequence token; the answer as read by `eval.answers.numeric.extract_answer` must equal the reference exactly. Protocol
"upstream" changes only the reading. Protocol "lm-eval" is lm-evaluation-harness' task gsm8k: five examples
(`eval.answers.lm_eval`), the score of its strict-match, and its flexible-extract in `score_flexible`. The metric is the
fraction of all tasks that are right; a completion without an answer is wrong, and is counted in `n_unparsable`.
"""

from collections import Counter
from functools import partial

from ba_lora.data.sources import generated_rows, is_generated, read_table
from ba_lora.data.tinymath import SPLITS
from ba_lora.errors import UserError, run_cli

from .answers import lm_eval
from .answers.evaluate import Answers, benchmark_of, count_truncated, scored_line, summarise_problems
from .answers.numeric import PROTOCOLS as READINGS
from .answers.numeric import extract_answer, parse_number, same_answer
from .harness.command import run
from .harness.lines import check_field, task_id, written

LM_EVAL = "lm-eval"
PROTOCOLS = READINGS | {LM_EVAL: "1"}  # name → version
TINYMATH = "tinymath"  # the benchmark's name on generated problems
# On these, version 3 of the reader gave 5,500 answers of the embedded model the verdicts of version 2 (docs/LOG.md, 2026-11-28),
# so new scores stay comparable with those in results/.
VERSIONS = {"gsm8k": PROTOCOLS, TINYMATH: PROTOCOLS | {"ba-lora": "2"}}
MAX_NEW_TOKENS = 512  # lm-eval has its own limit
GSM8K = "openai/gsm8k:main"  # on the hub
TINYMATH_PROBLEMS = 500  # default --limit for a generated split

EXAMPLES = """\
examples:
  the embedded model on 500 generated problems, one minute on a laptop
    python -m eval.gsm8k --model tiny --output_dir runs/tiny/eval/tinymath
  a training run on GSM8K (test.jsonl of github.com/openai/grade-school-math)
    python -m eval.gsm8k --model runs/ba-lora --data test.jsonl --output_dir runs/ba-lora/eval/gsm8k
  an adapter on its base model, the first 50 problems, in bfloat16
    python -m eval.gsm8k --model BASE --adapter ADAPTER --data test.jsonl --limit 50 --dtype bfloat16 --output_dir out
  a base model with five examples, as in lm-evaluation-harness
    python -m eval.gsm8k --model BASE --protocol lm-eval --data test.jsonl --shots_data train.jsonl --output_dir out
  the same completions read as the published code reads them; no model
    python -m eval.gsm8k --rescore out/generations.jsonl --protocol upstream --output_dir out-upstream

--data: a file with the fields question and answer (GSM8K's own, or any whose answers end in "#### N" or "The answer is: N"),
or a generated split, tinymath:SPLIT or tinymath:SPLIT:SEED with SPLIT one of {splits}.
--max_new_tokens: default 512, and 256 for lm-eval."""


def default_data(base: str) -> str:
    """Return the default data: generated problems for the embedded model, GSM8K's test split for any other."""
    return "tinymath:test" if base == "tiny" else GSM8K


def load_problems(data: str, limit: int | None = None) -> list[dict]:
    """Return [{"id", "question", "reference"}] of a file or a generated split ("tinymath:test"), the first `limit`.

    The id is the record's own, else its index from 0. Raises UserError naming the row that lacks a field or a number, or a
    duplicate id.
    """
    if is_generated(data):
        records = generated_rows(data, limit or TINYMATH_PROBLEMS)
    else:
        records = [record for _, record in read_table(data, split="test", limit=limit).rows]
    for row, record in enumerate(records, 1):
        for field in ("question", "answer"):
            if field not in record:
                raise UserError(f"{data}, row {row} has no field '{field}' (it has: {', '.join(record)})")
        if not isinstance(record["question"], str):
            raise UserError(f"{data}, row {row}: 'question' is {record['question']!r}, a text is needed")
        read_reference(record["answer"], f"{data}, row {row}")
        check_field(record, "id", "a text or a number", f"{data}, row {row}")
    ids = [task_id(record.get("id", index)) for index, record in enumerate(records)]
    if twice := [key for key, count in Counter(map(str, ids)).items() if count > 1]:
        raise UserError(f"{data}: id {twice[0]} stands for more than one row; give every row an id of its own, or none")
    return [
        {"id": key, "question": record["question"], "reference": written(record["answer"])}
        for key, record in zip(ids, records, strict=True)
    ]


def read_reference(reference, place: str) -> str:
    """Return the number of a reference: bare, after the last "####", or after the last "The answer is"."""
    check_field({"answer": reference}, "answer", "a text or a number", place)
    text = str(reference)
    answer = extract_answer(text) if "####" in text or "answer is" in text.lower() else text.strip()
    if len(answer or "") > 40 or parse_number(answer or "") is None:
        raise UserError(f"{place}: no number in the reference {text[:60]!r}; it must be one, or end in '#### N'")
    return answer


def score_records(records: list[dict], protocol: str = "ba-lora", benchmark: str = "gsm8k") -> tuple[dict, list[dict]]:
    """Score records of {"id", "completion", "reference"} → (the statistics of score.json, the lines of scored.jsonl).

    benchmark: see `name_of`.
    """
    answers = [read_answer(record["completion"], protocol) for record in records]
    references = [read_reference(record["reference"], f"id {record['id']}") for record in records]
    same = lm_eval.same_gsm8k if protocol == LM_EVAL else same_answer
    scored = [
        scored_line(record, answer=answer, correct=answer is not None and same(answer, reference))
        for record, answer, reference in zip(records, answers, references, strict=True)
    ]
    statistics = summarise_problems(scored) | {
        "n_unparsable": answers.count(None),
        "n_truncated": count_truncated(records),
        "protocol": protocol,
        "protocol_version": VERSIONS[benchmark][protocol],
    }
    if protocol == LM_EVAL:
        flexible = [lm_eval.read_flexible(record["completion"]) for record in records]
        hits = [lm_eval.same_gsm8k(a, r) for a, r in zip(flexible, references, strict=True)]
        statistics["score_flexible"] = sum(hits) / len(hits)
    return statistics, scored


def read_answer(completion: str, protocol: str) -> str | None:
    """Return the answer of a completion, as the protocol reads it; None if it has none."""
    return lm_eval.read_strict(completion) if protocol == LM_EVAL else extract_answer(completion, protocol)


def name_of(data: str | None) -> str:
    """Return the benchmark's name on this data."""
    return TINYMATH if is_generated(data or "") else "gsm8k"


ANSWERS = Answers(LM_EVAL, lm_eval.GSM8K, MAX_NEW_TOKENS, load_problems, default_data, score_records, name_of)
BENCHMARK = benchmark_of(ANSWERS, "eval.gsm8k", __doc__, EXAMPLES.format(splits=", ".join(SPLITS)), PROTOCOLS)
main = partial(run, BENCHMARK)


if __name__ == "__main__":
    run_cli(main)
