"""An experiment file → the list of its runs, with stable names and folders.

name: embedded                        # the runs go to runs/NAME
config: configs/nlg/tiny.yaml         # options of every run, as train.py takes them
methods:                              # name → what differs; {} without a method is the untouched base model
  base: {}
  ba-lora: {method: ba-lora, learning_rate: 0.002}
seeds: [42, 1024, 2024]
evaluate:                             # name → problems; of a classifier "split:test" or "shift:products"
  test: {data: "tinymath:test", limit: 500}
compare: {method: ba-lora, against: [pissa, lora]}
tuning: {seed: 7, data: "tinymath:validation", limit: 300, learning_rates: [0.001, 0.002]}
"""

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ..arguments import TrainArguments, changed_options, config_words, make_parser
from ..errors import UserError, nearest
from ..files import read_json

KEYS = ("name", "config", "methods", "seeds", "evaluate", "compare", "tuning")


@dataclass(frozen=True)
class Evaluation:
    """A set of problems that every run answers: its name in the table, its data, and how many."""

    name: str
    data: str
    limit: int | None = None


@dataclass(frozen=True)
class Run:
    """One training (arguments) or the base model (None), and where it is kept."""

    method: str
    seed: int | None
    folder: Path
    model: str
    arguments: TrainArguments | None

    @property
    def name(self) -> str:
        return self.folder.name

    def state(self, evaluations: list[Evaluation]) -> str:
        """ "measured" when training and measurements stand for exactly this run, "trained", or "missing"."""
        if self.arguments is not None:
            record = self.folder / "run.json"
            before = read_json(record) if record.is_file() else {}
            if before.get("status") != "finished" or changed_options(before["config"], self.arguments):
                return "missing"
        measured = self.folder / "measures.json"
        wanted = [vars(evaluation) for evaluation in evaluations]
        return "measured" if measured.is_file() and read_json(measured).get("evaluations") == wanted else "trained"


@dataclass(frozen=True)
class Experiment:
    """A parsed experiment file."""

    name: str
    file: Path
    runs: list[Run]
    evaluations: list[Evaluation]
    seeds: list[int]
    compare: dict = field(default_factory=dict)
    tuning: dict = field(default_factory=dict)


def read_experiment(
    file: str | Path, runs: str | Path = "runs", seeds: int | None = None, changes: dict | None = None
) -> Experiment:
    """Parse `file`; its runs stand under the folder `runs`; `seeds` keeps the first so many; `changes`: options of every run,
    in place of the file's. Raises UserError."""
    content = _read(file)
    content["methods"] = {
        method: {**options, **(changes or {})} if options else {} for method, options in content["methods"].items()
    }
    chosen = content["seeds"][:seeds]
    evaluations = [Evaluation(name, **values) for name, values in content["evaluate"].items()]
    home = Path(runs) / content["name"]
    made = []
    for method, changes in content["methods"].items():
        for seed in chosen if changes else [None]:
            made.append(make_run(content, method, changes, seed, home))
    return Experiment(
        content["name"], Path(file), made, evaluations, chosen, content.get("compare", {}), content.get("tuning", {})
    )


def tuning_runs(file: str | Path, runs: str | Path = "runs") -> Experiment:
    """The runs that choose a learning rate for each method: one seed, a grid, judged on validation problems."""
    content = _read(file)
    tuning = content.get("tuning")
    if not tuning:
        raise UserError(f"{file} has no 'tuning:' with seed, data, limit and learning_rates")
    home = Path(runs) / f"{content['name']}-tuning"
    rates = [float(rate) for rate in tuning["learning_rates"]]
    made = [
        make_run(content, method, changes | {"learning_rate": rate}, tuning["seed"], home, suffix=f"-lr{rate:g}")
        for method, changes in content["methods"].items()
        if changes
        for rate in rates
    ]
    evaluations = [Evaluation("validation", tuning["data"], tuning["limit"])]
    return Experiment(content["name"], Path(file), made, evaluations, [tuning["seed"]], tuning=tuning)


def make_run(content: dict, method: str, changes: dict, seed: int | None, home: Path, suffix: str = "") -> Run:
    """One run: the common options, the method's, the seed."""
    words = config_words(content["config"])
    folder = home / (f"{method}{suffix}-s{seed}" if seed is not None else method)
    for key, value in {**changes, "seed": seed if seed is not None else 0, "output_dir": folder}.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{key}", *("none" if item is None else str(item) for item in values)]
    given = vars(make_parser().parse_args(words))
    given.pop("config"), given.pop("debug")
    arguments = TrainArguments(**given)
    return Run(method, seed, folder, arguments.model, arguments if seed is not None else None)


def _read(file: str | Path) -> dict:
    path = Path(file)
    if not path.is_file():
        raise UserError(f"experiment file {file} does not exist")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold the keys {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: unknown key '{key}'{nearest(key, KEYS)}")
    for key in ("name", "config", "methods", "seeds", "evaluate"):
        if not content.get(key):
            raise UserError(f"{file}: '{key}' is missing or empty")
    return content
