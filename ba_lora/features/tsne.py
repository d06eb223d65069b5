"""Features of the last hidden layer as t-SNE figures: one panel per run and step, with scores of how well the classes separate.

The scores in the original space are the result. Those in the plane only describe the picture: t-SNE keeps neighbours, not
distances, and its axes have no unit. Everything is computed on one thread from a fixed seed, so that it is repeatable.
"""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..errors import Parser, UserError, nearest
from ..files import read_json
from ..folders import checksums
from ..folders.ownership import claimed, refuse_foreign
from .figure import FINAL, Panel, write_figures
from .record import redraw, write_record

ALL = "all"  # the steps that the first folder holds
FACTS = "features.json"  # beside the features; saver.py writes them
NEIGHBOURS = 10  # for the purity

EXAMPLES = """\
examples:
  one run at its end
    python tsne_visualization.py --features_dir runs/ba-lora/features --output_dir figures
  two runs side by side at four steps: tsne_evolution.pdf has one row per run and one column per step
    python tsne_visualization.py --features_dir runs/lora/features runs/ba-lora/features --names LoRA BA-LoRA \\
        --step 0 100 500 final --output_dir figures
  features of other software (no features.json), with names for the classes 0, 1 and 2
    python tsne_visualization.py --features_dir features --labels entailment neutral contradiction --output_dir figures

  the same figures again from the points and scores that were kept, without the features
    python tsne_visualization.py --redraw results/t-sne --output_dir figures

A folder holds features_step_<n>.npy (examples, width) and labels_step_<n>.npy (examples,), as written by a training with saved
features. The output is tsne_step_<n>.pdf and .png for every step, tsne_evolution.pdf and .png for several steps, the points in
coordinates.csv, and in scores.json the silhouette (-1 to 1), the share of the 10 nearest neighbours of the same class, and the
Davies-Bouldin index (lower is better), each in the original space and in the plane, with Euclidean distance. Files of an
earlier call are replaced. Compare runs by the scores in the original space: the axes of t-SNE have no unit, and neither
the size of a cluster nor the distance between two clusters has a meaning.
"""


def features_file(folder: str | Path, step: int | str) -> Path:
    """The file with the features of a step or of "final": (examples, width)."""
    return Path(folder) / f"features_step_{step}.npy"


def labels_file(folder: str | Path, step: int | str) -> Path:
    """The file with the labels of these features: (examples,)."""
    return Path(folder) / f"labels_step_{step}.npy"


def visualise(
    folders: Sequence[str],
    steps: Sequence[int | str],
    output: str | Path,
    *,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    perplexity: float = 30.0,
    seed: int = 42,
    limit: int | None = None,
) -> list[Panel]:
    """Draw the features of every folder at every step and write everything into `output`; return the panels, grouped by run.

    steps: training steps, "final", or "all" for those of the first folder. classes: names of the classes 0, 1, ...; None uses
    those of features.json. names: of the runs. limit: draw the same `limit` random examples in every panel. Raises UserError
    for features that are missing, broken or not comparable, and for an `output` that is not empty and not ours.
    """
    refuse_foreign(output, "t-SNE", "the folder of the figures,")
    output, places = Path(output), [_features_folder(folder) for folder in folders]
    names = list(names) if names else _names_of(places)
    if len(names) != len(places) or len(set(names)) != len(names):
        raise UserError(
            f"{len(places)} folders have the names {', '.join(names)}; give --names with a different name for each"
        )
    if ALL in steps:
        steps = saved_steps(places[0])
    clouds = {(place, step): read_features(place, step) for place in places for step in steps}
    facts = [_facts_of(place) for place in places]
    classes = _check_labels(clouds, facts, classes)
    chosen = _sample(next(iter(clouds.values()))[1], classes, perplexity, seed, limit)
    panels = []
    for name, place in zip(names, places, strict=True):
        for step in steps:
            features, labels = (array[chosen] for array in clouds[place, step])
            if not np.ptp(features, axis=0).any():
                raise UserError(
                    f"{features_file(place, step)}: all examples have the same features, so there is nothing to draw"
                )
            plane = project(features, perplexity, seed)
            panels.append(Panel(name, step, labels, plane, scores(features, labels), scores(plane, labels)))
    record = {
        "features": dict(zip(names, map(str, places), strict=True)),
        "classes": classes,
        "pooling": " or ".join(sorted({fact["pooling"] for fact in facts if fact.get("pooling")})) or None,
        "examples": len(chosen),
        "limit": limit,
        "perplexity": perplexity,
        "seed": seed,
        "neighbours": NEIGHBOURS,
        "versions": {"scikit-learn": version("scikit-learn"), "numpy": np.__version__},
    }
    write_figures(panels, record, output)
    write_record(panels, chosen.tolist(), record, output)
    return panels


def saved_steps(folder: Path) -> list[int | str]:
    """The steps for which a folder holds features, in order, "final" last."""
    names = [path.stem.removeprefix("features_step_") for path in folder.glob(features_file("", "*").name)]
    return sorted(int(name) for name in names if name.isdigit()) + [name for name in names if name == FINAL]


def read_features(folder: Path, step: int | str) -> tuple[np.ndarray, np.ndarray]:
    """(features (N, d), labels (N,)) of a step. Raises UserError if they were not saved, are broken or do not match."""
    file = features_file(folder, step)
    if not file.is_file():
        saved = ", ".join(str(each) for each in saved_steps(folder))
        raise UserError(f"step {step} was not saved in {folder}; give --step one of: {saved}")
    features, beside = _read_array(file), labels_file(folder, step)
    labels = _read_array(beside)
    if features.ndim != 2 or not len(features) or features.shape[1] < 2 or features.dtype.kind not in "fiu":
        raise UserError(
            f"{file} is {features.dtype} of shape {features.shape}; numbers of shape (examples, width) are needed"
        )
    if labels.shape != features.shape[:1]:
        raise UserError(
            f"{beside} has the shape {labels.shape} and {file.name} {features.shape}; one label per example is needed"
        )
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(
            f"{file}: the features of {len(bad)} examples are not finite (the first is number {bad[0]}); the run diverged"
        )
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64) if labels.dtype.kind in "iuf" else None
    if whole is None or (whole != labels).any() or (whole < 0).any():
        raise UserError(
            f"{beside} holds no class numbers (0, 1, ...); a regression or an unlabelled set has no classes to draw"
        )
    return features if features.dtype == np.float64 else features.astype(np.float32), whole


def scores(points: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The separation of the classes, with Euclidean distance. points: (N, d) with N > 10; labels: (N,), at least two classes.

    silhouette: mean of (b − a) / max(a, b), where a and b are an example's mean distances to its own and the nearest other class.
    knn_purity: share of the 10 nearest neighbours that have the example's class. davies_bouldin: mean over the classes of the
    largest (s_i + s_j) / d_ij, with s the mean distance to the class's centre and d the distance between the centres.
    """
    from sklearn.metrics import davies_bouldin_score, silhouette_score
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits

    points = points.astype(np.float64)
    with threadpool_limits(1):
        search = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(points)
        near = search.kneighbors(return_distance=False)  # (N, 10); an example is not its own neighbour
        return {
            "silhouette": float(silhouette_score(points, labels)),
            "knn_purity": float((labels[near] == labels[:, None]).mean()),
            "davies_bouldin": float(davies_bouldin_score(points, labels)),
        }


def project(features: np.ndarray, perplexity: float = 30.0, seed: int = 42) -> np.ndarray:
    """The t-SNE of features (N, d) from a PCA start: (N, 2), float32, to three decimals. Identical for any number of cores."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # threads change the sums' rounding, which t-SNE amplifies to another picture
        tsne = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed, n_jobs=1)
        return tsne.fit_transform(features).round(3)


def _features_folder(folder: str) -> Path:
    """`folder`, or features/ inside it if it is a run folder."""
    for place in (Path(folder), Path(folder) / "features"):
        if next(place.glob(features_file("", "*").name), None):
            checksums.verify(place)
            return place
    raise UserError(
        f"--features_dir {folder} holds no features_step_<n>.npy; give the folder that a run saved its features in"
    )


def _names_of(places: Sequence[Path]) -> list[str]:
    return [
        place.resolve().parent.name if place.resolve().name == "features" else place.resolve().name for place in places
    ]


def _facts_of(place: Path) -> dict:
    file = place / FACTS
    return read_json(file) if file.is_file() else {}


def _read_array(file: Path) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{file} is missing; save the features again") from None
    except (OSError, ValueError, EOFError):
        raise UserError(
            f"{file} is not a readable array (.npy without pickled objects); save the features again"
        ) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{file} is an archive of arrays; one array as .npy is needed")
    return array


def _check_labels(clouds: dict, facts: Sequence[dict], classes: Sequence[str] | None) -> list[str]:
    """The names of the classes. Raises UserError if panels show different examples or the names do not match the labels."""
    (first, labels), *others = ((features_file(*key), cloud[1]) for key, cloud in clouds.items())
    for file, other in others:
        if not np.array_equal(labels, other):
            raise UserError(
                f"{file} and {first} belong to different examples (their labels differ); save the same ones in each run"
            )
    known = [fact["classes"] for fact in facts if fact.get("classes")]
    if any(names != known[0] for names in known):
        raise UserError(f"the runs have different classes ({known}); compare runs of one task")
    highest = int(labels.max())
    count = len(known[0]) if known else highest + 1
    if classes and not len(set(classes)) == len(classes) == count:
        raise UserError(
            f"--labels names {len(classes)} classes ({', '.join(classes)}) and the features have {count}; name each once"
        )
    names = list(classes) if classes else known[0] if known else [f"class {number}" for number in range(count)]
    if highest >= len(names):
        raise UserError(f"a label in {first} is {highest} and {FACTS} names {len(names)} classes; give --labels")
    return names


def _sample(labels: np.ndarray, classes: Sequence[str], perplexity: float, seed: int, limit: int | None) -> np.ndarray:
    """Indices of the examples that every panel shows. Raises UserError if there are too few."""
    chosen = np.arange(len(labels))
    if limit is not None and limit < len(labels):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(labels))[:limit])
    more = "raise --limit" if limit is not None and len(chosen) < len(labels) else "save more examples"
    if len(chosen) <= NEIGHBOURS:
        raise UserError(f"{len(chosen)} examples are too few, the scores use {NEIGHBOURS} neighbours of each; {more}")
    if len(chosen) < 3 * perplexity:
        raise UserError(
            f"{len(chosen)} examples are too few for perplexity {perplexity:g}, which needs {3 * perplexity:g}; "
            f"give --perplexity {len(chosen) // 3} or {more}"
        )
    present = np.unique(labels[chosen])
    if len(present) < 2:
        raise UserError(f"all {len(chosen)} examples are {classes[present[0]]}; at least two classes are needed")
    return chosen


def make_parser() -> argparse.ArgumentParser:
    """The options of tsne_visualization.py."""
    parser = Parser(
        prog="tsne_visualization.py",
        description="Draw saved features as t-SNE figures and measure how well the classes separate.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--features_dir", nargs="+", metavar="DIR", help="folders with saved features, or runs; one row of panels each"
    )
    source.add_argument(
        "--redraw", metavar="FOLDER", help="folder with coordinates.csv and scores.json: draw its figures again"
    )
    add = parser.add_argument
    add("--output_dir", required=True, metavar="OUT", help="folder for the figures and scores.json")
    add(
        "--step",
        nargs="+",
        default=[FINAL],
        metavar="N",
        help="steps to draw: numbers, 'final', or 'all' (default: final)",
    )
    add("--labels", nargs="+", metavar="NAME", help="names of the classes 0, 1, ... (default: features.json's)")
    add("--names", nargs="+", metavar="NAME", help="names of the runs, one per folder (default: the folders')")
    add("--perplexity", type=float, default=30.0, help="approximate neighbours per point (default: %(default)g)")
    add("--seed", type=int, default=42, help="seed of t-SNE and of the sample (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="draw N random examples, the same in every panel (default: all)")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _step(word: str) -> int | str:
    if word in (FINAL, ALL) or (word.isascii() and word.isdigit()):
        return word if word in (FINAL, ALL) else int(word)
    raise UserError(f"--step '{word}' is neither a number nor 'final' or 'all'{nearest(word, [FINAL, ALL])}")


def main(words: list[str] | None = None) -> None:
    """Parse the options, draw, and print the scores."""
    parser = make_parser()
    args = parser.parse_args(words)
    with claimed(args.output_dir, "t-SNE"):
        panels = _redraw(args, parser) if args.redraw else _visualise(args)
    width = max(len(panel.run) for panel in panels)
    print(f"{'':{width}}   step  silhouette  purity  Davies-Bouldin   (in the plane)")
    for panel in panels:
        original, flat = (
            [space[name] for name in ("silhouette", "knn_purity", "davies_bouldin")]
            for space in (panel.original, panel.flat)
        )
        shown = "{:10.3f}  {:6.3f}  {:14.3f}".format(*original) + "   ({:.3f}, {:.3f}, {:.3f})".format(*flat)
        print(f"{panel.run:{width}}  {panel.step!s:>5}  {shown}")
    print(f"Saved in {args.output_dir}")


def _redraw(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Panel]:
    for option in ("step", "labels", "names", "perplexity", "seed", "limit"):
        if getattr(args, option) != parser.get_default(option):
            raise UserError(f"--redraw draws what {args.redraw} holds; leave --{option} out or give --features_dir")
    return redraw(args.redraw, args.output_dir)


def _visualise(args: argparse.Namespace) -> list[Panel]:
    for option, low, high in (("perplexity", 1, np.inf), ("seed", 0, 2**32 - 1), ("limit", 1, np.inf)):
        value = getattr(args, option)
        if value is not None and not low <= value <= high:
            raise UserError(
                f"--{option} is {value}; it must be at least {low}{f' and at most {high}' if high < np.inf else ''}"
            )
    return visualise(
        args.features_dir,
        list(dict.fromkeys(_step(word) for word in args.step)),
        args.output_dir,
        classes=args.labels,
        names=args.names,
        perplexity=args.perplexity,
        seed=args.seed,
        limit=args.limit,
    )
