"""The `vllm` backend: an offline engine in separate processes. vLLM serves the adapter as LoRA if it can; otherwise it is merged.

The engine takes and returns token ids, which become text as in the other backends. It stays open between calls, because
opening it takes up to a minute.
"""

import asyncio
import atexit
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ..data.templates import end_id
from ..errors import UserError
from ..files import read_json
from ..machine.devices import gpus
from ..methods.adapter_files import check_for_base
from ..methods.rounding import refactored_tensors
from ..methods.save import check_saved, export_merged
from ..models import locate
from .completions import Completion, end_ids, finish, room
from .requests import Job, Sampling
from .subject import Subject

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values vLLM accepts as max_lora_rank
POSITIONS = 16384  # prompt plus completion, unless --max_model_len is set: the cache must hold one such row
DEFAULTS = {  # vLLM's environment; the user's settings take precedence
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
# Reads process numbers until its parent, which is named first, has ended for whatever reason, and kills those processes. The end of the
# input alone does not show it: a forked engine holds the pipe open.
WATCHER = """
import os, select, signal, sys
numbers, is_open = b"", True
os.set_blocking(0, False)
while os.getppid() == int(sys.argv[1]) or select.select([0], [], [], 0)[0] and is_open:
    if select.select([0] if is_open else [], [], [], 0.5)[0]:
        more = os.read(0, 4096)
        numbers, is_open = numbers + more, bool(more)
for engine in map(int, numbers.split()):
    try:
        os.kill(engine, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


class Engine(NamedTuple):
    """An open engine, its event loop, the adapter that each request names (or None), and its positions."""

    engine: object
    loop: asyncio.AbstractEventLoop
    adapter: object
    positions: int


def engine_of(args, subject: Subject, *, merged: bool = False) -> Engine:
    """The engine for the options of a command, opened once. Raises UserError with vLLM's own reason if it cannot be opened.

    merged: merge an adapter into its base, also if vLLM could serve it as LoRA.
    """
    return _open(
        subject.weights,
        subject.adapter,
        subject.tokenizer.name_or_path,
        args.dtype,
        args.tensor_parallel,
        args.data_parallel,
        args.max_model_len,
        args.batch_size,
        args.trust_remote_code,
        merged,
    )


def complete(args, subject: Subject, jobs: Sequence[Job], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
    """A backend; see `backends.get_backend`."""
    engine = engine_of(args, subject)
    rooms = [room(job.ids, args.max_new_tokens, engine.positions) for job in jobs]
    ends = end_ids(subject.tokenizer, end_id(subject.tokenizer, subject.template), sampling.stop)
    return _answers(engine, jobs, rooms, ends, sampling, subject.tokenizer)


def _answers(engine, jobs, rooms, ends, sampling, tokenizer) -> Iterator[tuple[int, Completion]]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    async def ask(number: int) -> tuple[int, Completion]:
        job = jobs[number]
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=job.seed,
            max_tokens=rooms[number],
            stop=list(sampling.stop),
            stop_token_ids=ends,
            ignore_eos=True,  # the template's end is in `ends`; the tokenizer's own may differ
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        prompt, name = {"prompt_token_ids": list(job.ids)}, f"{id(jobs)}-{number}"
        async for output in engine.engine.generate(prompt, params, name, lora_request=engine.adapter):
            tokens = list(output.outputs[0].token_ids)
        return number, finish(tokenizer, job.ids, tokens, ends, sampling.stop)

    return gather(engine, [ask(number) for number in range(len(jobs))])


def gather(engine: Engine, questions: Sequence[Coroutine]) -> Iterator:
    """The answers of the engine, as they come; questions that are still open when the caller stops are cancelled."""
    pending = {engine.loop.create_task(question) for question in questions}
    try:
        while pending:
            some = asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            done, pending = engine.loop.run_until_complete(some)
            yield from sorted(task.result() for task in done)
    finally:
        for task in pending:
            task.cancel()


@cache
def _open(
    weights, adapter, tokenizer, dtype, tensor_parallel, data_parallel, max_model_len, batch_size, trust, merged
) -> Engine:
    """See `engine_of`."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if tensor_parallel > 1:  # by default it wants a NUMA node for each worker
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    from vllm import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    _check_devices(tensor_parallel, data_parallel)
    if adapter:
        check_saved(Path(adapter))
    rank = lora_rank(adapter, dtype) if adapter and not merged else None
    options = {} if rank is None else {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    if rank is not None:
        check_for_base(adapter, locate(weights), trust)  # vLLM silently ignores what an adapter lacks
    request = None if rank is None else LoRARequest("adapter", 1, _served(adapter, dtype))
    with TemporaryDirectory(prefix="ba-lora-merged-") as folder, ending_with_us():
        place = locate(weights)
        if adapter and rank is None:
            place = _merge(adapter, weights, folder, dtype, trust)
        try:
            engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs(
                    model=place,
                    tokenizer=tokenizer,
                    dtype=dtype,
                    tensor_parallel_size=tensor_parallel,
                    data_parallel_size=data_parallel,
                    max_model_len=max_model_len or _positions(place, trust),
                    max_num_seqs=batch_size,
                    generation_config="vllm",  # ignore the model's own generation_config
                    enforce_eager=not gpus(),
                    trust_remote_code=trust,
                    enable_log_requests=False,
                    disable_log_stats=True,
                    **options,
                )
            )
        except (ValueError, RuntimeError, OSError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"vLLM cannot open {weights} with these options: {reason}; change what this or its messages above name, or use "
                "--backend transformers"
            ) from None
    atexit.register(engine.shutdown)
    return Engine(engine, asyncio.new_event_loop(), request, engine.model_config.max_model_len)


@contextmanager
def ending_with_us() -> Iterator[None]:
    """End the processes that start inside the block if this one is killed, inside it or later: they would keep running and hold
    the memory that a second run needs."""
    command = [sys.executable, "-S", "-c", WATCHER, str(os.getpid())]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    atexit.register(watcher.kill)
    known, is_over = set(), threading.Event()

    def tell() -> None:
        is_last = False
        while not is_last:
            is_last = is_over.wait(0.1)
            started = {child.pid for child in multiprocessing.active_children()} - known
            known.update(started)
            watcher.stdin.write("".join(f"{pid}\n" for pid in started).encode())
            watcher.stdin.flush()

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()


def _check_devices(tensor_parallel: int, data_parallel: int) -> None:
    there, wanted = gpus(), tensor_parallel * data_parallel
    if there and wanted > there:
        raise UserError(
            f"--tensor_parallel {tensor_parallel} times --data_parallel {data_parallel} needs {wanted} GPUs but {there} are "
            "available; lower one of them"
        )


def _positions(place: str, trust: bool) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(place, trust_remote_code=trust)
    return min(getattr(config, "max_position_embeddings", None) or POSITIONS, POSITIONS)


def lora_rank(adapter: str, dtype: str) -> int | None:
    """The max_lora_rank for an adapter; None if it has to be merged.

    vLLM serves plain LoRA on linear layers: no saved head, no magnitudes (DoRA), no embeddings, rank at most 512; on a GPU only in
    16 bits.
    """
    file = Path(adapter) / "adapter_config.json"
    config = read_json(file) if file.is_file() else {}
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("modules_to_save"):
        return None
    if config.get("bias", "none") != "none" or (gpus() and dtype == "float32"):
        return None
    weights = Path(adapter) / "adapter_model.safetensors"
    if not weights.is_file():  # format of earlier versions of PEFT
        return None
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
    if any("lora_" not in name or "embed" in name or "lm_head" in name for name in names):
        return None
    largest = max(config["r"], *config.get("rank_pattern", {}).values(), 1)
    return next((rank for rank in RANKS if rank >= largest), None)


def _served(adapter: str, dtype: str) -> str:
    """The folder of a plain LoRA adapter for vLLM, which rounds factors to `dtype`: below float32, a copy that survives that."""
    if dtype == "float32":
        return str(Path(adapter).resolve())
    folder = TemporaryDirectory(prefix="ba-lora-factors-")  # read with the first request
    atexit.register(folder.cleanup)
    shutil.copy(Path(adapter) / "adapter_config.json", folder.name)
    tensors = load_file(Path(adapter) / "adapter_model.safetensors")
    save_file(refactored_tensors(tensors), Path(folder.name) / "adapter_model.safetensors")
    return folder.name


def _merge(adapter: str, base: str, folder: str, dtype: str, trust: bool) -> str:
    """Merge the adapter into its base; the folder is needed only until the engine has read it."""
    place = Path(folder) / "model"
    try:
        export_merged(adapter, base, place, dtype, trust_remote_code=trust)
    except AttributeError:
        raise UserError(
            f"the adapter {adapter} is not LoRA and cannot be merged into its base, so vLLM cannot serve it; "
            "use --backend transformers"
        ) from None
    return str(place)
