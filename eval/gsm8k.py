"""GSM8K: grade-school word problems, scored by the final number (Cobbe et al. 2021, arXiv 2110.14168).

Protocol "ba-lora": the training prompt with the question as instruction, no examples, greedy decoding to the
end-of-sequence token; the answer as `eval.answers.extract_answer` reads it must equal the reference exactly. Protocol
"upstream" changes the reading only. The metric is the fraction of all tasks that are right; a completion without an answer
is wrong, and counted in `n_unparsable`.
"""

import argparse
import time
from collections import Counter

from ba_lora.data.formats import question
from ba_lora.data.instruction import encode_prompt
from ba_lora.data.sources import read_table, tinymath_rows
from ba_lora.data.templates import end_id, turns
from ba_lora.data.tinymath import SPLITS
from ba_lora.errors import UserError, run_cli

from . import common
from .answers import PROTOCOLS, extract_answer, parse_number, same_number

GSM8K = "openai/gsm8k:main"  # on the hub
TINYMATH_PROBLEMS = 500  # of a generated split, unless --limit says otherwise

EXAMPLES = """\
examples:
  the embedded model on 500 generated problems, a minute on a laptop
    python -m eval.gsm8k --model tiny --output_dir runs/tiny/eval/tinymath
  a training run on GSM8K (test.jsonl of github.com/openai/grade-school-math)
    python -m eval.gsm8k --model runs/ba-lora --data test.jsonl --output_dir runs/ba-lora/eval/gsm8k
  an adapter on its base model, the first 50 problems, in bfloat16
    python -m eval.gsm8k --model BASE --adapter ADAPTER --data test.jsonl --limit 50 --dtype bfloat16 --output_dir out
  the same completions read as the published code reads them; no model
    python -m eval.gsm8k --rescore out/generations.jsonl --protocol upstream --output_dir out-upstream

--data: a file with the fields question and answer (GSM8K's own, or any whose answers end in "#### N" or "The answer is: N"),
or a generated split, tinymath:SPLIT or tinymath:SPLIT:SEED with SPLIT one of """


def default_data(base: str) -> str:
    """What is asked when nothing is named: generated problems of the embedded model, GSM8K's test split of any other."""
    return "tinymath:test" if base == "tiny" else GSM8K


def load_problems(data: str, limit: int | None = None) -> list[dict]:
    """[{"id", "question", "reference"}] of a file or a generated split ("tinymath:test"), the first `limit`.

    The id is the record's own, else its index from 0. Raises UserError naming the row that lacks a field or a number, or an id that
    is not unique.
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
    ids = [record.get("id", index) for index, record in enumerate(records)]
    if twice := [key for key, count in Counter(map(str, ids)).items() if count > 1]:
        raise UserError(f"{data}: id {twice[0]} stands for more than one row; give every row an id of its own, or none")
    return [
        {"id": key, "question": record["question"], "reference": record["answer"]}
        for key, record in zip(ids, records, strict=True)
    ]


def read_reference(reference, place: str) -> str:
    """The number of a reference: bare, behind the last "####", or behind the last "The answer is"."""
    text = str(reference)
    answer = extract_answer(text) if "####" in text or "answer is" in text.lower() else text.strip()
    if len(answer or "") > 40 or parse_number(answer or "") is None:
        raise UserError(f"{place}: no number in the reference {text[:60]!r}; it must be one, or end in '#### N'")
    return answer


def generate_answers(
    model, tokenizer, template, problems, *, max_new_tokens, batch_size, progress=True, backend="transformers"
) -> list[dict]:
    """Ask every problem, in order → [{"id", "prompt", "completion", "reference", "finish_reason", "tokens"}]."""
    from .backends import get_backend

    prompts = [encode_prompt(tokenizer, template, problem["question"]) for problem in problems]
    options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
    options["end"] = end_id(tokenizer, template)
    completions = get_backend(backend)(prompts, model=model, tokenizer=tokenizer, **options)
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

    `n_truncated` counts completions that were cut at the token limit; None where no record says how it ended.
    """
    answers = [extract_answer(record["completion"], protocol) for record in records]
    references = [read_reference(record["reference"], f"id {record['id']}") for record in records]
    correct = [a is not None and same_number(a, r) for a, r in zip(answers, references, strict=True)]
    ends = [record.get("finish_reason") for record in records]
    return common.summarise(correct) | {
        "n_unparsable": answers.count(None),
        "n_truncated": ends.count("length") if any(ends) else None,
        "protocol": protocol,
        "protocol_version": PROTOCOLS[protocol],
    }, correct


def ask(args: argparse.Namespace, folder) -> tuple[list[dict], dict]:
    """The first part: generate, write generations.jsonl → (its records, how they came about)."""
    from .backends import get_backend

    get_backend(args.backend)
    data = args.data or default_data(common.find_base(args.model, args.adapter))
    problems = load_problems(data, args.limit)
    subject = common.open_subject(
        args.model, args.adapter, args.template, args.dtype, trust_remote_code=args.trust_remote_code
    )
    start = time.perf_counter()
    records = generate_answers(
        subject.model,
        subject.tokenizer,
        subject.template,
        problems,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        backend=args.backend,
    )
    facts = common.generation_facts(args, subject, data, records, seconds=time.perf_counter() - start)
    (folder / common.SCORE).unlink(missing_ok=True)  # an older score does not belong to the new completions
    common.write_lines(folder / common.GENERATIONS, records)
    return records, facts


def main(argv: list[str] | None = None) -> int:
    """The command. Returns 0 when everything asked for is written; raises UserError otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.gsm8k",
        description=__doc__,
        epilog=EXAMPLES + ", ".join(SPLITS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common.add_options(parser, PROTOCOLS, max_new_tokens=512)
    args = parser.parse_args(argv)
    folder = common.check_options(args, PROTOCOLS)
    if args.rescore:
        records = common.read_lines(args.rescore, ("id", "completion", "reference"), args.limit)
        facts = common.facts_beside(args.rescore)
        known = [problem["id"] for problem in load_problems(args.data, args.limit)] if args.data else None
        facts["data"] = args.data or facts.get("data")
    else:
        records, facts = ask(args, folder)
        known = [record["id"] for record in records]
    missing = common.count_missing(records, known, args.rescore)
    statistics, correct = score_records(records, args.protocol)
    benchmark = "tinymath" if (facts["data"] or "").startswith("tinymath:") else "gsm8k"
    score = {"benchmark": benchmark, "metric": "accuracy", **statistics, "missing": missing, "rescored": args.rescore}
    scored = [
        {"id": record["id"], "answer": extract_answer(record["completion"], args.protocol), "correct": right}
        for record, right in zip(records, correct, strict=True)
    ]
    common.write_score(folder, score, facts, scored)
    low, high = (100 * bound for bound in statistics["interval"])
    print(
        f"{benchmark} {100 * statistics['score']:.2f}% of {len(records)} (95% {low:.1f} to {high:.1f}) → {folder / common.SCORE}"
    )
    return 0


if __name__ == "__main__":
    run_cli(main)
