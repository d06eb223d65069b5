"""Every kind of file that the project reads: a valid example, and what reads it as the commands do.

A reader gets the damaged file in a folder of its own and reads everything that the command would take from it.
"""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import yaml

from ba_lora.card import write_card
from ba_lora.data.formats import read_conversations
from ba_lora.data.glue import load_examples
from ba_lora.data.sources import read_table
from ba_lora.experiments.matrix import read_experiment, tuning_runs
from ba_lora.experiments.report import write_report
from ba_lora.experiments.results import read_results
from ba_lora.experiments.tables import build as tables
from ba_lora.experiments.tables.formats import FILES, render
from ba_lora.features.record import read_record
from ba_lora.files import sealed
from ba_lora.inference.requests import Request
from ba_lora.methods.save import read_task
from ba_lora.training.command_line import parse
from eval import gsm8k, hendrycks_math, humaneval, mbpp
from eval.classifiers.classify import read_predictions
from eval.harness import generations
from eval.harness.lines import read_lines
from eval.harness.scores import facts_beside, write_score
from eval.judging import judge, questions
from tests.common import ROOT
from tests.fuzz import trained
from tests.fuzz.mutations import written

EXPERIMENT = ROOT / "configs/experiments/nlg-main-embedded.yaml"
RESULTS = ROOT / "results/nlg-main-embedded"


class Kind(NamedTuple):
    """name: of the file to damage, below the folder. form: see `mutations.written`. prepare: makes the other files of the folder."""

    name: str
    form: str
    valid: object
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None


# Options and experiments


def _config(file: Path) -> None:
    parse(["--config", str(file), "--output_dir", str(file.parent / "run")])


def _table(experiment, results: Path) -> None:
    """The table in all formats, and the page. The bootstrap, which takes most of the time and reads no file, is left out."""
    with mock.patch.object(tables, "paired_intervals", lambda pairs: [(0.0, 0.0, 0.0)] * len(pairs)):
        found = read_results(experiment, results)
        made = tables.build(experiment, found)
    for kind in FILES:
        render(made, kind)
    if made.results:
        write_report([(experiment, found)], results / "page.html")


def _experiment(file: Path) -> None:
    experiment = read_experiment(file, file.parent / "runs", results=file.parent)
    for run in experiment.runs:
        run.state(experiment.evaluations)
    assert isinstance(experiment.columns, list)
    _table(experiment, file.parent)
    tuning_runs(file, file.parent / "runs")


def _experiment_file() -> dict:
    content = yaml.safe_load(EXPERIMENT.read_text())
    return content | {
        "models": {"tiny": {"rank": 4}},
        "data": {"few": {"limit": 5}},
        "vary": {"rank": [1, 2], "imbalance": {"0.5": {"seed": 3}}} | {"imbalance": {"half": {"top_k": 3}}},
        "methods": {"base": {}, "pissa": {"method": "pissa"}, "ba-lora": {"method": "ba-lora", "top_k": 5}},
        "seeds": [1],
        "note": "A note.",
        "reference": "pissa",
        "devices": "2xA40",
    }


@cache
def _read_experiment(runs: Path, results: Path):
    return read_experiment(EXPERIMENT, runs, results=results)


def _results(file: Path) -> None:
    _table(_read_experiment(file.parents[1] / "runs", file.parents[1]), file.parents[1])


def _tuned(file: Path) -> None:
    read_experiment(EXPERIMENT, file.parents[1] / "runs", results=file.parents[1])


@cache
def _rows() -> list[dict]:
    rows = [json.loads(line) for line in (RESULTS / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("checksum", None)
    return [row for row in rows if row["seed"] in (1, None) or row["method"] == "pissa"][:4]


# Training data and problems


def _conversations(file: Path) -> None:
    read_conversations(read_table(str(file)), None, False)


def _glue(task: str, file: Path) -> None:
    load_examples(task, "train", str(file))


# Answers and judgments


def _gsm8k(file: Path) -> None:
    records = read_lines(file, ("id", "completion", "reference"))
    statistics, scored = gsm8k.score_records(records, "ba-lora")
    write_score(file.parent, {"benchmark": "gsm8k", "metric": "accuracy", **statistics}, {}, scored)


def _math(file: Path) -> None:
    records = read_lines(file, ("id", "completion", "reference"))
    with mock.patch.object(
        hendrycks_math, "same_values", lambda pairs, **more: [left == right for left, right in pairs]
    ):
        statistics, scored = hendrycks_math.score_records(records)
    write_score(file.parent, {"benchmark": "math", "metric": "accuracy", **statistics}, {}, scored)


def _unfinished(file: Path) -> None:
    wanted = {(str(number), 0): Request(number, "p", [1], None) for number in range(3)}
    generations.check(file.parent, {"model": "m"}, wanted)


PROMPTS = [
    {
        "name": name,
        "system_prompt": "s",
        "prompt_template": "{question} {answer}" if turn == 1 else "{question_1}{answer_1}{question_2}{answer_2}",
    }
    for (_, turn), name in judge.PROMPTS.items()
]
ASKED = [
    {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
    {"question_id": 82, "category": "math", "turns": ["c", "d"]},
]
REFERENCES = [{"question_id": 82, "choices": [{"turns": ["1", "2"]}]}]
ANSWERS = [
    {
        "id": number,
        "prompt": "p",
        "completion": "The answer is \\boxed{1}",
        "reference": "#### 1",
        "finish_reason": "stop",
    }
    | {"tokens": 3, "sample": 0}
    for number in range(3)
]


def _bench(file: Path) -> None:
    folder = file.parents[1] if file.parent.name == "reference_answer" else file.parent
    asked, prompts = questions.load_bench(str(folder))
    for question in asked:
        for turn in (1, 2):
            judge.key_of(judge.Judge("j", {}), judge.make_task(prompts, question, ["a", "b"][:turn], turn))
    questions.prompt_version(prompts)


def _make_bench(folder: Path) -> None:
    (folder / "reference_answer").mkdir(exist_ok=True)
    for name, rows in (("question", ASKED), ("judge_prompts", PROMPTS), ("reference_answer/gpt-4", REFERENCES)):
        (folder / f"{name}.jsonl").write_bytes(written(rows, "jsonl"))


def _judgments(file: Path) -> None:
    known = judge.read_judgments([file])
    judge.judge_of(known, file)
    for line in known.values():
        judge.read_replies(line["replies"])


JUDGMENTS = [
    {"id": 81, "turn": turn, "key": f"k{turn}", "judge": "j", "options": {"temperature": 0}, "prompt": "single-v1"}
    | {"replies": ["[[5]]"], "date": "2024-01-01"}
    for turn in (1, 2)
]
TURNS = [{"id": 81, "turn": turn, "completion": "x", "category": "writing"} for turn in (1, 2)]
PREDICTIONS = [{"id": number, "logits": [0.5, -0.5], "label": 1} for number in range(3)]


def _predictions(file: Path) -> None:
    from ba_lora.data.glue import TASKS
    from eval.classifiers.metrics import compute as scores_of

    logits, labels = read_predictions(file, TASKS["sst2"])
    scores_of(TASKS["sst2"], logits, labels)


def _published(file: Path) -> None:
    from ba_lora.experiments.paper.published import read_paper

    read_paper.__wrapped__("paper", file.parent)


def _tuning() -> dict:
    return json.loads((RESULTS / "tuning.json").read_bytes())


def _paper() -> dict:
    return {
        "title": "t",
        "version": "v",
        "source": "s",
        "columns": {"gsm8k": {"label": "GSM8K", "unit": "%", "better": "higher", "averaged": True}},
        "rows": [{"model": "llama-2-7b", "method": "lora", "gsm8k": [42.47, 0.29], "second": ["gsm8k"]}],
        "errors": [{"where": ["llama-2-7b lora gsm8k"], "what": "w", "corrected": 42.5}],
    }


def kinds() -> dict[str, Kind]:
    """{kind of file: how it is made and read}."""
    return _of_experiments() | _of_data() | _of_answers() | _of_runs() | _of_models()


def _of_experiments() -> dict[str, Kind]:
    return {
        "config": Kind("c.yaml", "yaml", yaml.safe_load((ROOT / "configs/nlg/tiny.yaml").read_text()), _config),
        "experiment": Kind("e.yaml", "yaml", _experiment_file(), _experiment),
        "results.jsonl": Kind("nlg-main-embedded/results.jsonl", "jsonl", _rows(), _results),
        "result.json": Kind("nlg-main-embedded/one.json", "json", _rows()[0], _results),
        "tuning.json": Kind("nlg-main-embedded/tuning.json", "bytes", (RESULTS / "tuning.json").read_bytes(), _tuned),
        "tuning.json values": Kind("nlg-main-embedded/tuning.json", "json", _tuning(), _tuned),
        "published": Kind("paper.yaml", "yaml", _paper(), _published),
    }


def _of_data() -> dict[str, Kind]:
    pairs = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(3)]
    alpaca = [{"instruction": f"i{number}", "input": "", "output": "o"} for number in range(3)]
    messages = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 2
    shared = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}] * 2
    test = {"task_id": 11, "text": "t", "code": "def f(x):\n    return x", "test_list": ["assert f(1) == 1"]}
    mbpp_rows = [test | {"test_setup_code": "", "test_imports": []}, test | {"task_id": 12}]
    human = {
        "prompt": "def f(x):\n",
        "entry_point": "f",
        "test": "def check(c): pass",
        "canonical_solution": "    return x",
    }
    problem = {"problem": "p", "solution": "\\boxed{1}", "level": "Level 1", "type": "Algebra"}
    sst2 = [{"sentence": "a b", "label": number % 2, "idx": number} for number in range(3)]
    tsv = b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n"
    return {
        "pairs.jsonl": Kind("d.jsonl", "jsonl", pairs, _conversations),
        "pairs.json": Kind("d.json", "json", pairs, _conversations),
        "pairs.csv": Kind("d.csv", "bytes", b'question,answer\n"q1, x",a1\nq2,a2\n"q\n3",a3\n', _conversations),
        "alpaca": Kind("d.json", "json", alpaca, _conversations),
        "messages": Kind("d.jsonl", "jsonl", messages, _conversations),
        "sharegpt": Kind("d.json", "json", shared, _conversations),
        "rte.tsv": Kind("d.tsv", "bytes", tsv, partial(_glue, "rte")),
        "cola.tsv": Kind("d.tsv", "bytes", b"s\t1\t*\ta b\n" * 3, partial(_glue, "cola")),
        "sst2.jsonl": Kind("d.jsonl", "jsonl", sst2, partial(_glue, "sst2")),
        "mbpp": Kind("d.jsonl", "jsonl", mbpp_rows, lambda file: mbpp.load_tasks(str(file), (11, 510))),
        "humaneval": Kind(
            "d.jsonl",
            "jsonl",
            [human | {"task_id": f"H/{n}"} for n in range(2)],
            lambda f: humaneval.load_tasks(str(f)),
        ),
        "math": Kind("d.jsonl", "jsonl", [problem] * 2, lambda file: hendrycks_math.load_problems(str(file))),
        "gsm8k": Kind(
            "d.jsonl", "jsonl", [{"question": "p", "answer": "#### 1"}] * 2, lambda f: gsm8k.load_problems(str(f), None)
        ),
    }


def _of_answers() -> dict[str, Kind]:
    return {
        "gsm8k completions": Kind("generations.jsonl", "jsonl", ANSWERS, _gsm8k),
        "math completions": Kind(
            "generations.jsonl",
            "jsonl",
            [row | {"reference": {"solution": "\\boxed{1}", "level": "1", "subject": "Algebra"}} for row in ANSWERS],
            _math,
        ),
        "unfinished completions": Kind("generations.jsonl", "jsonl", ANSWERS, _unfinished, _make_unfinished),
        "generation.json": Kind("generation.json", "json", {"model": "m", "lines": []}, _unfinished, _make_unfinished),
        "score.json": Kind(
            "score.json", "json", {"model": "m", "files": {}}, lambda f: facts_beside(f.with_name("generations.jsonl"))
        ),
        "judgments": Kind("judgments.jsonl", "jsonl", JUDGMENTS, _judgments),
        "questions": Kind("question.jsonl", "jsonl", ASKED, _bench, _make_bench),
        "reference answers": Kind("reference_answer/gpt-4.jsonl", "jsonl", REFERENCES, _bench, _make_bench),
        "judge prompts": Kind("judge_prompts.jsonl", "jsonl", PROMPTS, _bench, _make_bench),
        "turns": Kind("g.jsonl", "jsonl", TURNS, lambda f: questions.read_generations(str(f), [{"id": 81}], True)),
        "predictions": Kind("predictions.jsonl", "jsonl", PREDICTIONS, _predictions),
    }


def _of_runs() -> dict[str, Kind]:
    step = {
        "step": 1,
        "loss": 1.5,
        "task": 1.0,
        "consistency": None,
        "diversity": 0.5,
        "spectrum": -0.1,
        "lambda1": 0.1,
    }
    return {
        "run.json": Kind("run/run.json", "json", trained.run_record(), trained.run, trained.make_run),
        "metrics.jsonl": Kind(
            "run/metrics.jsonl", "jsonl", [step, step | {"step": 2}], trained.metrics, trained.make_run
        ),
        "score of a run": Kind(
            "run/eval/gsm8k/score.json", "json", trained.score(), lambda f: write_card(f.parents[2]), trained.make_run
        ),
        "task.json": Kind("task.json", "json", trained.TASK, lambda file: read_task(file.parent)),
        "cache.json": Kind("cache.json", "json", sealed({"complete": True, **trained.CACHE}), trained.claim_cache),
        "t-SNE scores": Kind(
            "scores.json", "json", trained.FIGURE, lambda file: read_record(file.parent), trained.make_figure
        ),
        "t-SNE points": Kind(
            "coordinates.csv", "bytes", trained.POINTS, lambda file: read_record(file.parent), trained.make_figure
        ),
    }


def _of_models() -> dict[str, Kind]:
    adapter = partial(trained.make_adapter, "pissa")
    return {
        "adapter_config.json": Kind(
            "adapter_config.json", "json", trained.of("pissa", "adapter_config.json"), trained.adapter, adapter
        ),
        "adapter weights": Kind(
            "adapter_model.safetensors",
            "bytes",
            trained.saved_adapter("pissa")["adapter_model.safetensors"],
            trained.adapter,
            adapter,
        ),
        "ba_lora.json": Kind(
            "ba_lora.json",
            "json",
            trained.of("houlsby", "ba_lora.json"),
            trained.adapter,
            partial(trained.make_adapter, "houlsby"),
        ),
        "checksums.json": Kind(
            "checksums.json", "json", trained.of("pissa", "checksums.json"), trained.adapter, adapter
        ),
        "model config": Kind(
            "config.json", "json", json.loads(trained.saved_model()["config.json"]), trained.model, trained.make_model
        ),
        "generation config": Kind(
            "generation_config.json",
            "json",
            json.loads(trained.saved_model()["generation_config.json"]),
            trained.model,
            trained.make_model,
        ),
        "deepspeed": Kind("d.json", "bytes", (ROOT / "configs/deepspeed/zero2.json").read_bytes(), trained.deepspeed),
        "deepspeed values": Kind(
            "d.json", "json", json.loads((ROOT / "configs/deepspeed/zero2.json").read_bytes()), trained.deepspeed
        ),
    }


def _make_unfinished(folder: Path) -> None:
    (folder / "generations.jsonl").write_bytes(written(ANSWERS, "jsonl"))
    (folder / "generation.json").write_bytes(written({"model": "m"}, "json"))
