"""Refusals that need only the options and the disk, made before the libraries are imported, which takes seconds."""

from collections.abc import Callable
from pathlib import Path

from ..data.sources import check_source
from ..errors import UserError
from ..files import read_json
from ..folders.disk import refuse_unwritable
from ..folders.ownership import refuse_foreign
from ..folders.places import check_model_folder
from ..laboratory.names import parse as parse_twin
from ..machine.devices import hide_gpus, refuse_unmeant_cpu
from ..machine.processes import is_first
from ..packages import check_name
from .arguments import TrainArguments
from .command_line import changed_options, parse
from .model_numbers import fetch_config, parameters_of, width_of


def parse_and_check(
    words: list[str] | None = None, check: Callable[[TrainArguments], None] | None = None, *, tell: bool = True
) -> TrainArguments:
    """`command_line.parse`, then `check`, by default `check_inputs`. A model on the hub is asked for its size if the options depend
    on it.

    With --use_cpu this process and those that it starts see no GPU. tell: print what was chosen for the run. A command that starts
    another one for the training leaves that to it.
    """
    arguments = parse(words)
    if arguments.use_cpu:
        hide_gpus()
    if not arguments.dry_run:
        (check or check_inputs)(arguments)
        if arguments.chosen and width_of(arguments.model) is None and fetch_config(arguments.model):
            arguments = parse(words)  # chooses again, by the width
    if tell and arguments.chosen and is_first():
        print(arguments.chosen)
    return arguments


def check_inputs(arguments: TrainArguments) -> None:
    """Raise UserError if the base model, the data, the output folder or the device of a run is known to be wrong."""
    for check in CHECKS:
        check(arguments)


def problems(arguments: TrainArguments) -> list[UserError]:
    """Every error of `check_inputs`, in place of the first."""
    found = []
    for check in CHECKS:
        try:
            check(arguments)
        except UserError as error:
            found.append(error)
    return found


def _check_output(arguments: TrainArguments) -> None:
    refuse_foreign(arguments.output_dir, "run")
    refuse_another_run(arguments)
    if is_first():  # the others write nothing
        refuse_unwritable(arguments.output_dir)


def _check_model(arguments: TrainArguments) -> None:
    if not check_name(arguments.model) and not parse_twin(arguments.model) and arguments.model != "tiny":
        check_model_folder(arguments.model)


def _check_data(arguments: TrainArguments) -> None:
    if arguments.data or arguments.data_path:
        check_source(arguments.data or "", arguments.data_path)
    if arguments.validation_data:
        check_source(arguments.validation_data)


def _check_device(arguments: TrainArguments) -> None:
    refuse_unmeant_cpu(parameters_of(arguments.model), arguments.model, arguments.use_cpu)


CHECKS = (_check_output, _check_model, _check_data, _check_device)  # the last may import torch, which takes seconds


def refuse_another_run(arguments: TrainArguments) -> dict | None:
    """The run.json of the run that --resume continues, or None if the folder is free or --overwrite frees it.

    Raises UserError if the folder holds a run that must not be changed, or one of other options.
    """
    folder = Path(arguments.output_dir)
    if arguments.overwrite or not (folder / "run.json").is_file():
        return None
    if not arguments.resume:
        raise UserError(
            f"--output_dir {folder} holds a run already; add --resume to continue it or --overwrite to replace it"
        )
    before = read_json(folder / "run.json", "config", "status")
    for name, (was, now) in changed_options(before["config"], arguments).items():
        raise UserError(
            f"--resume: {name} is {now} and was {was} in {folder}; give the first run's options, or --overwrite"
        )
    return before
