"""Experiments that have tables of their own kind: on mirror twins, and on given texts.

Such a module has `page` (parts for the HTML report), `tables` (texts by format) and `write_tables`.
"""

from types import ModuleType

from . import laboratory
from .given_texts import are_given
from .matrix import Experiment
from .tables import given_texts


def own_tables(experiment: Experiment) -> ModuleType | None:
    """Return the module with the tables of an experiment, or None for the usual tables (tables/build.py)."""
    if laboratory.is_laboratory(experiment):
        return laboratory
    return given_texts if are_given(experiment.evaluations) else None
