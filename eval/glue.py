"""A trained classifier on a GLUE task, or on the embedded one ("reviews"): all metrics of the task, and calibration.

The score is the task's headline metric as GLUE reports it (Matthews for CoLA, Pearson for STS-B, accuracy for the others; QQP
and MRPC also report F1). Written to D: predictions.jsonl (id, logits, label), score.json, and for classes reliability.png.
With --submission the unlabelled test split is predicted in the format that gluebenchmark.com takes.
"""

import argparse
from pathlib import Path

from ba_lora.data.glue import TASKS, load_examples
from ba_lora.errors import Parser, UserError, choose, run_cli
from ba_lora.files import atomic_write, read_json
from ba_lora.folders.checksums import weights_of_run, write_record

from .classifiers import classify

SCORE = "score.json"
SUBMISSION = {  # task and split → file of a submission; the last three contain class names
    **{("cola", "test"): "CoLA.tsv", ("sst2", "test"): "SST-2.tsv", ("mrpc", "test"): "MRPC.tsv"},
    **{("stsb", "test"): "STS-B.tsv", ("qqp", "test"): "QQP.tsv", ("wnli", "test"): "WNLI.tsv"},
    **{("mnli", "test"): "MNLI-m.tsv", ("mnli", "test_mismatched"): "MNLI-mm.tsv"},
    **{("qnli", "test"): "QNLI.tsv", ("rte", "test"): "RTE.tsv"},
}
BY_NAME = ("mnli", "qnli", "rte")

EXAMPLES = """\
examples:
  the validation split, for a run on CoLA
    python -m eval.glue --model runs/cola
  a local copy in GLUE's own format, and MNLI's mismatched split
    python -m eval.glue --model runs/mnli --data glue/MNLI --split validation_mismatched
  the metrics again, from the saved logits
    python -m eval.glue --rescore runs/cola/eval/glue/predictions.jsonl --task cola --output_dir out
  a submission for gluebenchmark.com
    python -m eval.glue --model runs/cola --submission --output_dir submission"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = Parser(
        prog="python -m eval.glue",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    classify.add_options(parser)
    parser.add_argument("--task", help=f"with --rescore: one of {', '.join(TASKS)} (default: the run's)")
    parser.add_argument("--data", help="folder or hub id (default: the training's)")
    parser.add_argument("--split", default="validation", help="(default: %(default)s)")
    parser.add_argument("--rescore", metavar="FILE", help="score this predictions.jsonl again; no model")
    parser.add_argument("--submission", action="store_true", help="predict the test split for gluebenchmark.com")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when everything requested is written; raises UserError otherwise."""
    args = make_parser().parse_args(argv)
    classify.check_options(args)
    if bool(args.model) == bool(args.rescore):
        raise UserError("give either --model RUN to predict and score, or --rescore FILE to score predictions again")
    if args.rescore and not (args.output_dir and args.task):
        raise UserError("--rescore needs --task NAME, whose metrics to compute, and --output_dir D")
    if args.submission and not args.output_dir:
        raise UserError("--submission needs --output_dir D, the folder that holds all tasks' files")
    name = "glue" if args.split == "validation" else f"glue-{args.split}"
    kind = "submission" if args.submission else "evaluation"
    with classify.output_folder(args, name, SCORE, kind) as folder:
        return _evaluate(args, folder)


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    """Predict if necessary, then score or write a submission."""
    if args.rescore:
        return _rescore(args, folder)
    classifier = classify.open_classifier(args.model, args.dtype)
    name = classifier.task.name
    if args.task not in (None, name):
        raise UserError(f"--task {args.task}, but {args.model} was trained on {name}; leave it out")
    data = args.data or read_json(Path(args.model) / "run.json")["task"]["data"]
    if args.submission:
        return _submit(args, classifier, data)
    examples = load_examples(name, args.split, data, args.limit)
    if None in examples.labels:
        raise UserError(f"--split {args.split} of {examples.source} has no labels; to predict it add --submission")
    logits, seconds = classify.predict(classifier, examples, args.batch_size)
    classify.write_predictions(folder, examples, logits)
    facts = {"model": args.model, "base": classifier.base, "data": data, "split": args.split, "report": examples.report}
    facts |= {"weights": weights_of_run(args.model), "dtype": args.dtype, "seconds": round(seconds, 2)}
    _score(folder, f"glue/{name}", classifier.task, logits, examples.labels, facts)
    return 0


def _rescore(args: argparse.Namespace, folder: Path) -> int:
    task = TASKS[choose("task", args.task, TASKS)]
    logits, labels = classify.read_predictions(args.rescore, task)
    _score(
        folder,
        f"glue/{task.name}",
        task,
        logits[: args.limit],
        labels[: args.limit],
        {"rescored": args.rescore},
    )
    return 0


def _score(folder: Path, benchmark: str, task, logits, labels, facts: dict) -> dict:
    """Write score.json and the reliability diagram, and print the final line of the command."""
    from .classifiers import metrics  # scipy and scikit-learn take seconds to import

    computed = metrics.compute(task, logits, labels)
    headline = task.metrics[0]
    score = {"benchmark": benchmark, "metric": headline, "score": computed[headline], **computed, **facts}
    if task.labels:
        metrics.draw_reliability(logits, labels, folder / "reliability.png")
    write_record(folder / SCORE, score, (classify.PREDICTIONS,))
    others = ", ".join(f"{name} {computed[name]:.4f}" for name in task.metrics[1:] if computed[name] is not None)
    shown = "undefined" if computed[headline] is None else f"{computed[headline]:.4f}"
    print(f"{benchmark} {headline} {shown}{', ' if others else ''}{others} of {len(labels)} → {folder / SCORE}")
    return score


def _submit(args: argparse.Namespace, classifier: classify.Classifier, data: str) -> int:
    """Write the test predictions of the task, one file per test split."""
    task = classifier.task
    splits = [split for name, split in SUBMISSION if name == task.name]
    if not splits:
        raise UserError(f"{task.name} is not a GLUE task, so there is nothing to submit")
    for split in splits:
        examples = load_examples(task.name, split, data, args.limit, numbered=True)
        logits, _ = classify.predict(classifier, examples, args.batch_size)
        path = Path(args.output_dir) / SUBMISSION[task.name, split]
        with atomic_write(path) as file:
            file.write("index\tprediction\n")
            for index, row in zip(examples.ids, logits, strict=True):
                if not task.labels:
                    answer = f"{min(max(float(row[0]), 0.0), 5.0):.3f}"
                else:
                    answer = task.labels[row.argmax()] if task.name in BY_NAME else str(row.argmax())
                file.write(f"{index}\t{answer}\n")
        print(f"{task.name} {split}: {len(logits)} predictions → {path}")
    return 0


if __name__ == "__main__":
    run_cli(main)
