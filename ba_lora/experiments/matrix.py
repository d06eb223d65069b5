"""An experiment file → the list of its runs, with stable names and folders.

name: ranks                           # results go to results/NAME
title: Rank                           # heading of its table and figure
paper: [ranks]                        # published numbers to show beside (configs/paper)
folder: nlg-embedded                  # runs go to runs/FOLDER [NAME]; experiments may share runs of the same name
config: configs/nlg/{model}-{data}-v5.yaml   # options of every run, as train.py takes them
models: [llama-2-7b, mistral-7b]      # fill {model}; a mapping adds options per model: {mistral-7b: {rank: 64}}, also its config
twins: [3, 4]                         # instead of models: pairs of mirror twins by seed; options may name it as {pair}
data: [metamath, code]                # fill {data}: one run per data set, together one row of the table
methods:                              # name → its options; {} without a method is the unchanged base model
  base: {}
  ba-lora: {method: ba-lora, learning_rate: 0.002}
vary:                                 # each method with each value, one option at a time; METHOD-OPTION=VALUE
  rank: [1, 2, 4]
  imbalance: {"0.5": {class_shares: ["negative=0.5"]}}   # or a label and its options
seeds: [42, 1024, 2024]
evaluate:                             # name → problems; for classifiers "split:test" or "shift:products"
  test: {data: "tinymath:test", limit: 500}   # without `evaluate`: the benchmarks that the config names; or given texts (given_texts.py)
paths: [pissa, lora]                  # methods on twins that are also measured between base and tuned model; the first also with a
                                      # random update of its norm
primary: {method: ba-lora, reference: pissa, margin: 10, loss_margin: 0.02, gate: 0.5}   # on twins: the comparison with verdicts
margins: {test: 1.0}                  # the smallest difference of interest in a column, in its unit: percentage points, or of 1 to 10
reference: pissa                      # the method that the others are compared with [pissa, if present]
note: One generated task.             # printed below the table
stereotypes: {pro: with, anti: against}   # methods tuned towards and away from stereotypes: which benchmark notices
tuning: {seed: 7, data: "tinymath:validation", limit: 300, learning_rates: [0.001, 0.002]}   # or rates by method, and max_steps
rates_of: nlg-main-embedded           # or: the rates chosen by the tuning of another experiment
devices: 2xA40                        # GPUs for which --dry_run estimates the cost
"""

import itertools
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError, choose, nearest, short
from ..files import of_the_project, read_json, read_yaml
from ..training.arguments import TrainArguments
from ..training.command_line import changed_options, option_words, parse
from ..training.inputs import inputs_changed, measured_hashes
from .benchmark_data import columns_of
from .given_texts import are_given
from .run_names import check_content, check_options, check_runs
from .twin_axis import PrimarySettings, filled, in_order, models_of, primary_of

FOLDER = of_the_project("configs/experiments")
NEEDED = ("name", "config", "methods", "seeds")
KEYS = (
    *NEEDED,
    *(
        "title",
        "note",
        "paper",
        "folder",
        "models",
        "twins",
        "data",
        "vary",
        "evaluate",
        "reference",
        "tuning",
        "rates_of",
    ),
    *("paths", "primary", "margins", "devices", "stereotypes"),
)
RUN_KINDS = {"status": "a text", "config": "an object", "inputs?": "an object"}  # of run.json


@dataclass(frozen=True)
class Evaluation:
    """A set of problems that every run answers: its name in the table, its data, and the number of problems."""

    name: str
    data: str
    limit: int | None = None


class Variant(NamedTuple):
    """One row of a table: the runs of one model and method over data and seeds. varied: (option, value)."""

    model: str
    method: str
    varied: tuple[str, str] | None = None


@dataclass(frozen=True)
class Run:
    """One training (arguments) or the base model (None), and its folder."""

    variant: Variant
    data: str | None
    seed: int | None
    folder: Path
    model: str  # as --model takes it
    words: tuple[str, ...]  # config and options, as `python -m ba_lora.experiments one` takes them
    arguments: TrainArguments | None
    is_tuned: bool = False  # True if its learning rate was chosen on validation data
    is_trial: bool = False  # True for a trial of a tuning, which needs only scores
    has_path: bool = False  # True to measure also the models between the base and the tuned one
    has_random: bool = False  # True to measure also the base with a random update of the norm of this one

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def method(self) -> str:
        return self.variant.method

    @property
    def failure(self) -> Path:
        """The file that says why the run last failed."""
        return self.folder.with_name(f"{self.name}.failed")

    @property
    def log(self) -> Path:
        """The log of the run; it lies beside the folder, which belongs to the training."""
        return self.folder.with_name(f"{self.name}.log")

    def status(self) -> str | None:
        """The status of the training in its folder; None unless it has exactly these options and the files are unchanged."""
        record = self.folder / "run.json"
        before = read_json(record, kinds=RUN_KINDS) if record.is_file() else None
        if (
            before is None
            or changed_options(before["config"], self.arguments)
            or inputs_changed(before, self.arguments)
        ):
            return None
        return before["status"]

    def is_trained(self) -> bool:
        """True if its training, if any, is finished."""
        return self.arguments is None or self.status() == "finished"

    def state(self, evaluations: list[Evaluation]) -> str:
        """ "measured" if training and measurements match exactly this run, else "trained", "failed" or "missing"."""
        if self.failure.is_file():
            return "failed"
        if not self.is_trained():
            return "missing"
        if not evaluations:
            scores = [self.folder / "eval" / name / "score.json" for name in self.benchmarks]
            return "measured" if all(file.is_file() for file in scores) else "trained"
        file = self.folder / "measures.json"
        made = read_json(file, kinds={"inputs?": "an object"}) if file.is_file() else {}
        wanted = self.measured_with(evaluations)
        before = made.get("inputs") or {}  # earlier versions wrote none
        changed = [name for name, value in wanted["inputs"].items() if before.get(name, value) != value]
        return "measured" if made.get("evaluations") == wanted["evaluations"] and not changed else "trained"

    def measured_with(self, evaluations: list[Evaluation]) -> dict:
        """The evaluations and the hashes of the local files of the base model and the problems, for measures.json."""
        inputs = measured_hashes(self.model, [evaluation.data for evaluation in evaluations])
        return {"evaluations": [vars(evaluation) for evaluation in evaluations], "inputs": inputs}

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks that its config names."""
        return list(self.arguments.benchmarks or ()) if self.arguments else []


@dataclass(frozen=True)
class Experiment:
    """A parsed experiment file."""

    name: str
    title: str
    file: Path
    home: Path  # folder of the runs
    runs: list[Run]
    evaluations: list[Evaluation]
    seeds: list[int]
    paper: list[str] = field(default_factory=list)
    reference: str | None = None
    note: str | None = None
    tuning: dict = field(default_factory=dict)
    rates_of: str | None = None
    devices: str | None = None
    primary: PrimarySettings | None = None  # of twins
    margins: dict[str, float] = field(default_factory=dict)  # column → smallest difference of interest, in its unit
    stereotypes: dict[str, str] = field(default_factory=dict)  # "pro" and "anti" → the method

    @property
    def is_tuned(self) -> bool:
        """True if the learning rates of its runs are known: chosen by tuning, or all given."""
        return not (self.tuning or self.rates_of) or any(run.is_tuned for run in self.runs)

    @property
    def columns(self) -> list[str]:
        """The columns of its table, known before anything has run."""
        return [evaluation.name for evaluation in self.evaluations] or columns_of(self.runs)

    @property
    def variants(self) -> list[Variant]:
        """The rows of its table, in the order of the file."""
        return list(dict.fromkeys(run.variant for run in self.runs))


def read_experiment(
    file: str | Path,
    runs: str | Path = "runs",
    seeds: int | None = None,
    changes: dict | None = None,
    *,
    results: str | Path = "results",
    tuned: bool = True,
    methods: list[str] | None = None,
) -> Experiment:
    """Parse `file`; its runs go under the folder `runs`. seeds: keep the first N. changes: options of every run that override
    the file's. Tuned rates are read from `runs`, else from `results`; with tuned=False the config's rates stay. methods: only
    these methods of the file. Raises UserError."""
    content = read_file(file)
    for method in methods or ():
        choose("method", method, content["methods"])
    content["methods"] = {name: own for name, own in content["methods"].items() if not methods or name in methods}
    chosen = content["seeds"][:seeds]
    home = Path(runs) / (content.get("folder") or content["name"])
    rates = {}
    if content.get("tuning") or content.get("rates_of"):
        if tuned:
            rates = tuned_rates(content.get("rates_of") or content["name"], runs, results)
        else:
            home = home.with_name(f"{home.name}-untuned")
    check_options(changes or {}, "--set")
    made = []
    for cell in _cells(content):
        made += _runs(cell, changes or {}, chosen, home, rates.get(cell.group))
    check_runs(made, file)
    paths = content.get("paths") or ()
    pathed = [run for run in made if run.arguments and run.method in paths]
    made = in_order(
        [replace(run, has_path=run in pathed, has_random=run in pathed and run.method == paths[0]) for run in made]
    )
    experiment = Experiment(
        content["name"],
        content.get("title") or content["name"],
        Path(file),
        home,
        made,
        _evaluations(content),
        chosen,
        content.get("paper", []),
        content.get("reference") or ("pissa" if "pissa" in content["methods"] else None),
        content.get("note"),
        content.get("tuning", {}),
        content.get("rates_of"),
        content.get("devices"),
        primary_of(content.get("primary"), read_file(file)["methods"], file),
        {column: float(margin) for column, margin in (content.get("margins") or {}).items()},
        content.get("stereotypes") or {},
    )
    for column in experiment.margins:
        choose(f"{file}: margins: column", column, experiment.columns)
    return experiment


def tuning_runs(file: str | Path, runs: str | Path = "runs", changes: dict | None = None) -> Experiment:
    """Return the runs that choose a learning rate for each method: one seed, a grid, scored on validation problems."""
    check_options(changes or {}, "--set")
    content = read_file(file)
    tuning = content.get("tuning")
    if not tuning:
        raise UserError(f"{file} has no 'tuning:' with seed, data, limit and learning_rates")
    home = Path(runs) / f"{content.get('folder') or content['name']}-tuning"
    rates, more = tuning["learning_rates"], {"max_steps": tuning["max_steps"]} if tuning.get("max_steps") else {}
    more |= changes or {}
    made = [
        replace(run, is_trial=True)
        for cell in _cells(content)
        if cell.own and "learning_rate" not in cell.own and not cell.variant.varied
        for rate in map(float, rates[cell.variant.method] if isinstance(rates, dict) else rates)
        for run in _runs(cell, more | {"learning_rate": rate}, [tuning["seed"]], home, suffix=f"-lr{rate:g}")
    ]
    check_runs(made, file)
    evaluations = [Evaluation("validation", tuning["data"], tuning.get("limit"))]
    name = content["name"]
    return Experiment(name, name, Path(file), home, made, evaluations, [tuning["seed"]], tuning=tuning)


def tuned_rates(name: str, runs: str | Path, results: str | Path) -> dict[str, float]:
    """Return {group: learning rate} chosen by the tuning of experiment `name`; {} if it has not been done."""
    for file in (Path(runs) / name / "tuning.json", Path(results) / name / "tuning.json"):
        if file.is_file():
            tuned = read_json(file, kinds={"experiment?": "a text", "best": "an object of numbers"})
            if tuned.get("experiment", name) != name:
                raise UserError(
                    f"{file} is the tuning of {tuned['experiment']}, not of {name}; put the right one there"
                )
            return tuned["best"]
    return {}


class _Cell(NamedTuple):
    """Runs that differ only in their seed. own: the method's options, {} for the base; options: all that override the config."""

    variant: Variant
    data: str | None
    config: str
    own: dict
    options: dict

    @property
    def group(self) -> str:
        """Model, data and method: one learning rate is chosen for each group."""
        return "-".join(part for part in (self.variant.model, self.data, self.variant.method) if part)


def _cells(content: dict) -> list[_Cell]:
    """Return every combination of model, data, method and varied value."""
    models, data = _axis(content.get("models")), _axis(content.get("data"))
    cells = []
    for (model, of_model), (method, own) in itertools.product(models.items(), content["methods"].items()):
        for varied, values in _values(content.get("vary") or {}, own):
            for part, of_data in data.items():
                options = filled({"config": content["config"], **of_model, **of_data, **own, **values})
                config = _fill(options.pop("config"), model, part)
                cells.append(_Cell(Variant(model or "", method, varied), part, config, own, options))
    return cells


def _fill(config: str, model: str | None, data: str | None) -> str:
    """Fill {model} and {data} into the config's name. Raises UserError."""
    try:
        return config.format(model=model, data=data)
    except (AttributeError, IndexError, KeyError, ValueError):
        raise UserError(f"config: {config!r} is not a file name with optional {{model}} and {{data}}") from None


def _axis(given: list | dict | None) -> dict:
    """Return {name: its options}; a single entry without a name if the file lacks this axis."""
    if isinstance(given, list):
        return {name: {} for name in given}
    return given or {None: {}}


def _values(vary: dict, own: dict) -> list[tuple]:
    """Return [((option, value), options)] of a method: first unvaried, then each value of each option."""
    made = [(None, {})]
    for option, values in vary.items() if own else ():
        labelled = values if isinstance(values, dict) else {str(value): {option: value} for value in values}
        made += [((option, label), options) for label, options in labelled.items()]
    return made


def _runs(
    cell: _Cell, changes: dict, seeds: list[int], home: Path, rate: float | None = None, suffix: str = ""
) -> list[Run]:
    """Return one run per seed, or the base model: the config's options, the cell's, the tuned rate if no other is given, `changes`."""
    varied = f"-{'='.join(cell.variant.varied)}" if cell.variant.varied else ""
    name = f"{cell.group}{varied}{suffix}"
    is_tuned = rate is not None and "learning_rate" not in cell.options
    words = option_words(({"learning_rate": rate} if is_tuned else {}) | cell.options | changes, f"the run {name}")
    parsed = parse(["--config", cell.config, *words, "--output_dir", str(home / name)])
    variant = cell.variant if cell.variant.model else cell.variant._replace(model=parsed.model)
    made = []
    for seed in seeds if cell.own else [None]:
        folder = home / (name if seed is None else f"{name}-s{seed}")
        whole = (cell.config, *words, *option_words({"seed": seed or 0, "output_dir": str(folder)}, name))
        arguments = None if seed is None else parsed.changed(seed=seed, output_dir=str(folder))
        made.append(Run(variant, cell.data, seed, folder, parsed.model, whole, arguments, is_tuned))
    return made


def _evaluations(content: dict) -> list[Evaluation]:
    made = [Evaluation(name, **values) for name, values in (content.get("evaluate") or {}).items()]
    are_given(made)  # refuses a mixture
    return made


def read_file(file: str | Path) -> dict:
    """Return the content of an experiment file after checking its keys. Raises UserError naming file and key."""
    path = of_the_project(file)
    if not path.is_file():
        raise UserError(f"experiment file {file} does not exist; name one of {FOLDER}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold the keys {', '.join(KEYS)}")
    options = {item.name for item in fields(TrainArguments)} | {"extends"}
    if not content.keys() & {"methods", "seeds"} and content.keys() <= options:
        raise UserError(f"{file} is the config of one run; train and evaluate it with: sh scripts/ba-lora.sh {file}")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{file}: unknown key {short(key)}{nearest(key, KEYS)}; remove or correct it")
    for key in NEEDED:
        if not content.get(key):
            raise UserError(f"{file}: '{key}' is missing or empty")
    check_content(content, file)
    if content.get("twins"):
        if not content.get("primary"):
            raise UserError(
                f"{file} runs on twins: add the comparison with verdicts, primary: {{method: ..., reference: ...}}"
            )
        if content.get("models"):
            raise UserError(f"{file} has both 'models' and 'twins'; twins are the models, so leave one out")
        content["models"] = models_of(content["twins"], file)
    for name in (*(content.get("paths") or ()), *(content.get("stereotypes") or {}).values()):
        choose("method", name, content["methods"])
    return content
