"""GSM8K: grade-school word problems, scored by the final number (Cobbe et al. 2021, arXiv 2110.14168).

Protocol "ba-lora": the training prompt with the question as instruction, no examples, greedy decoding to the
end-of-sequence token; the answer as read by `eval.answers.numeric.extract_answer` must equal the reference exactly. Protocol
"upstream" changes only the reading. Protocol "lm-eval" is lm-evaluation-harness' task gsm8k: five examples
(`eval.answers.lm_eval`), the score of its strict-match, and its flexible-extract in `score_flexible`. The metric is the
fraction of all tasks that are right; a completion without an answer is wrong, and is counted in `n_unparsable`.
"""

import argparse
from collections import Counter
from pathlib import Path

from ba_lora.data.formats import question
from ba_lora.data.instruction import encode_prompt
from ba_lora.data.sources import read_table, tinymath_rows
from ba_lora.data.templates import end_id, turns
from ba_lora.data.tinymath import SPLITS
from ba_lora.errors import UserError, run_cli
from ba_lora.inference.subject import find_base

from .answers import lm_eval
from .answers.numeric import PROTOCOLS as READINGS
from .answers.numeric import extract_answer, parse_number, same_number
from .harness.lines import check_field, count_missing, read_lines, task_id, written
from .harness.options import add_options, output_folder
from .harness.scores import SCORE, facts_beside, summarise, write_score

LM_EVAL = "lm-eval"
PROTOCOLS = READINGS | {LM_EVAL: "1"}  # name → version
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
    if data.startswith("tinymath:"):
        records = tinymath_rows(data, limit or TINYMATH_PROBLEMS)
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


def generate_answers(model, tokenizer, template, problems, *, max_new_tokens, batch_size, progress=True) -> list[dict]:
    """Ask an open model every problem, in order → records as returned by `ask`."""
    from ba_lora.inference.local import generate

    prompts = [encode_prompt(tokenizer, template, problem["question"]) for problem in problems]
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
    completions = generate(prompts, model=model, tokenizer=tokenizer, end=end_id(tokenizer, template), **options)
    return [
        {
            "id": problem["id"],
            "prompt": turns(template, tokenizer, question(problem["question"]))[0],
            "completion": completion.text,
            "reference": problem["reference"],
            "finish_reason": completion.finish_reason,
            "tokens": completion.tokens,
        }
        for problem, completion in zip(problems, completions, strict=True)
    ]


def score_records(records: list[dict], protocol: str = "ba-lora") -> tuple[dict, list[bool]]:
    """Score records of {"id", "completion", "reference"} → (the statistics of score.json, whether each is right).

    Several samples of a problem count as their mean. `n_truncated` counts completions that were cut at the token limit; it is
    None if no record says how it ended.
    """
    answers = [read_answer(record["completion"], protocol) for record in records]
    references = [read_reference(record["reference"], f"id {record['id']}") for record in records]
    same = lm_eval.same_gsm8k if protocol == LM_EVAL else same_number
    correct = [a is not None and same(a, r) for a, r in zip(answers, references, strict=True)]
    by_problem: dict[str, list[bool]] = {}
    for record, right in zip(records, correct, strict=True):
        by_problem.setdefault(str(record["id"]), []).append(right)
    ends = [record.get("finish_reason") for record in records]
    statistics = summarise([sum(rights) / len(rights) for rights in by_problem.values()]) | {
        "n_unparsable": answers.count(None),
        "n_truncated": ends.count("length") if any(ends) else None,
        "protocol": protocol,
        "protocol_version": PROTOCOLS[protocol],
    }
    if protocol == LM_EVAL:
        flexible = [lm_eval.read_flexible(record["completion"]) for record in records]
        hits = [lm_eval.same_gsm8k(a, r) for a, r in zip(flexible, references, strict=True)]
        statistics["score_flexible"] = sum(hits) / len(hits)
    return statistics, correct


def read_answer(completion: str, protocol: str) -> str | None:
    """Return the answer of a completion, as the protocol reads it; None if it has none."""
    return lm_eval.read_strict(completion) if protocol == LM_EVAL else extract_answer(completion, protocol)


def ask(args: argparse.Namespace, folder) -> tuple[list[dict], dict]:
    """Run the first step: generate, write generations.jsonl → (its records, how they were generated)."""
    data = args.data or default_data(find_base(args.model, args.adapter))
    return lm_eval.ask_with_examples(args, folder, lm_eval.GSM8K, LM_EVAL, load_problems(data, args.limit), data)


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when everything requested is written; raises UserError otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.gsm8k",
        description=__doc__,
        epilog=EXAMPLES.format(splits=", ".join(SPLITS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, PROTOCOLS, max_new_tokens=None)
    lm_eval.add_option(parser, lm_eval.GSM8K)
    args = parser.parse_args(argv)
    if args.max_new_tokens is None:
        args.max_new_tokens = lm_eval.GSM8K.max_new_tokens if args.protocol == LM_EVAL else MAX_NEW_TOKENS
    with output_folder(args, PROTOCOLS) as folder:
        return _evaluate(args, folder)


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    """Generate if necessary, then score."""
    lm_eval.check_option(args, LM_EVAL)
    if args.rescore:
        records = read_lines(args.rescore, ("id", "completion", "reference"), args.limit)
        facts = facts_beside(args.rescore)
        known = [problem["id"] for problem in load_problems(args.data, args.limit)] if args.data else None
        facts["data"] = args.data or facts.get("data")
    else:
        records, facts = ask(args, folder)
        known = [record["id"] for record in records]
    missing = count_missing(records, known, args.rescore)
    statistics, correct = score_records(records, args.protocol)
    benchmark = "tinymath" if (facts["data"] or "").startswith("tinymath:") else "gsm8k"
    score = {"benchmark": benchmark, "metric": "accuracy", **statistics, "missing": missing, "rescored": args.rescore}
    scored = [
        {name: record[name] for name in ("id", "sample") if name in record}
        | {"answer": read_answer(record["completion"], args.protocol), "correct": right}
        for record, right in zip(records, correct, strict=True)
    ]
    write_score(folder, score | {"shots_data": args.shots_data}, facts, scored)
    low, high = (100 * bound for bound in statistics["interval"])
    print(
        f"{benchmark} {100 * statistics['score']:.2f}% of {statistics['n']} (95% {low:.1f} to {high:.1f}) → {folder / SCORE}"
    )
    return 0


if __name__ == "__main__":
    run_cli(main)
