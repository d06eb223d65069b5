"""MATH: competition problems whose answers are LaTeX (Hendrycks et al. 2021, arXiv 2103.03874).

Protocol "ba-lora": the training prompt with the problem as instruction, no examples, greedy decoding to the end-of-sequence
token; the answer is read by `eval.answers.latex.extract_latex`, and is right if math-verify finds it equal to the content of the
solution's last \\boxed{} (if one of the two cannot be read completely or in time: if the normalised strings are equal). Protocol
"upstream" changes only the reading, to that of the published code, including its flaws: the text after "The answer is: ", as a
normalised string. Protocol "minerva_math" is comparable with lm-evaluation-harness' task of that name: four examples, and its
metric math_verify on the whole completion and the whole solution (its exact_match has its own unit table and LaTeX parser;
instead, score_string compares the answer of "Final Answer: …" with the solution's, by the classical normalisation).

Every score.json has the scores of both judges; `judge` names the one that `score` follows. A completion without an answer is
wrong, and is counted in `n_unparsable`.
"""

from collections import Counter
from functools import partial

from ba_lora.data.sources import read_table
from ba_lora.errors import UserError, run_cli

from .answers import lm_eval
from .answers.evaluate import Answers, benchmark_of, count_truncated, scored_line, summarise_problems
from .answers.latex import PROTOCOLS as READINGS
from .answers.latex import as_formula, extract_latex, read_reference, same_string, same_text, same_values
from .harness.command import run
from .harness.lines import check_field, task_id, written

MINERVA = "minerva_math"
PROTOCOLS = READINGS | {MINERVA: "1"}  # name → version
JUDGES = {"ba-lora": "math-verify", "upstream": "string", MINERVA: "math-verify"}  # whose verdict is the score
HUB = "EleutherAI/hendrycks_math"  # 5,000 test problems, one config per subject
SUBJECTS = [source.rpartition(":")[2] for source in lm_eval.MINERVA_MATH.training]
MAX_NEW_TOKENS = 2048  # as upstream; minerva_math has its own limit

EXAMPLES = """\
examples:
  a training run on the 5,000 test problems of the hub
    python -m eval.hendrycks_math --model runs/ba-lora --output_dir runs/ba-lora/eval/math
  an adapter on its base model, the first 100 problems of a file
    python -m eval.hendrycks_math --model BASE --adapter ADAPTER --data math.jsonl --limit 100 --output_dir out
  a base model with four examples, as in lm-evaluation-harness
    python -m eval.hendrycks_math --model BASE --protocol minerva_math --shots_data four.jsonl --output_dir out
  the same completions read as the published code reads them; no model
    python -m eval.hendrycks_math --rescore out/generations.jsonl --protocol upstream --output_dir out-upstream

--data: a file with the fields problem and solution (the answer in its last \\boxed{}) or answer, and optionally level and type (or
subject), by which the score is split; or a hub id: EleutherAI/hendrycks_math (all its subjects, the default),
EleutherAI/hendrycks_math:algebra (one of them), HuggingFaceH4/MATH-500.
--max_new_tokens: default 2048, and 256 for minerva_math."""


def load_problems(data: str, limit: int | None = None) -> list[dict]:
    """Return [{"id", "problem", "reference"}], the first `limit`; a reference is {"solution"} and, if known, {"level", "subject"}.

    The id is the record's own (id or unique_id), else its index from 0. Raises UserError naming the row that lacks a field or
    an answer, or a duplicate id.
    """
    sources = [f"{HUB}:{subject}" for subject in SUBJECTS] if data == HUB else [data]
    rows = [row for source in sources for row in _read(source, limit)][:limit]
    problems = [_problem(index, place, record) for index, (place, record) in enumerate(rows)]
    keys = Counter(str(problem["id"]) for problem in problems)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise UserError(f"{data}: id {twice[0]} stands for more than one row; give every row an id of its own, or none")
    return problems


def _read(source: str, limit: int | None) -> list[tuple[str, dict]]:
    table = read_table(source, split="test", limit=limit)
    return [(f"{table.source}, row {number}", record) for number, record in table.rows]


def _problem(index: int, place: str, record: dict) -> dict:
    if not isinstance(record.get("problem"), str):
        raise UserError(f"{place} has no text 'problem' (it has: {', '.join(record)})")
    reference = {"solution": written(record.get("solution", record.get("answer")))}
    if reference["solution"] is None:
        raise UserError(f"{place} has neither 'solution' nor 'answer' (it has: {', '.join(record)})")
    read_solution(reference, place)
    kinds = dict.fromkeys(("id", "unique_id", "level"), "a text or a number") | dict.fromkeys(
        ("type", "subject"), "a text"
    )
    for name, kind in kinds.items():
        check_field(record, name, kind, place)
    if record.get("level") is not None:
        reference["level"] = str(record["level"]).removeprefix("Level ")
    if subject := record.get("type", record.get("subject")):
        reference["subject"] = subject
    return {
        "id": task_id(record.get("id", record.get("unique_id", index))),
        "problem": record["problem"],
        "reference": reference,
    }


def read_solution(reference, place: str) -> tuple[str, str]:
    """Return (the solution, its answer) of a reference: {"solution": …}, a solution, or a bare answer. UserError if it has none."""
    given = reference if isinstance(reference, dict) else {"solution": reference}
    solution = check_field(given, "solution", "a text or a number", place)
    solution = "" if solution is None else str(solution)
    answer = read_reference(solution)
    if answer is None:
        raise UserError(f"{place}: no closed \\boxed{{}} with an answer in the solution {solution[-60:]!r}; fix it")
    return solution, answer


def score_records(records: list[dict], protocol: str = "ba-lora") -> tuple[dict, list[dict]]:
    """Score records of {"id", "completion", "reference"} → (the statistics of score.json, the lines of scored.jsonl)."""
    solutions = [read_solution(record["reference"], f"id {record['id']}") for record in records]
    if protocol == MINERVA:
        answers = [lm_eval.read_minerva(record["completion"]) for record in records]
        pairs = [
            (solution if solution != answer else as_formula(answer), record["completion"])
            for (solution, answer), record in zip(solutions, records, strict=True)
        ]
    else:
        answers = [extract_latex(record["completion"], protocol) for record in records]
        pairs = [
            (as_formula(right), as_formula(answer or "")) for (_, right), answer in zip(solutions, answers, strict=True)
        ]
    asked = [index for index, answer in enumerate(answers) if answer or protocol == MINERVA]
    whole = {} if protocol != MINERVA else {"whole": False}  # its verdicts must equal those of lm-evaluation-harness
    values = dict(zip(asked, same_values([pairs[index] for index in asked], **whole), strict=True))
    scored = []
    for index, (record, (solution, _), answer) in enumerate(zip(records, solutions, answers, strict=True)):
        right = read_reference(solution, protocol)
        verdicts = {"string": answer is not None and right is not None and same_string(right, answer)}
        verdicts["math-verify"] = values.get(index, False)
        correct = verdicts[JUDGES[protocol]]
        if correct is None:  # not read completely, or not in time
            correct = answer is not None and right is not None and same_text(right, answer)
        verdicts = {"math_verify": verdicts["math-verify"], "string": verdicts["string"]}
        scored.append(scored_line(record, answer=answer, correct=correct, **verdicts))
    return summarise_problems(scored) | {
        "judge": JUDGES[protocol],
        "score_math_verify": sum(bool(line["math_verify"]) for line in scored) / len(scored),
        "score_string": sum(line["string"] for line in scored) / len(scored),
        "n_unparsable": answers.count(None),
        "n_without_verdict": sum(line["math_verify"] is None for line in scored),
        "n_truncated": count_truncated(records),
        "by_level": _divide(records, scored, "level"),
        "by_subject": _divide(records, scored, "subject"),
        "protocol": protocol,
        "protocol_version": PROTOCOLS[protocol],
    }, scored


def _divide(records: list[dict], scored: list[dict], field: str) -> dict | None:
    """Return the statistics of each level or subject; None if no reference names one."""
    groups: dict[str, list[dict]] = {}
    for record, line in zip(records, scored, strict=True):
        if isinstance(record["reference"], dict) and field in record["reference"]:
            groups.setdefault(str(record["reference"][field]), []).append(line)
    return {name: summarise_problems(groups[name]) for name in sorted(groups)} or None


def _detail(statistics: dict) -> str:
    """Return both judges' scores, for the printed line."""
    judges = ("math-verify", statistics["score_math_verify"]), ("string", statistics["score_string"])
    return "; " + ", ".join(f"{name} {100 * score:.2f}%" for name, score in judges)


def _complete(record: dict, problem: dict | None) -> dict:
    """Return a record whose bare reference has the level and subject from the data."""
    if problem is None or isinstance(record["reference"], dict):
        return record
    return record | {"reference": problem["reference"] | {"solution": record["reference"]}}


ANSWERS = Answers(
    MINERVA,
    lm_eval.MINERVA_MATH,
    MAX_NEW_TOKENS,
    load_problems,
    default_data=lambda base: HUB,
    score=lambda records, protocol, name: score_records(records, protocol),
    name=lambda data: "math",
    detail=_detail,
    complete=_complete,
)
BENCHMARK = benchmark_of(ANSWERS, "eval.hendrycks_math", __doc__, EXAMPLES, PROTOCOLS)
main = partial(run, BENCHMARK)


if __name__ == "__main__":
    run_cli(main)
