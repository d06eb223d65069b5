"""A trained classifier out of domain: the sets of GLUE-X for its task, or those of the embedded task ("reviews").

Nothing is trained on them. A set's labels are mapped to the task's classes (`ba_lora.data.gluex` has the table and its
sources); the score is the task's headline metric unless the set has another. Written to D: NAME/predictions.jsonl and
NAME/score.json for each set, and scores.json with all scores, and the reason for each set that was left out.
"""

import argparse
from pathlib import Path

from ba_lora.data.gluex import SHIFTS, Shift, load_shift
from ba_lora.errors import Parser, UserError, choose, run_cli
from ba_lora.files import write_sealed
from ba_lora.folders.checksums import weights_of_run, write_record

from .classifiers import classify

EXAMPLES = """\
examples:
  all sets of the run's task, from the hub
    python -m eval.gluex --model runs/sst2
  two of them, one from a local copy
    python -m eval.gluex --model runs/sst2 --sets imdb flipkart --data flipkart=flipkart.csv
  the sets whose data is available here; the others are listed with the reason
    python -m eval.gluex --model runs/sst2 --at_hand"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = Parser(
        prog="python -m eval.gluex",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    classify.add_options(parser)
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="(default: all of the run's task)")
    parser.add_argument("--data", nargs="+", metavar="NAME=PATH", help="local copies of sets")
    parser.add_argument(
        "--at_hand", action="store_true", help="leave out the sets whose data is not available, and say which"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when everything requested is written; raises UserError otherwise."""
    args = make_parser().parse_args(argv)
    classify.check_options(args)
    if not args.model:
        raise UserError("--model is missing; name the folder of a training run with --task")
    with classify.output_folder(args, "gluex", "scores.json") as folder:
        return _evaluate(args, folder)


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    """Predict and score each set."""
    classifier = classify.open_classifier(args.model, args.dtype)
    task = classifier.task
    shifts = {shift.name: shift for shift in SHIFTS.get(task.name, ())}
    if not shifts:
        raise UserError(f"there is no out-of-domain set for {task.name}; there are sets for {', '.join(SHIFTS)}")
    names = [choose("set", name, shifts) for name in args.sets or shifts]
    places = _places(args.data, shifts)
    scores, left_out = {}, {}
    for name in names:
        try:
            examples = load_shift(shifts[name], places.get(name), args.limit)
        except UserError as error:
            if not args.at_hand or name in places:
                raise
            left_out[name] = str(error)
            continue
        scores[name] = _score(args, classifier, shifts[name], examples, folder / name)
    write_sealed(
        folder / "scores.json", {"task": task.name, "model": args.model, "scores": scores, "left_out": left_out}
    )
    for name, reason in left_out.items():
        print(f"{task.name} → {name:12} left out: {reason}")
    print(f"{len(scores)} of {len(names)} sets → {folder / 'scores.json'}")
    return 0


def _places(words: list[str] | None, shifts: dict[str, Shift]) -> dict[str, str]:
    """Return {set: its local copy} from NAME=PATH words."""
    pairs = [word.partition("=") for word in words or ()]
    for name, sign, _ in pairs:
        if not sign:
            raise UserError(f"--data {name}: write NAME=PATH, with one of {', '.join(shifts)} as NAME")
        choose("set", name, shifts)
    return {name: path for name, _, path in pairs}


def _score(args: argparse.Namespace, classifier, shift: Shift, examples, folder: Path) -> dict:
    """Predict one set and write its files; return its entry in scores.json."""
    from .classifiers import metrics  # scipy and scikit-learn take seconds to import

    logits, seconds = classify.predict(classifier, examples, args.batch_size)
    folder.mkdir(parents=True, exist_ok=True)
    classify.write_predictions(folder, examples, logits)
    computed = metrics.compute(classifier.task, logits, examples.labels)
    headline = shift.metrics[0]
    score = {"benchmark": f"gluex/{classifier.task.name}-{shift.name}", "metric": headline, "score": computed[headline]}
    score |= {**computed, "source": examples.source, "report": examples.report, "limit": args.limit}
    score |= {
        "model": args.model,
        "base": classifier.base,
        "weights": weights_of_run(args.model),
        "dtype": args.dtype,
        "seconds": round(seconds, 2),
    }
    unlabelled, rows = examples.report.get("unlabelled"), len(examples.labels)
    if unlabelled and "accuracy" in computed:  # as published: over all rows, with unlabelled ones counted as wrong
        score["accuracy_unfiltered"] = computed["accuracy"] * rows / (rows + unlabelled)
    write_record(folder / "score.json", score, (classify.PREDICTIONS,))
    shown = "undefined" if computed[headline] is None else f"{computed[headline]:.4f}"
    print(f"{classifier.task.name} → {shift.name:12} {headline} {shown} of {len(examples.labels)}")
    return {name: score.get(name) for name in ("metric", "score", "n", "accuracy_unfiltered", *shift.metrics)}


if __name__ == "__main__":
    run_cli(main)
