"""Checks of an experiment file: names that cannot name a folder inside the runs folder, runs that would share a folder, and
invalid seeds, options, evaluations, tunings and margins are refused.

A run's folder is MODEL-DATA-METHOD-OPTION=VALUE-sSEED, with NAME.failed and NAME.log beside it. All checks happen before
anything runs, and also cover file systems that ignore case.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.all import BENCHMARKS, GENERATED

from ..errors import UserError, nearest, short
from ..files import KINDS
from ..training.command_line import changed_options

# options that the matrix sets for every run, and where they come from
OWN = {
    "seed": "seeds: lists the seeds",
    "output_dir": "the matrix names each run's folder",
    "overwrite": "--overwrite of the matrix repeats runs",
    "resume": "the matrix resumes by itself",
    "dry_run": "--dry_run of the matrix prices its runs",
}
TEXTS = {  # key → (its kind in messages, test)
    **dict.fromkeys(("title", "note", "reference", "devices", "config"), ("a text", KINDS["a text"])),
    "paper": ("a list of names", KINDS["a list of texts"]),
}
BESIDE = (".failed", ".log")  # files of a run beside its folder
RESERVED = ("tuning", "tuning.json", "table.md", "table.csv", "table.tex")  # files of the experiment beside its runs
LONGEST = 255 - len(".failed..4194304.tmp")  # bytes of a run's name: most systems allow 255, also for temporary files


def check_content(content: dict, file: str | Path) -> None:
    """Refuse invalid names, seeds and options of a parsed experiment file. Raises UserError naming them."""
    for key, (wanted, fits) in TEXTS.items():
        if content.get(key) is not None and not fits(content[key]):
            raise UserError(f"{file}: '{key}' is {short(content[key])}, {wanted} is needed")
    for key in ("name", "folder", "rates_of"):
        if content.get(key) is not None:
            _check_name(file, key, content[key])
    for key in ("methods", "models", "data", "evaluate"):
        given = content.get(key)
        if not isinstance(given, dict | (list if key in ("models", "data") else dict) | None):
            raise UserError(f"{file}: '{key}' must map names to options, as {key}: {{NAME: {{OPTION: VALUE}}}}")
        _check_names(file, key, given or ())
        for name, options in given.items() if isinstance(given, dict) else ():
            _check_options(file, f"{key}: {name}", options, () if key == "evaluate" else OWN)
    vary = content.get("vary") or {}
    if not isinstance(vary, dict) or not all(isinstance(values, list | dict) for values in vary.values()):
        raise UserError(f"{file}: 'vary' must map options to their values, as vary: {{rank: [1, 2, 4]}}")
    _check_names(file, "vary", vary)
    for option, values in vary.items():
        if isinstance(values, list):
            _check_options(file, "vary", {option: values}, OWN)
            remedy = f"; label it: {option}: {{LABEL: {{{option}: VALUE}}}}"
            _check_names(file, f"vary: {option}", [str(value) for value in values], remedy)
            continue
        _check_names(file, f"vary: {option}", values)
        for label, options in values.items():
            _check_options(file, f"vary: {option}: {label}", options, OWN)
    _check_seeds(file, content["seeds"])
    for name, problems in (content.get("evaluate") or {}).items():
        _check_problems(f"{file}: evaluate: {name}", problems)
        if name in BENCHMARKS and problems["data"].startswith(f"{GENERATED}:"):
            raise UserError(
                f"{file}: evaluate: {name} is a benchmark, and {problems['data']} are generated problems; choose another name"
            )
    if content.get("tuning"):
        _check_tuning(f"{file}: tuning", content["tuning"], content["methods"])
    directions = content.get("stereotypes")
    if directions is not None and (not KINDS["an object"](directions) or set(directions) != {"pro", "anti"}):
        raise UserError(
            f"{file}: 'stereotypes' must name two methods, as stereotypes: {{pro: NAME, anti: NAME}}; it is {short(directions)}"
        )
    _check_margins(f"{file}: margins", content.get("margins"))


def check_options(given: Iterable[str], where: str) -> None:
    """Refuse an option that the matrix itself sets. Raises UserError."""
    for name in given:
        if name in OWN:
            raise UserError(f"{where}: '{name}' cannot be given here; {OWN[name]}")


def _check_options(file, where: str, options, own) -> None:
    if not isinstance(options, dict):
        raise UserError(f"{file}: {where} must have options, as {{rank: 4}}, or {{}}; it has {short(options)}")
    check_options(own and options, f"{file}: {where}")


def _check_names(file, where: str, names: Iterable, remedy: str = "") -> None:
    """Check that every name can name a folder and that all folders differ."""
    seen: dict[str, str] = {}
    for name in names:
        _check_name(file, where, name, remedy)
        other = seen.get(_folded(name))
        if other == name:
            raise UserError(f"{file}: {where}: '{name}' is there twice; leave one out")
        if other is not None:
            raise UserError(f"{file}: {where}: '{other}' and '{name}' differ only in upper and lower case; rename one")
        seen[_folded(name)] = name


def _check_name(file, where: str, name, remedy: str = "") -> None:
    if not isinstance(name, str):
        raise UserError(f"{file}: {where}: the name {short(name)} is not a text; put it in quotes")
    bad = [character for character in name if character in "/\\" or not character.isprintable()]
    if not name.strip():
        reason = "is empty"
    elif bad:
        reason = f"has {bad[0]!r} in it"
    elif name[0] == "." or name != name.strip():
        reason = "begins with a dot" if name[0] == "." else "begins or ends with a space"
    else:
        return
    raise UserError(
        f"{file}: {where}: {short(name)} {reason} and cannot name a folder{remedy or '; choose another name'}"
    )


def _check_seeds(file, seeds) -> None:
    if not isinstance(seeds, list):
        raise UserError(f"{file}: 'seeds' must be a list, as [42, 1024]; it is {short(seeds)}")
    for place, seed in enumerate(seeds):
        if type(seed) is not int or seed < 0:
            raise UserError(f"{file}: seeds: {short(seed)} is not a whole number of at least 0")
        if seed in seeds[:place]:
            raise UserError(f"{file}: seeds: {seed} is there twice; leave one out")


def _check_problems(where: str, given: dict, more: Sequence[str] = (), counts: Sequence[str] = ("limit",)) -> None:
    """Check {data, limit} and `more`, which say which problems to answer. counts: keys that may be absent."""
    for key in given:
        if key not in ("data", *counts, *more):
            raise UserError(f"{where}: unknown key '{key}'{nearest(key, ('data', *counts, *more))}")
    for key in ("data", *more):
        if given.get(key) in (None, "", []):
            raise UserError(f"{where}: '{key}' is missing or empty")
    if not isinstance(given["data"], str):
        raise UserError(f"{where}: 'data' must be a text, as \"tinymath:test\"; it is {short(given['data'])}")
    for key in counts:
        count = given.get(key)
        if count is not None and (type(count) is not int or count < 1):
            raise UserError(f"{where}: '{key}' must be a whole number of at least 1; it is {short(count)}")


def _check_tuning(where: str, given, methods: dict) -> None:
    if not isinstance(given, dict):
        raise UserError(f"{where} must have seed, data, limit and learning_rates; it is {short(given)}")
    _check_problems(where, given, ("seed", "learning_rates"), ("limit", "max_steps"))
    if type(given["seed"]) is not int or given["seed"] < 0:
        raise UserError(f"{where}: 'seed' must be a whole number of at least 0; it is {short(given['seed'])}")
    rates = given["learning_rates"]
    if isinstance(rates, dict) and (missing := [name for name, own in methods.items() if own and name not in rates]):
        raise UserError(
            f"{where}: 'learning_rates' has none for {missing[0]}; give a list for every method, or one for all"
        )
    for each in rates.values() if isinstance(rates, dict) else [rates]:
        if not isinstance(each, list) or not each or not all(map(_is_number, each)):
            raise UserError(
                f"{where}: 'learning_rates' must be a list of numbers, as [0.001, 0.002]; it is {short(each)}"
            )


def _check_margins(where: str, given) -> None:
    if not isinstance(given, dict | None):
        raise UserError(f"{where} must map columns to numbers, as margins: {{test: 1.0}}; it is {short(given)}")
    for column, margin in (given or {}).items():
        if not _is_number(margin):
            raise UserError(
                f"{where}: {short(column)} must be a number above 0, in the column's unit; it is {short(margin)}"
            )


def _is_number(value) -> bool:
    """Return True for a positive finite number, also for one that YAML reads as text, such as 1e-3."""
    try:
        return not isinstance(value, bool) and 0 < float(value) < float("inf")
    except (TypeError, ValueError):
        return False


def check_runs(runs: Sequence, file: str | Path) -> None:
    """Refuse runs that would share a folder, or that are the same under two labels. Raises UserError naming both."""
    taken = {}
    for run in runs:
        if _folded(run.name) in RESERVED:
            raise UserError(f"{file}: the run {run.name} would have the name of a file of the experiment; rename it")
        if len(run.name.encode()) > LONGEST:
            raise UserError(f"{file}: the name {run.name} is too long for a folder; shorten its parts")
        for name in (run.name, *(run.name + end for end in BESIDE)):
            other = taken.setdefault(_folded(name), run)
            if other is not run:
                raise UserError(
                    f"{file}: two runs would share {run.folder}: {_told(other)} and {_told(run)}; rename one"
                )
    alike = defaultdict(list)
    for run in runs:
        if run.arguments and run.variant.varied:
            alike[run.variant._replace(varied=run.variant.varied[:1]), run.data, run.seed].append(run)
    for group in alike.values():
        for place, run in enumerate(group):
            for other in group[:place]:
                if not changed_options(vars(other.arguments), run.arguments):
                    raise UserError(
                        f"{file}: the runs {other.name} and {run.name} have the same options; leave one out"
                    )


def _folded(name: str) -> str:
    """Return the name as a file system that ignores case sees it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _told(run) -> str:
    """Return a description of a run for error messages."""
    parts = {"model": run.variant.model, "data": run.data, "method": run.method}
    parts |= dict([run.variant.varied]) if run.variant.varied else {}
    parts |= {"learning rate": run.arguments.learning_rate} if run.is_trial else {}
    parts |= {"seed": run.seed}
    return "(" + ", ".join(f"{name} {value}" for name, value in parts.items() if value not in (None, "")) + ")"
