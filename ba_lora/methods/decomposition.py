"""The leading singular triplets of weight matrices: computed once, kept on disk, shared by the processes of a run.

PiSSA starts from the r leading triplets of each weight. The exact way is one full SVD per matrix: minutes for a 7B model on
a GPU, hours on a CPU. A decomposition is therefore kept in a file, named by a hash of the matrix and of the method; a later
run, method or lower rank reads it. With several processes, each computes its share and sends it to the others, so that all
start alike.
"""

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed
from tqdm import tqdm

from ..errors import UserError
from ..folders import fast_hash
from ..folders.ownership import refuse_foreign
from .names import NITER

logger = logging.getLogger(__name__)

FORMAT = 1  # increase when the content of a file, or the way it is computed, changes
KEPT = 128  # minimum number of triplets computed and kept per matrix: higher ranks up to this find them later
OVERSAMPLING = 8  # extra directions that the randomised method uses beyond those it keeps
SMALL = 1 << 22  # values in a matrix; a CPU decomposes several of at most this size at once
AT_ONCE = 8  # maximum number of small matrices decomposed at once


class Triplets(NamedTuple):
    """The k leading singular triplets of a matrix (out, in), values descending: u (out, k), s (k,), vh (k, in), float32."""

    u: Tensor
    s: Tensor
    vh: Tensor

    def leading(self, count: int) -> "Triplets":
        """The first `count` triplets, in memory of their own."""
        return Triplets(self.u[:, :count].clone(), self.s[:count].clone(), self.vh[:count].clone())


def exact(matrix: Tensor, count: int) -> Triplets:
    """The `count` leading triplets of a float32 matrix (out, in) by a full SVD, with LAPACK's (cuSOLVER's) signs, as in
    PEFT."""
    return Triplets(*torch.linalg.svd(matrix, full_matrices=False)).leading(count)


def randomised(matrix: Tensor, count: int, iterations: int, seed: int) -> Triplets:
    """Approximately the `count` leading triplets of a float32 matrix (out, in), from a random subspace of count +
    OVERSAMPLING directions after `iterations` power iterations (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms 4.4
    and 5.1). The subspace depends only on `seed`, not on the device."""
    directions = min(count + OVERSAMPLING, *matrix.shape)
    generator = torch.Generator().manual_seed(seed)
    sketch = torch.randn(matrix.shape[1], directions, generator=generator).to(matrix.device)
    basis = torch.linalg.qr(matrix @ sketch).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(matrix.T @ basis).Q
        basis = torch.linalg.qr(matrix @ basis).Q
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Triplets(basis @ u, s, vh).leading(count)


def triplets_kept(shape: tuple[int, int], rank: int) -> int:
    """Number of triplets of a matrix that are computed, and kept in a file, for a start of `rank`."""
    return min(max(rank, KEPT), *shape)


def file_bytes(shape: tuple[int, int], rank: int) -> int:
    """Bytes of the tensors in a cache file: float32 u, s and vh."""
    return 4 * (sum(shape) + 1) * triplets_kept(shape, rank)


class Decomposer:
    """Matrix (out, in) → its `rank` leading triplets, read from the folder `cache` or else computed and stored there.

    start: "pissa" (exact) or "pissa_niter_N". seed: for the randomised method. cache: None keeps nothing. At least KEPT
    triplets are computed whatever the rank, so that lower ranks get the same ones. The exact method reads them from any file
    with enough triplets; the randomised one, whose triplets depend on how many were requested, only from its own file.
    """

    def __init__(self, start: str, rank: int, seed: int = 0, cache: str | Path | None = None):
        niter = NITER.fullmatch(start)
        self.iterations = int(niter[1]) if niter else None
        self.start, self.rank, self.seed = start, rank, seed
        self.cache = None if cache is None else Path(cache)
        if self.cache is not None:
            refuse_foreign(self.cache, "decompositions", "--decomposition_cache")

    def __call__(self, matrix: Tensor) -> tuple[Triplets, bool]:
        """(the triplets, on the CPU or the device that computed them; whether they were in the cache)."""
        kept = triplets_kept(tuple(matrix.shape), self.rank)
        file = None if self.cache is None else self.cache / f"{self._key(matrix, kept)}.safetensors"
        found = None if file is None else _read(file, self.rank)
        if found is not None:
            return found, True
        made = self._make(matrix, kept)
        if file is not None:
            self._keep(made, file)
        return made.leading(self.rank), False

    def _make(self, matrix: Tensor, kept: int) -> Triplets:
        if matrix.device.type == "cpu" and torch.cuda.is_available():
            matrix = matrix.cuda()
        matrix = matrix.float()
        if self.iterations is None:
            return exact(matrix, kept)
        return randomised(matrix, kept, self.iterations, self.seed)

    def _key(self, matrix: Tensor, kept: int) -> str:
        """The name of a decomposition: 128 bits of the matrix's values, type and shape, and of the method."""
        way = None if self.iterations is None else (self.iterations, self.seed, kept, OVERSAMPLING)
        state = fast_hash.new(f"{FORMAT} {way} {tuple(matrix.shape)} {matrix.dtype}".encode())
        state.update(_bytes(matrix))
        return state.hexdigest().removeprefix(
            fast_hash.MARK
        )  # a name: caches know their files by 32 hexadecimal digits

    def _keep(self, triplets: Triplets, file: Path) -> None:
        """Write a complete file; if that fails, warn and stop caching."""
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
        tensors = {name: tensor.cpu().contiguous() for name, tensor in triplets._asdict().items()}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, metadata={"checksum": f"{_checksum(tensors)} {file.stem}"})
            os.replace(temporary, file)
        except (OSError, SafetensorError) as error:
            logger.warning("decompositions cannot be kept in %s (%s); the run continues without", file.parent, error)
            self.cache = None
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    state = fast_hash.new()
    for name in Triplets._fields:
        state.update(_bytes(tensors[name]))
    return state.hexdigest()


def _read(file: Path, count: int) -> Triplets | None:
    """The `count` leading triplets in a file, or None if it has fewer or is damaged (which is logged)."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in Triplets._fields}
            checksum, _, of = (opened.metadata() or {}).get("checksum", "").partition(" ")
            whole = not fast_hash.differ(checksum, _checksum(tensors)) and of in (
                "",
                file.stem,
            )  # earlier versions did not name the matrix
    except (OSError, SafetensorError):
        whole = False
    if not whole:
        logger.warning("%s is damaged or unreadable; its matrix is decomposed again", file)
        return None
    return Triplets(**tensors).leading(count) if len(tensors["s"]) >= count else None


def decompose_all(
    shapes: Mapping[str, tuple[int, int]],
    matrix_of: Callable[[str], Tensor],
    decomposer: Decomposer,
    progress: bool = False,
) -> Iterator[tuple[str, Triplets, bool]]:
    """(name, its triplets, whether they were in the cache) for every matrix, the largest first.

    matrix_of: returns the matrix (out, in) of a name when its turn comes, so that the result may replace it. Only one
    further decomposition is held in memory (on a CPU, up to AT_ONCE of small matrices). With several processes
    (torch.distributed is initialised), every process must call this with equal matrices: each decomposes its share and sends
    it, so that all get the same numbers; an error in one is raised in all. progress: show a bar on rank 0 if it takes more
    than two seconds. Raises UserError for a matrix with numbers that are not finite.
    """

    def decompose(name: str) -> tuple[Triplets, bool]:
        try:
            return decomposer(matrix_of(name))
        except torch.linalg.LinAlgError as error:
            raise UserError(f"the weight of {name} cannot be decomposed; give a model without NaN ({error})") from None

    names = sorted(shapes, key=lambda name: -shapes[name][0] * shapes[name][1])
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    first = not several or distributed.get_rank() == 0
    with tqdm(total=len(names), desc="decomposition", unit="matrix", delay=2, disable=not (first and progress)) as bar:
        for done in (_shared if several else _alone)(names, shapes, decompose):
            yield done
            bar.update()


def _alone(
    names: list[str], shapes: Mapping[str, tuple[int, int]], decompose: Callable
) -> Iterator[tuple[str, Triplets, bool]]:
    """In this process. On a CPU, small matrices are decomposed several at once, one thread each."""
    small = [name for name in names if _is_small(shapes[name])]
    for name in names[: len(names) - len(small)]:
        yield name, *decompose(name)
    workers = min(torch.get_num_threads(), AT_ONCE)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for start in range(0, len(small), workers):
            together = small[start : start + workers]
            with _one_thread():
                done = list(pool.map(decompose, together))
            for name, each in zip(together, done, strict=True):
                yield name, *each


def _shared(
    names: list[str], shapes: Mapping[str, tuple[int, int]], decompose: Callable
) -> Iterator[tuple[str, Triplets, bool]]:
    """In all processes: each round gives every process one matrix, whose result is then sent to the others."""
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    for start in range(0, len(names), processes):
        together = names[start : start + processes]
        mine, error = (None, False), None
        if rank < len(together):
            try:
                with _one_thread() if _is_small(shapes[together[rank]]) else contextlib.nullcontext():
                    mine = decompose(together[rank])
            except Exception as raised:  # the other processes are waiting for this one and must be told
                error = raised
        said = _agree(mine, error)
        for owner, name in enumerate(together):
            count, was_kept = said[owner]
            yield name, _send(mine[0] if owner == rank else None, owner, shapes[name], count), was_kept


def _is_small(shape: tuple[int, int]) -> bool:
    """Return True if a matrix is decomposed with a single CPU thread. More threads are no faster for it, and the numbers
    would depend on how many there are."""
    return shape[0] * shape[1] <= SMALL and not torch.cuda.is_available()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _agree(mine: tuple[Triplets | None, bool], error: Exception | None) -> list[tuple[int, bool]]:
    """(number of triplets, whether they were in the cache) for every process. Raises `error`, or RuntimeError for an error
    in another process."""
    triplets, was_kept = mine
    said = [None] * distributed.get_world_size()
    failure = None if error is None else f"{type(error).__name__}: {error}"
    distributed.all_gather_object(said, (0 if triplets is None else len(triplets.s), was_kept, failure))
    if error is not None:
        raise error
    for process, (*_, failure) in enumerate(said):
        if failure is not None:
            raise RuntimeError(f"process {process} failed in the decomposition of the weights: {failure}")
    return [(count, was_kept) for count, was_kept, _ in said]


def _send(triplets: Triplets | None, owner: int, shape: tuple[int, int], count: int) -> Triplets:
    """Send the triplets of the process `owner`, the only one that has them, to every process."""
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    if triplets is None:
        sizes = ((shape[0], count), (count,), (count, shape[1]))
        triplets = Triplets(*(torch.empty(size, device=device) for size in sizes))
    sent = Triplets(*(tensor.to(device).contiguous() for tensor in triplets))
    for tensor in sent:
        distributed.broadcast(tensor, owner)
    return sent
