"""The disk space of a run, from the sizes of its parts. Needs no large library, so that a preflight takes seconds."""

from ..methods.names import method_of
from ..training.arguments import TrainArguments
from ..training.deepspeed_config import zero_stage

CHECKPOINTS = 3  # at a time: two that a run keeps (run.training_arguments), and a new one before the oldest goes


def disk(
    arguments: TrainArguments,
    start: str,
    steps: int | None,
    *,
    parameters: int,
    trained: int,
    adapter: int,
    copy: int,
    decompositions: int,
    state: int,
    deepspeed: str | None,
    cast: bool,
) -> dict[str, int]:
    """The largest number of bytes that a run occupies on disk at any time, by content.

    An adapter from a PiSSA start is exported with twice its rank, for the original base. With --save_steps 0, initial values and a
    copy of the trained tensors are removed at the end. steps: None if not known. parameters, trained: counts; adapter, copy,
    decompositions: bytes of the trained tensors, the teacher's part and the cached decompositions. state: bytes of the optimizer's.
    deepspeed: the config that the processes use. cast: see `_checkpoint`.
    """
    decomposes = start.startswith("pissa")
    needed = {method_of(arguments.method).saved: adapter * (2 if decomposes else 1)}
    if start != "full" and copy:
        needed["initial values"] = copy
    if arguments.save_steps:
        saves = CHECKPOINTS if steps is None else min(CHECKPOINTS, -(-steps // arguments.save_steps))
        needed["checkpoints"] = saves * _checkpoint(deepspeed, adapter, trained, cast, state)
    else:
        needed["trained tensors"] = adapter
    if arguments.merge:
        needed["merged"] = parameters * (2 if arguments.dtype in ("bfloat16", "float16") else 4)
    if decomposes and arguments.decomposition_cache is not None:
        needed["decomposition cache"] = decompositions
    return needed


def _checkpoint(deepspeed: str | None, adapter: int, trained: int, cast: bool, state: int) -> int:
    """Bytes of one checkpoint: the trained tensors and the optimizer's state. DeepSpeed holds the state and a tensor copy in
    float32 and, except with ZeRO-3, writes the tensors once more; cast: it holds them in bfloat16."""
    if not deepspeed:
        return adapter + state
    times = 1 if zero_stage(deepspeed) == 3 else 2
    return times * (2 * trained if cast else adapter) + 4 * trained + state
