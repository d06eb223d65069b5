"""The published numbers as printed: one file of configs/paper per table or figure.

title: …                  # also version: of the paper; source: where it was read, and how reliably
rank: 128                 # of the low-rank methods, according to the text; a row may have its own
same_as: [nlg-v5]         # files that print the same results again
apart_from: [nlg-pissa]   # files of other runs: values that equal theirs to the last digit were copied
gain_over: pissa          # the numbers are differences to this method
columns:                  # averaged: part of the column "average"; reading_error: for digitised figures
  gsm8k: {label: GSM8K, unit: "%", better: higher, averaged: true}
rows:                     # mean, [mean, standard deviation], ">96" for more than 96, null if not recovered
  - {model: llama-2-7b, method: lora, gsm8k: [42.47, 0.29], second: [gsm8k]}   # second: marked as second best
errors:                   # where: words from model, method, rank and column; check: the computation that finds it
  - {where: [deberta-v3-base full average], check: average, what: …, follows: …, corrected: 88.65}

Numbers are Decimals: they print as published, including trailing zeros, and averages of them are exact.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path

from ...errors import UserError, choose, nearest, short
from ...files import KINDS, YamlLoader, read_yaml
from ...methods.names import METHODS as TRAINED

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FOLDER = CONFIGS / "paper"
# Methods and their names in the papers: those trained here, and others; single terms are added to a PiSSA start.
METHODS = {
    **{name: each.label for name, each in TRAINED.items()},
    "corda": "CorDA",
    "corda++": "CorDA++",
    "cr": "CR alone",
    "dr": "DR alone",
    "svdr": "SVDR alone",
    "ba-lora-entropy": "BA-LoRA, entropy for DR",
}
MODELS = (*sorted(file.stem for file in (CONFIGS / "models").glob("*.yaml")), "roberta-base", "t5-base")


@dataclass(frozen=True)
class Printed:
    """A printed number. above: the value exceeds `mean`. corrected: the correct value, if known."""

    mean: Decimal
    sd: Decimal | None = None
    above: bool = False
    corrected: "Printed | None" = None

    def __str__(self) -> str:
        return ("> " if self.above else "") + str(self.mean) + (f" ± {self.sd}" if self.sd is not None else "")


@dataclass(frozen=True)
class Column:
    """better: higher, lower, or None for neither. averaged: True if the average includes it."""

    label: str
    unit: str
    better: str | None = None
    averaged: bool = False
    reading_error: Decimal = Decimal(0)


@dataclass(frozen=True)
class Row:
    """cells: by column, without values that were not recovered. rank: set if the row has its own."""

    model: str
    method: str
    cells: Mapping[str, Printed]
    rank: int | None = None
    second: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join(str(word) for word in (self.model, self.method, self.rank) if word is not None)


@dataclass(frozen=True)
class KnownError:
    """where: names of rows, columns or cells. check: one of CHECKS in tests/experiments/paper_checks.py, or None if nothing can compute it."""

    where: tuple[str, ...]
    what: str
    follows: str = ""
    check: str | None = None
    corrected: Printed | None = None


@dataclass(frozen=True)
class Published:
    """One table or figure."""

    name: str
    title: str
    version: str
    source: str
    columns: Mapping[str, Column]
    rows: tuple[Row, ...]
    errors: tuple[KnownError, ...] = ()
    rank: int | None = None
    same_as: tuple[str, ...] = ()
    apart_from: tuple[str, ...] = ()
    gain_over: str | None = None

    def row(self, model: str, method: str, rank: int | None = None) -> Row | None:
        """Return the row of a model and a method; with `rank`, the row of that rank or one without a rank."""
        for row in self.rows:
            known = row.rank or (self.rank if rank else None)
            if (row.model, row.method) == (model, method) and (known == rank or known is None):
                return row
        return None

    def value(self, model: str, method: str, column: str, rank: int | None = None) -> Printed | None:
        """Return the printed value; None if nothing was printed or it was not recovered."""
        row = self.row(model, method, rank)
        return row.cells.get(column) if row else None


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the available tables and figures."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


@cache
def read_paper(name: str, folder: Path = FOLDER) -> Published:
    """Return the table or figure `name`. Raises UserError naming the file and the place for an unknown name, key, model or method,
    a value that is not a number, or an error that points at nothing."""
    path = folder / f"{choose('published table', name, names(folder))}.yaml"
    given = _checked(path, read_yaml(path, _Loader), Published, without=("name",))
    for key, kind, form in (
        ("columns", dict, "lines of key: {label: …, unit: …}"),
        ("rows", list, "lines of - {model: …, method: …}"),
        ("errors", list | None, "lines of - {where: […], what: …}"),
        ("same_as", list | None, "a list of names"),
        ("apart_from", list | None, "a list of names"),
        *((key, str | None, "a text") for key in ("title", "version", "source", "gain_over")),
        ("rank", int | None, "a whole number"),
    ):
        if not isinstance(given.get(key), kind):
            raise UserError(f"{path}: '{key}' is {short(given[key])}; write {form}")
    columns = {key: _read_column(f"{path}, column {key}", each) for key, each in given["columns"].items()}
    errors = tuple(_read_error(f"{path}, errors", each) for each in given.get("errors") or ())
    corrected = {place: error.corrected for error in errors if error.corrected for place in error.where}
    rows = tuple(_read_row(f"{path}, rows", each, columns, corrected) for each in given["rows"])
    tuples = {key: tuple(given.get(key) or ()) for key in ("same_as", "apart_from")}
    published = Published(**{**given, **tuples, "name": name, "columns": columns, "rows": rows, "errors": errors})
    _check_places(path, published)
    return published


class _Loader(YamlLoader):
    """Reads numbers with a decimal point as Decimals."""


def _decimal(loader, node) -> Decimal:
    return Decimal(loader.construct_scalar(node).replace(".nan", "nan").replace(".inf", "inf"))


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def _checked(place: str | Path, given: object, kind: type, without: tuple[str, ...] = ()) -> dict:
    """Return `given` if it is a mapping with the fields of `kind`, including all fields without a default."""
    known = {field.name: field.default for field in fields(kind) if field.name not in without}
    if not isinstance(given, dict):
        raise UserError(f"{place}: {short(given)} is not a mapping of {', '.join(known)}")
    for key in given:
        if key not in known:
            raise UserError(f"{place}: unknown key {short(key)}{nearest(key, known)} (one of: {', '.join(known)})")
    for key, default in known.items():
        if default is MISSING and not given.get(key):
            raise UserError(f"{place}: '{key}' is missing or empty; add it")
    return given


def _read_column(place: str, given: dict) -> Column:
    column = Column(**_checked(place, given, Column))
    if column.better is not None:
        choose(f"{place}: better", column.better, ("higher", "lower"))
    return column


def _read_row(place: str, given: dict, columns: dict[str, Column], corrected: dict[str, Printed]) -> Row:
    if not isinstance(given, dict):
        raise UserError(f"{place}: {short(given)} is not a row; write - {{model: …, method: …, COLUMN: …}}")
    model = choose(f"{place}: model", given.get("model"), MODELS)
    method = choose(f"{place}: method", given.get("method"), METHODS)
    rank, second = given.get("rank"), given.get("second") or ()
    if not isinstance(rank, int | None):
        raise UserError(f"{place}, {model} {method}: rank {short(rank)} is not a whole number")
    if not isinstance(second, list | tuple):
        raise UserError(f"{place}, {model} {method}: second is {short(second)}, a list of columns is needed")
    name, cells = Row(model, method, {}, rank).name, {}
    for key, value in given.items():
        if key in ("model", "method", "rank", "second"):
            continue
        choose(f"{place}, {name}: column", key, columns)
        cell = read_cell(value, f"{place}, {name}, {key}", corrected.get(f"{name} {key}"))
        cells |= {key: cell} if cell else {}
    for key in map(str, second):
        choose(f"{place}, {name}: second: column", key, cells)
    return Row(model, method, cells, rank, tuple(second))


def read_cell(value: object, place: str, corrected: Printed | None = None) -> Printed | None:
    """Parse mean, [mean, sd], ">mean", or null (None). Raises UserError for anything else."""
    if value is None:
        return None
    above = isinstance(value, str) and value.startswith(">")
    parts = value if isinstance(value, list) else [value[1:] if above else value]
    try:
        numbers = [Decimal(str(part)) for part in parts]
    except InvalidOperation:
        numbers = []
    if len(numbers) not in (1, 2) or not all(number.is_finite() for number in numbers):
        raise UserError(f"{place}: {short(value)} is not a number; write a mean, [mean, deviation], '>number' or null")
    return Printed(*numbers, above=above, corrected=corrected)


def _read_error(place: str, given: dict) -> KnownError:
    given = _checked(place, given, KnownError)
    if not KINDS["a list of texts"](given["where"]):
        raise UserError(f"{place}: where '{given['where']}' is not a list; write [{given['where']}]")
    corrected = read_cell(given.get("corrected"), f"{place}, corrected")
    return KnownError(**{**given, "where": tuple(given["where"]), "corrected": corrected})


def _check_places(path: Path, published: Published) -> None:
    """Raise UserError for a duplicate row and for an error that points at nothing."""
    rows = [row.name for row in published.rows]
    for name in rows:
        if rows.count(name) > 1:
            raise UserError(f"{path}: the row {name} is there twice; remove one")
    known = {*rows, *published.columns, *(f"{row.name} {key}" for row in published.rows for key in row.cells)}
    for error in published.errors:
        for where in error.where:
            choose(f"{path}, errors: where", where, known)


def all_published() -> Iterator[Published]:
    """Yield every table and figure."""
    return (read_paper(name) for name in names())
