"""MT-Bench: 80 questions of two turns, each answer rated from 1 to 10 by a judge (Zheng et al. 2023, arXiv 2306.05685).

Generation: one answer per turn in the template of the training (or of --template, or of --fastchat_template), sampled at its
category's published temperature; the second prompt contains the first answer. Grading: each answer separately, see
`eval.judging.judge`; the two protocols differ in how the judge's reply is read. The score is the mean of all ratings, as
published; the scores of the first and the second turn are also given, because some papers print only the first. Existing
judgments are never requested again, not even with --overwrite: to repeat them, remove D/judgments.jsonl.
"""

import argparse
import json
import shutil
from functools import partial
from pathlib import Path

from ba_lora.errors import UserError, run_cli, short
from ba_lora.files import digest, parse_json, read_json
from ba_lora.folders.checksums import read_record, write_record
from ba_lora.inference.requests import Request, Sampling, make_request
from ba_lora.inference.subject import Subject

from .harness.ask import ask, subject_of
from .harness.command import Benchmark, run
from .harness.lines import write_lines
from .harness.scores import GENERATIONS, SCORE, SCORED, facts_beside, write_score
from .judging import fastchat
from .judging.judge import (
    OPTIONS,
    PROTOCOLS,
    Judge,
    Task,
    connect,
    judge_all,
    judge_of,
    key_of,
    make_task,
    read_judgments,
)
from .judging.questions import PACKAGE, PACKAGE_DATA, load_bench, prompt_version, read_generations
from .judging.ratings import draw_radar, score_tasks

TEMPERATURES = {  # of generation, by category, as published
    **{"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1},
    **{"reasoning": 0.0, "math": 0.0, "coding": 0.0, "extraction": 0.0},
}
OTHER_TEMPERATURE = 0.7  # of a category without a published one
PARTS, JUDGMENTS, GENERATION, RADAR = "turns", "judgments.jsonl", "generation.json", "radar.png"

EXAMPLES = """\
examples:
  a training run, judged by GPT-4 (OPENAI_API_KEY is set)
    python -m eval.mt_bench --model runs/ba-lora --judge gpt-4 --output_dir runs/ba-lora/eval/mt_bench
  judged by a model on your own server
    python -m eval.mt_bench --model runs/ba-lora --judge NAME --judge_url http://localhost:8000/v1 --output_dir out
  the answers on one machine, the judging on another
    python -m eval.mt_bench --model runs/ba-lora --generate_only --output_dir out
    python -m eval.mt_bench --rescore out/generations.jsonl --judge gpt-4 --output_dir out
  the same judgments read as the published code reads them; no model and no judge
    python -m eval.mt_bench --rescore out/generations.jsonl --protocol fastchat --output_dir out-fastchat

--data: a folder in FastChat's layout (question.jsonl, judge_prompts.jsonl, reference_answer/gpt-4.jsonl), or a file or hub id with
questions alone (fields turns or prompt, category, reference), such as HuggingFaceH4/mt_bench_prompts; those are judged with the
package's prompts and reference answers. Default: the registry package """


# The first step: answers


def generate(args: argparse.Namespace, folder: Path, questions: list[dict], data: str) -> tuple[list[dict], dict]:
    """Answer both turns of every question → (the records of generations.jsonl, how they were generated).

    Each turn and temperature is generated in its own folder under D/turns, and continues there after an interruption.
    """
    subject = subject_with_template(args)
    _check_prompts(args, subject, questions)
    records, parts = {}, []
    for turn in (1, 2):
        for temperature in sorted({_temperature(args, question) for question in questions}):
            group = [question for question in questions if _temperature(args, question) == temperature]
            requests = [_request(subject, question, turn, records) for question in group]
            place, sampling = folder / PARTS / f"{turn}-{temperature:g}", Sampling(temperature, stop=_stop(args))
            made, facts = ask(args, place, subject, requests, sampling, data)
            parts.append(facts | {"tasks": len(made)})
            for question, record in zip(group, made, strict=True):
                added = {"id": question["id"], "turn": turn, "category": question["category"]}
                records[question["id"], turn] = added | record
    facts = _join_facts(args, folder, questions, parts)
    for name in (SCORE, SCORED):  # an older score does not belong to these answers
        (folder / name).unlink(missing_ok=True)
    lines = [records[question["id"], turn] for question in questions for turn in (1, 2)]
    write_lines(folder / GENERATIONS, lines)
    write_record(folder / GENERATION, facts, (GENERATIONS,))
    return lines, facts


def _temperature(args: argparse.Namespace, question: dict) -> float:
    if args.temperature is not None:
        return args.temperature
    return TEMPERATURES.get(question["category"], OTHER_TEMPERATURE)


def subject_with_template(args: argparse.Namespace) -> Subject:
    """Return the evaluated model, with FastChat's template if --fastchat_template names one."""
    subject = subject_of(args)
    if args.fastchat_template:
        subject = subject._replace(template=fastchat.template_of(args.fastchat_template, subject.tokenizer))
    return subject


def _stop(args: argparse.Namespace) -> tuple[str, ...]:
    return fastchat.stop_strings(args.fastchat_template) if args.fastchat_template else ()


def _request(subject: Subject, question: dict, turn: int, records: dict) -> Request:
    texts = [question["turns"][0]]
    if turn == 2:
        texts += [_text(records[question["id"], 1]["completion"]), question["turns"][1]]
    reference = question["reference"][turn - 1] if question["reference"] else None
    if subject.template.name.startswith("fastchat:"):
        return fastchat.make_request(subject, question["id"], texts, reference)
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return make_request(subject, question["id"], messages, reference)


def _text(completion: str) -> str:
    """Return an answer for the next prompt and the judge: stripped, and valid UTF-8."""
    return completion.strip().encode("utf-8", "replace").decode()


def _check_prompts(args: argparse.Namespace, subject: Subject, questions: list[dict]) -> None:
    """Refuse, before anything is generated, what would fail later: a template without a second turn, too few positions."""
    positions = getattr(getattr(subject.model, "config", None), "max_position_embeddings", None)
    for question in questions:
        asked = len(_request(subject, question, 2, {(question["id"], 1): {"completion": "Yes."}}).ids)
        if positions is None or asked + 2 * args.max_new_tokens <= positions:
            continue
        most = (positions - asked) // 2
        remedy = f"lower it to {most}" if most > 0 else "take a model with more positions, or fewer questions (--limit)"
        raise UserError(
            f"question {question['id']} has {asked} tokens, and with two answers of --max_new_tokens {args.max_new_tokens} it "
            f"does not fit the model's {positions} positions; {remedy}"
        )


def _join_facts(args: argparse.Namespace, folder: Path, questions: list[dict], parts: list[dict]) -> dict:
    """Return one record of how all answers were generated; the earlier one if this run had nothing left to generate."""
    seconds = sum(part["seconds"] for part in parts)
    tokens = sum(part["seconds"] * (part["tokens_per_second"] or 0) for part in parts)
    temperatures = {question["category"]: _temperature(args, question) for question in questions}
    joined = {key: value for key, value in parts[0].items() if key != "tasks"}
    joined |= {"sampling": parts[0]["sampling"] | {"temperature": temperatures}}
    timing = {
        "resumed": sum(part["resumed"] for part in parts),
        "seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1) if tokens else None,
    }
    if timing["resumed"] == sum(part["tasks"] for part in parts) and (folder / GENERATION).is_file():
        earlier = read_json(folder / GENERATION)
        earlier.pop("files", None)
        if earlier | timing == joined | timing:
            return earlier
    return joined | timing


# The second step: judging and the score


def make_tasks(records: list[dict], questions: list[dict], prompts: dict[str, dict]) -> list[Task]:
    """Return the judgments to make of the available answers; a second turn also needs the first one's answer."""
    answers = {(str(record["id"]), record["turn"]): _text(record["completion"]) for record in records}
    tasks = []
    for question in questions:
        said = [answers.get((str(question["id"]), turn)) for turn in (1, 2)]
        for turn in (1, 2):
            if None not in said[:turn]:
                tasks.append(make_task(prompts, question, said[:turn], turn))
    return tasks


def judge_records(args: argparse.Namespace, folder: Path, tasks: list[Task]) -> tuple[Judge, dict, dict]:
    """Have `tasks` judged, except those whose judgment is on file → (the judge, key → judgment, key → why refused)."""
    beside = [Path(args.rescore).with_name(JUDGMENTS)] if args.rescore else []
    known = read_judgments([*beside, folder / JUDGMENTS])
    if args.judge:
        judge = Judge(args.judge, read_options(args.judge_options))
    else:
        judge = judge_of(known, (beside or [folder / JUDGMENTS])[0])
    missing = sum(key_of(judge, task) not in known for task in tasks)
    if missing and not args.judge:
        raise UserError(
            f"{missing} of {len(tasks)} judgments are not on file; name the judge that should make them by --judge"
        )
    client = _connect(args) if missing else None
    options = {"protocol": args.protocol, "attempts": args.judge_attempts, "concurrency": args.judge_concurrency}
    known, refused = judge_all(tasks, judge, known, folder / JUDGMENTS, client=client, **options)
    return judge, known, refused


def _connect(args: argparse.Namespace):
    return connect(args.judge_url, args.judge_timeout, args.judge_retries)


def read_options(text: str | None) -> dict:
    """Override the published request options by --judge_options; null removes one from the request."""
    given = parse_json(text or "{}", f"--judge_options {short(text)}", remedy="write '{\"temperature\": 0}'")
    if not isinstance(given, dict):
        raise UserError(f"--judge_options {text} is not an object; write '{{\"temperature\": 0}}'")
    return OPTIONS | given


# The command


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--fastchat_template",
        metavar="NAME",
        help="write the prompts in this conversation template of FastChat, such as vicuna_v1.1, instead of --template",
    )
    add(
        "--judge",
        metavar="MODEL",
        help="the judge's name at its endpoint, such as gpt-4 (default: that of the judgments on file)",
    )
    add(
        "--judge_url",
        metavar="URL",
        help="its endpoint, such as http://host:8000/v1 (default: OpenAI's); its key is $OPENAI_API_KEY",
    )
    add("--judge_options", metavar="JSON", help=f"options of a request to the judge (default: {json.dumps(OPTIONS)})")
    add("--judge_concurrency", type=int, default=8, metavar="N", help="concurrent requests (default: %(default)s)")
    add(
        "--judge_attempts",
        type=int,
        default=3,
        metavar="N",
        help="request up to this many replies until one has a rating (default: %(default)s)",
    )
    add(
        "--judge_retries",
        type=int,
        default=10,
        metavar="N",
        help="retries of a failed request, with growing delays (default: %(default)s)",
    )
    add("--judge_timeout", type=float, default=300, metavar="S", help="seconds for one reply (default: %(default)s)")
    add("--generate_only", action="store_true", help="only write the answers; judge them later with --rescore")


def check_judge_options(args: argparse.Namespace) -> None:
    """Refuse invalid options before anything slow starts."""
    for option, least in (("judge_concurrency", 1), ("judge_attempts", 1), ("judge_timeout", 1), ("judge_retries", 0)):
        if not getattr(args, option) >= least:
            raise UserError(f"--{option} is {getattr(args, option):g}; it must be at least {least}")
    if args.samples not in (None, 1):
        raise UserError(f"--samples {args.samples}: MT-Bench judges one answer per turn; leave it out")
    if args.generate_only and (args.rescore or args.judge):
        raise UserError("--generate_only goes with --model and without --judge and --rescore; leave one of them out")
    if args.model and not args.judge and not args.generate_only:
        raise UserError(
            "--judge is missing; name the judge's model (--judge gpt-4), or add --generate_only to judge later"
        )
    if not args.judge and (args.judge_url or args.judge_options):
        raise UserError("--judge_url and --judge_options have no effect without --judge; name the judge's model")
    if args.fastchat_template and (args.rescore or args.template):
        raise UserError(
            f"--fastchat_template {args.fastchat_template} goes with --model, instead of --template; leave one of them out"
        )
    read_options(args.judge_options)


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    """Generate if necessary, have it judged, and score."""
    check_judge_options(args)
    data = args.data or PACKAGE_DATA
    questions, prompts = load_bench(data, args.limit)
    if args.rescore:
        records, facts = (
            read_generations(args.rescore, questions, whole=args.limit is None),
            facts_of_answers(args.rescore),
        )
        facts["data"] = args.data or facts.get("data") or data
    else:
        if args.judge:
            _connect(args)  # report a missing key before hours of work
        records, facts = generate(args, folder, questions, data)
    if args.generate_only:
        written = folder / GENERATIONS
        print(f"{len(records)} answers → {written}; judge them with --rescore {written} --judge MODEL")
        return 0
    tasks = make_tasks(records, questions, prompts)
    judge, known, refused = judge_records(args, folder, tasks)
    statistics, scored = score_tasks(tasks, questions, judge, known, refused, args.protocol)
    ends = [record.get("finish_reason") for record in records]
    score = {"benchmark": "mt_bench", "metric": "judge's rating, 1 to 10", **statistics}
    score |= {
        "n_truncated": ends.count("length") if any(ends) else None,
        "missing": 2 * len(questions) - len(tasks),
        "judge": judge.model,
        "judge_options": judge.options,
        "prompt_version": prompt_version(prompts),
        "questions_hash": digest(questions),
        "rescored": args.rescore,
    }
    folder.mkdir(parents=True, exist_ok=True)
    draw_radar(statistics["by_category"], folder / RADAR)
    write_score(folder, score, facts, scored)
    shutil.rmtree(folder / PARTS, ignore_errors=True)  # generations.jsonl holds everything
    first, second = (statistics[turn]["score"] for turn in ("first_turn", "second_turn"))
    print(
        f"mt_bench {statistics['score']:.2f} of 10 over {len(tasks)} answers (first turn {_shown(first)}, "
        f"second {_shown(second)}; {statistics['n_unparsable']} without a rating) → {folder / SCORE}"
    )
    return 0


def facts_of_answers(path: str) -> dict:
    """Return how the answers of a generations.jsonl were generated, from the score.json or else the generation.json beside it."""
    known = facts_beside(path)
    beside = Path(path).with_name(GENERATION)
    return known or (read_record(beside) if Path(path).name == GENERATIONS and beside.is_file() else {})


def _shown(mean: float | None) -> str:
    return "none" if mean is None else f"{mean:.2f}"


BENCHMARK = Benchmark(
    "eval.mt_bench",
    __doc__,
    EXAMPLES + " ".join(PACKAGE),
    PROTOCOLS,
    1024,
    add_judge_options,
    load=lambda data, base, limit: load_bench(data or PACKAGE_DATA, limit)[0],
    evaluate=_evaluate,
)
main = partial(run, BENCHMARK)


if __name__ == "__main__":
    run_cli(main)
