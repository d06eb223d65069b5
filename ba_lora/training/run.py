"""One training run, from checked options to the run folder: run.json, metrics.jsonl, adapter/ or model/, merged/.

Nothing is written until the data, the model and the options have been checked. run.json says "running" until it is rewritten at
the end with status "finished".
"""

import logging
import os
import pickle
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import TrainingArguments
from transformers import logging as transformers_logging
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import is_torch_tf32_available

from .. import provenance
from ..card import write_card
from ..errors import RunFailure, UserError
from ..files import digest, read_json, remove_leftovers, remove_own, write_sealed
from ..folders import checksums
from ..folders.disk import refuse_unwritable
from ..folders.kinds import CHECKPOINTS, REPLACED
from ..folders.ownership import claimed, refuse_foreign, remove_run
from ..hub import reserve
from ..machine.devices import gpus
from ..machine.processes import is_first, world
from ..methods import quantisation
from ..methods.names import method_of
from ..methods.save import export, export_merged, saved_parameters, trained_parameters
from ..objective.settings import Objective
from ..sharding import gathered, refuse_fsdp
from . import checkpoints, resume
from . import prepare_classifier as classification
from . import prepare_generator as generation
from .arguments import TrainArguments
from .command_line import as_config, changed_options
from .compiled import check_machine, compile_layers
from .deepspeed_config import check_package, used
from .ending import KeepTrained, told, try_out
from .first_checks import refuse_another_run
from .inputs import input_hashes
from .interruptions import StopSignals, explained
from .optimizers import check_installed, check_optimizer, optimizer_of
from .prepare import Prepared
from .progress import continues_from, started_from
from .reporting import check_reporters, reporting
from .trainer import BALoRATrainer
from .validation import validation_of

logger = logging.getLogger(__name__)

# Values that must be the same on every process, in addition to the data.
AGREED = ("order_hash", "objective", "trained_parameters", "accumulation")


def train(arguments: TrainArguments, callbacks: Sequence = ()) -> Path:
    """Train and return the run folder. `callbacks`: more TrainerCallbacks. Raises UserError for problems the user can fix."""
    folder = Path(arguments.output_dir)
    with claimed(folder, "run", writes=is_first()):
        if not _is_finished(arguments, folder):
            return _train(arguments, folder, callbacks)
        if is_first():
            _kind_of_run(arguments).check(arguments)
    logger.warning("%s holds this run, finished: nothing to do", folder)
    return folder


def _train(arguments: TrainArguments, folder: Path, callbacks: Sequence) -> Path:
    """`train`, in a folder that this process may write to: check, prepare, train, finish."""
    sharding = _check(arguments)
    objective, ranks = arguments.objective(), world()
    if ranks > 1:
        join_processes(arguments)
    resume.refuse_changes(arguments, {"deepspeed": sharding})
    with explained(lambda: "while the data and the model were opened", folder):
        work = _kind_of_run(arguments).prepare(arguments, objective)
    first_values = _check_start(arguments, folder, work.student)
    accumulation = arguments.accumulation(ranks)
    record = {
        "status": "running",
        "model": arguments.model,
        "config": as_config(arguments),
        "chosen": arguments.chosen,
        "objective": vars(objective),
        **work.record,
        "decomposition": getattr(work.student, "decomposition", None),
        "start": first_values,
        "deepspeed": sharding,
        "inputs": input_hashes(arguments) if is_first() else None,
        "trained_parameters": trained_parameters(work.student),
        "quantisation": quantisation.quantisation_of(work.student),
        "processes": ranks,
        "accumulation": accumulation,
        **provenance.record(),
    }
    try_out(arguments, work.student, work.tokenizer, work.task, record)
    stop, keeper = StopSignals(), KeepTrained(arguments.save_steps)
    trainer = _make_trainer(arguments, folder, work, objective, accumulation, [stop])
    for callback in (keeper, *work.callbacks, *callbacks):  # after the trainer's own, which writes metrics.jsonl
        trainer.add_callback(callback)
    keeper.trainer, main = trainer, trainer.is_world_process_zero()
    with stop, explained(lambda: f"after step {trainer.state.global_step}", folder), told(trainer, folder):
        if arguments.compile:
            compile_layers(trainer)
        _begin(arguments, folder, trainer, work.student, record)
        ended = _run(arguments, folder, trainer, record)
        with gathered(saved_parameters(work.student)):
            if main:
                if trainer.validation:
                    trainer.validation.restore(work.student, folder / "checkpoints")
                export(work.student, folder / method_of(arguments.method).saved, work.task)
        trainer.accelerator.wait_for_everyone()  # not after the merge, which may take longer than they wait
        if main:
            _finish(arguments, folder, work.tokenizer, record | ended)
    if main:
        _write_card(folder)
    return folder


def _check(arguments: TrainArguments) -> str | None:
    """Refuse what cannot work here, before anything is opened; return the hash of the DeepSpeed config, if there is one."""
    if arguments.uses_teacher_cache():
        refuse_foreign(arguments.teacher_cache, "teacher cache", "--teacher_cache")
        refuse_unwritable(arguments.teacher_cache, "--teacher_cache")
    if arguments.decomposition_cache not in (None, "auto"):
        refuse_foreign(arguments.decomposition_cache, "decompositions", "--decomposition_cache")
    if not gpus(arguments.use_cpu):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed reports at import that it found none
    refuse_fsdp()
    if arguments.compile:
        check_machine(arguments.use_cpu)
    if not is_first():  # rank 0 alone reports what concerns the whole run
        logging.getLogger("ba_lora").setLevel(logging.ERROR)
        transformers_logging.disable_progress_bar()
    deepspeed = _deepspeed(arguments)
    if arguments.deepspeed and not deepspeed:
        logger.warning(
            "--deepspeed %s is not used: it divides the work of several processes, and this run has one",
            arguments.deepspeed,
        )
    if deepspeed and "RANK" not in os.environ:
        raise UserError(
            "--deepspeed needs a launcher, even for one process: torchrun --nproc_per_node 1 train.py ..., "
            "or sh scripts/ba-lora.sh CONFIG --deepspeed FILE"
        )
    check_package(deepspeed)
    check_optimizer(arguments.optimizer, deepspeed)
    check_installed(arguments.optimizer)
    arguments.accumulation(world())
    check_reporters(arguments.report_to or ())
    if arguments.tf32 and not is_torch_tf32_available():
        raise UserError("--tf32 needs a GPU of the Ampere generation or newer and there is none here; leave it out")
    if arguments.quantize:
        quantisation.check_package()
    if arguments.method == "full" and arguments.objective().uses_teacher():
        logger.warning(
            "full fine-tuning with lambda1 > 0 keeps a second, frozen copy of the whole model as its teacher"
        )
    if arguments.push_to_hub and is_first():
        reserve(arguments.push_to_hub, arguments.hub_public)
    return digest(read_json(deepspeed)) if deepspeed else None


def _deepspeed(arguments: TrainArguments) -> str | None:
    """The DeepSpeed config that this run uses, or None."""
    return used(arguments.deepspeed, world())


def _check_start(arguments: TrainArguments, folder: Path, student: nn.Module) -> str | None:
    """Return the hash of the trained tensors. UserError if a run to be resumed began with others."""
    values = resume.start_of(student, arguments.method)
    has_start = any(folder.glob("checkpoints/*"))  # otherwise nothing depends on an earlier start
    resume.refuse_changes(arguments, {"start": values} if has_start else {})
    if arguments.resume:
        checkpoints.check_start(student, folder / "checkpoints" / checkpoints.START)
    return values


def _make_trainer(
    arguments: TrainArguments, folder: Path, work: Prepared, objective: Objective, accumulation: int, callbacks: list
) -> BALoRATrainer:
    return BALoRATrainer(
        work.student,
        objective,
        training_arguments(arguments, accumulation),
        metrics=folder / "metrics.jsonl",
        all_terms=arguments.log_all_terms,
        gradient_norms=arguments.log_gradient_norms,
        order=work.order,
        teacher_share=arguments.teacher_share,
        wrapper=work.wrapper,
        validation=validation_of(arguments, work.held_out),
        train_dataset=work.samples,
        data_collator=work.collate,
        callbacks=callbacks,
    )


def _begin(arguments: TrainArguments, folder: Path, trainer: BALoRATrainer, student: nn.Module, record: dict) -> None:
    """Write run.json and the start, once all processes agree on the run; may complete `record`."""
    main, start = trainer.is_world_process_zero(), folder / "checkpoints" / checkpoints.START
    _check_agreement(record)  # waits for all processes: each has seen the folder as it was before this run
    if main:
        if record["decomposition"]:
            print(started_from(record["decomposition"]))
        if arguments.resume and (folder / "run.json").is_file():
            first = read_json(folder / "run.json")  # which began the run
            record |= {name: record[name] or first.get(name) for name in ("decomposition", "chosen")}
        _clean_up(arguments, folder)
        write_sealed(folder / "run.json", record)
    checkpoints.keep_start(student, start, first=main)
    trainer.accelerator.wait_for_everyone()
    checkpoints.check_start(student, start)


def _run(arguments: TrainArguments, folder: Path, trainer: BALoRATrainer, record: dict) -> dict:
    """Train; return what run.json then says."""
    started = time.perf_counter()
    with provenance.PeakMemory() as memory, reporting(trainer, folder):
        trainer.objective_callback.gauges.memory = memory
        checkpoint = _checkpoint(arguments, folder, trainer.is_world_process_zero(), record)
        if arguments.resume and trainer.is_world_process_zero():
            print(f"{folder}: {continues_from(checkpoint)}", flush=True)
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except pickle.UnpicklingError as error:  # by torch.load, which reads tensors alone
            raise UserError(
                f"{checkpoint}: the state of the optimiser, the schedule or the random numbers holds something other than "
                "tensors and is not loaded; remove this folder, and --resume takes the checkpoint before it"
            ) from error
    if trainer.validation and trainer.is_world_process_zero():
        print(f"{folder}: {trainer.validation.told()}", flush=True)
    started = min(started, trainer.objective_callback.started)  # for a resumed run, includes the earlier time
    seconds = time.perf_counter() - started
    return {
        "status": "finished",
        "steps": trainer.state.global_step,
        "train_seconds": seconds,
        "peak_memory": trainer.objective_callback.gauges.peak(),
        "validation": trainer.validation and trainer.validation.outcome(),
    }


def _kind_of_run(arguments: TrainArguments):
    """The module that prepares this kind of run."""
    return classification if arguments.task else generation


def join_processes(arguments: TrainArguments) -> None:
    """Connect this process with the others before the model is adapted, which they do together.

    TrainingArguments would do this too, but later, and would make transformers load the model in pieces under ZeRO-3.
    """
    PartialState(cpu=not gpus(arguments.use_cpu), timeout=timedelta(seconds=TrainingArguments.ddp_timeout))


def _finish(arguments: TrainArguments, folder: Path, tokenizer, record: dict) -> None:
    """Write the remaining files of a finished run, and remove checkpoints that were not asked for."""
    kind = method_of(arguments.method).saved
    if kind == "model":
        checksums.add(folder / kind, tokenizer.save_pretrained(folder / kind))
    if arguments.merge:
        unset_hf_deepspeed_config()  # under ZeRO-3 the base would be opened in pieces, waiting for processes that do not take part
        export_merged(
            folder / "adapter",
            arguments.model,
            folder / "merged",
            arguments.dtype,
            trust_remote_code=arguments.trust_remote_code,
        )
    write_sealed(folder / "run.json", record | {"files": checksums.of_run(folder)})
    if not arguments.save_steps:
        remove_own(folder / "checkpoints", CHECKPOINTS)
    print(f"{folder}: {record['steps']} steps in {record['train_seconds']:.0f} s, saved as {folder / kind}")


def _write_card(folder: Path) -> None:
    """Write the model card of a finished run. Raises RunFailure with the command that writes it later."""
    try:
        write_card(folder)
    except Exception as error:
        raise RunFailure(
            f"{folder} is finished and saved, but for its model card ({type(error).__name__}: {error}); write that with "
            f"python -m ba_lora.card {folder}"
        ) from error


def leave_processes(status: int = 0) -> None:
    """Leave the process group after the last training. On CPUs, where several processes use Gloo, also end this one with `status`.

    Gloo's threads outlive destroy_process_group (the wrapped model holds the group). A thread that drops a tensor while the
    interpreter shuts down aborts the process, and torchrun then reports a failed run although all work is done. Everything
    has been written by now, so the interpreter's shutdown is skipped.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    on_cpu = distributed.get_backend() == "gloo"
    if on_cpu:
        distributed.barrier()
    distributed.destroy_process_group()
    if on_cpu:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def training_arguments(arguments: TrainArguments, accumulation: int) -> TrainingArguments:
    """Our options as transformers' TrainingArguments."""
    on_gpu = bool(gpus(arguments.use_cpu))
    return TrainingArguments(
        output_dir=str(Path(arguments.output_dir) / "checkpoints"),
        per_device_train_batch_size=arguments.micro_batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=arguments.epochs,
        max_steps=arguments.max_steps,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type=arguments.lr_scheduler,
        warmup_steps=arguments.warmup_ratio,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm,
        optim=optimizer_of(arguments.optimizer, on_gpu=on_gpu, deepspeed=bool(arguments.deepspeed)),
        bf16=arguments.dtype == "bfloat16" and on_gpu,
        tf32=arguments.tf32 or None,
        gradient_checkpointing=arguments.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if arguments.gradient_checkpointing else None,
        logging_steps=arguments.logging_steps,
        logging_first_step=True,
        save_strategy="steps" if arguments.save_steps else "no",
        save_steps=arguments.save_steps or 500,
        save_total_limit=2,
        seed=arguments.seed,
        data_seed=arguments.seed,
        use_cpu=not on_gpu,
        deepspeed=_deepspeed(arguments),
        disable_tqdm=not arguments.progress,
        report_to=arguments.report_to or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        ddp_find_unused_parameters=False,
    )


def _is_finished(arguments: TrainArguments, folder: Path) -> bool:
    """Return True if `folder` holds this very run, finished. Raises UserError if it holds a run that must not be changed."""
    before = refuse_another_run(arguments)
    if before is None or before["status"] != "finished":
        return False
    checksums.verify_run(folder)
    return True


def _check_agreement(record: dict) -> None:
    """Raise UserError if another process read other data or built another objective or adapter."""
    mine = {"data": record["data"]["hash"], "the base model": record["base"]["sample"]}
    mine |= {name: record[name] for name in AGREED} | {"--teacher_share": record["config"]["teacher_share"]}
    mine["the held-out rows"] = record["validation"] and record["validation"]["hash"]
    for name, value in mine.items():
        if len(set(gather_object([digest(value)]))) > 1:
            raise UserError(
                f"the processes do not agree on {name}; give every machine the same options, data and model"
            )


def _clean_up(arguments: TrainArguments, folder: Path) -> None:
    """Clean up after a killed run; with --overwrite, remove the old run's parts and nothing else."""
    remove_leftovers(folder, REPLACED)
    checkpoints.remove_leftovers(folder / "checkpoints")
    if arguments.overwrite:
        remove_run(folder)


def _checkpoint(arguments: TrainArguments, folder: Path, main: bool, record: dict) -> str | None:
    """The checkpoint to continue from, the same on every process, or None to start at step 0."""

    def alien(before: dict) -> str | None:
        """The difference between this run and the run of a checkpoint's run.json, or None."""
        for name, (was, now) in changed_options(before["config"], arguments).items():
            return f"{name} is {was} there and {now} here"
        if before["data"]["hash"] != record["data"]["hash"]:
            return "it was trained on other data"
        if before["order_hash"] != record["order_hash"]:
            return "its samples are in another order"
        return None

    found = checkpoints.newest(folder / "checkpoints", alien) if arguments.resume and main else None
    return broadcast_object_list([str(found) if found else None])[0]
