"""The end of a run, arranged so that no training is lost there.

Before the first step `try_out` writes everything except the tensors to a temporary folder, so anything that cannot be written
is repaired or reported then. After the last step KeepTrained first writes the trained tensors as a checkpoint. Later failures
(a reporter, the export, the merge, a full disk) are reported by `told`; --resume then finishes the run without training again.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback
from transformers import logging as transformers_logging
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from ..card import write_card
from ..errors import RunFailure, UserError
from ..files import write_json
from ..folders.disk import existing
from ..machine.processes import is_first
from ..methods.names import method_of, start_of
from ..methods.save import export, save_whole
from ..methods.teacher import COPY
from . import checkpoints
from .arguments import TrainArguments
from .interruptions import cause, on_any_process
from .resume import from_first

logger = logging.getLogger(__name__)


def try_out(arguments: TrainArguments, student: nn.Module, tokenizer, task: dict | None, record: dict) -> None:
    """Write the final files of the run, except the tensors, to a temporary folder, and check that the tensors will fit on the disk.

    student: from `attach`, before training. record: the future run.json. Every process calls this; only rank 0 does the work.
    Raises on all processes: UserError if something cannot be written, RunFailure if the disk is too small.
    """
    failure = None
    if is_first():
        try:
            _try_all(arguments, student, tokenizer, task, record)
        except UserError as error:
            failure = error
    failure = from_first(failure)
    if failure is not None:
        raise failure


def _try_all(arguments: TrainArguments, student: nn.Module, tokenizer, task: dict | None, record: dict) -> None:
    whole = student.get_base_model() if isinstance(student, PeftModel) else student
    with _temporary() as place, _no_bar():
        run, saved = Path(place), method_of(arguments.method).saved
        _try("what was trained", arguments, lambda: _refuse_shared(student))
        _try("what was trained", arguments, lambda: export(student, run / saved, task, tensors=False))
        if arguments.method == "full":
            _try("the model", arguments, lambda: _refuse_tied(whole))
        if arguments.merge or arguments.method == "full":
            _try("the tokenizer", arguments, lambda: tokenizer.save_pretrained(run / saved))
        if arguments.merge and getattr(whole, "hf_quantizer", None) is None:  # save_pretrained would write its tensors
            _try("the merged model", arguments, lambda: save_whole(whole, run / "merged", {}))
        ended = {"status": "finished", "steps": 1, "train_seconds": 1.0, "peak_memory": 1}
        _try("run.json", arguments, lambda: write_json(run / "run.json", record | ended))
        _try("the model card", arguments, lambda: write_card(run))
    _check_space(arguments, student, whole)


def _temporary() -> tempfile.TemporaryDirectory:
    try:
        return tempfile.TemporaryDirectory(prefix="ba-lora-")
    except OSError as error:
        raise RunFailure(
            f"no temporary folder can be made ({error}) to try the end of the run before the first step; set TMPDIR "
            "to a folder that can be written"
        ) from error


@contextmanager
def _no_bar() -> Iterator[None]:
    """Hide transformers' progress bar: it would count the files of a model that is not being written."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _try(what: str, arguments: TrainArguments, write: Callable[[], object]) -> None:
    try:
        write()
    except UserError:
        raise
    except Exception as error:
        if reason := cause(error, Path(tempfile.gettempdir())):
            raise RunFailure(f"{what} could not be written as a trial before the first step: {reason}") from error
        raise UserError(
            f"{what} could not be saved at the end of this run, so it is not started: {_line(error)}; "
            f"change the files of --model {arguments.model} or give another model"
        ) from error


def _refuse_shared(student: nn.Module) -> None:
    """Raise ValueError if two trained tensors share memory, which safetensors cannot save."""
    seen: dict[int, str] = {}
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and parameter.numel():
            other = seen.setdefault(parameter.data_ptr(), name)
            if other != name:
                raise ValueError(
                    f"{other} and {name} are two parameters that share memory; tie them, or give each its own"
                )


def _refuse_tied(whole: nn.Module) -> None:
    """Raise transformers' own RuntimeError if tensors are shared but the config does not say so."""
    state = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith(f"{COPY}.")}
    remove_tied_weights_from_state_dict(state, whole)


def _check_space(arguments: TrainArguments, student: nn.Module, whole: nn.Module) -> None:
    """Raise RunFailure if the trained tensors, their export and merged/ do not fit on the disk."""
    trained = sum(_bytes(parameter) for parameter in student.parameters() if parameter.requires_grad)
    exported = trained * (2 if start_of(arguments.method, arguments.init).startswith("pissa") else 1)
    merged = sum(map(_bytes, whole.parameters())) if arguments.merge else 0
    folder = Path(arguments.output_dir)
    freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if arguments.overwrite else 0
    kept = 0 if arguments.resume else trained  # a resumed run may already have its copy
    kept += 2 * trained if arguments.keep == "best" else 0  # the best step's, and its successor while that is written
    free, needed = shutil.disk_usage(existing(folder)).free + freed, kept + exported + merged
    if free < needed:
        raise RunFailure(
            f"--output_dir {arguments.output_dir}: the end of the run needs {needed / 1e9:,.3f} GB and the disk has "
            f"{free / 1e9:,.3f} GB free; free some space or use another disk"
        )


def _bytes(tensor) -> int:
    return tensor.numel() * tensor.element_size()


class KeepTrained(TrainerCallback):
    """Write a checkpoint after the last step, before anything can fail; resuming from it only has to write the results.

    `trainer` is set once it exists. steps_between: --save_steps. If it is 0, the checkpoint holds only the trained tensors, and
    if that does not fit on the disk, the run continues to its export, which may need less.
    """

    def __init__(self, steps_between: int):
        self.trainer, self.steps_between = None, steps_between

    def on_step_end(self, args, state, control, **objects):
        if state.global_step < state.max_steps:
            return
        counted, begun = self.trainer.objective_callback, time.perf_counter()
        counted.model.clock.lap("optimizer")
        counted.model.clock.rest()  # writing here is not part of the step
        try:
            self.trainer.save_last(complete=bool(self.steps_between))
        except RunFailure as failure:
            is_fatal = bool(self.steps_between) or failure.__cause__ is None  # no cause: a value is not finite
            if on_any_process(is_fatal and state.is_world_process_zero, args.device):
                raise
            logger.warning("%s; the results are written without it", str(failure).partition(";")[0])
        counted.started += time.perf_counter() - begun


@contextmanager
def told(trainer, folder: Path) -> Iterator[None]:
    """Turn a failure after the last step into a RunFailure that names the saved tensors and says how to finish the run."""
    try:
        yield
    except Exception as error:
        state, place = trainer.state, folder / "checkpoints"
        if not 0 < state.max_steps <= state.global_step:
            raise
        kept = place / f"{checkpoints.PREFIX}{state.global_step}"
        if checkpoints.flaw(kept, hashes=False):
            raise
        raise RunFailure(
            f"all {state.global_step} steps are done and the trained tensors are in {kept}, but a later part failed "
            f"({cause(error, folder) or _line(error)}); fix that and finish the run with --resume, which repeats no training"
        ) from error


def _line(error: Exception) -> str:
    """The error on one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:500]}"
