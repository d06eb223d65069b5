"""Predicted memory of a training step, from the model itself, without weights and without a GPU.

Memory that stays allocated for the whole run is counted here, and added up by `standing`. Memory that comes and goes within a micro-batch is found by running
the real model and the real objective once, forwards and backwards, on tensors that have shapes but no storage, and recording
what would be alive.
"""

import math
import weakref
from collections.abc import Callable

import torch
from peft.tuners.lycoris_utils import LycorisLayer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..methods.teacher import COPY, kept_parameters, teacher
from ..objective.chunked import TeacherStats, chunked_objective, needs_factor, rows_of_a_chunk
from ..objective.dense import classifier_objective, dense_objective
from ..objective.head import split
from ..objective.settings import Objective
from ..objective.sketch import Sketch
from ..training.arguments import TrainArguments
from ..training.optimizers import SMALLEST
from .standing import Held


def held(model: nn.Module) -> Held:
    """Count the tensors of `model`, which comes from `attach`, on any device."""
    copies = {id(parameter) for parameter in kept_parameters(model)}
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    copied = [parameter for parameter in parameters if id(parameter) in copies]
    frozen = [p for p in parameters if not p.requires_grad and id(p) not in copies]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
        if id(module.weight) not in copies
    ]
    return Held(
        weights=sum(parameter.nbytes for parameter in frozen),
        adapter=sum(parameter.nbytes for parameter in trained),
        copy=sum(parameter.nbytes for parameter in copied),
        trained=sum(parameter.numel() for parameter in trained),
        copied=sum(parameter.numel() for parameter in copied),
        linear=sum(linear),
        widest_linear=max(linear, default=0),
        weight_size=max((parameter.element_size() for parameter in frozen), default=4),
        widest=max(_own(module) for name, module in model.named_modules() if COPY not in name),
        sides=sum(sum(each.shape) if each.dim() > 1 else each.numel() for each in trained),
        small=sum(each.numel() for each in trained if each.numel() < SMALLEST),
    )


def _own(module: nn.Module) -> int:
    """Weights that belong to `module` itself, not to its submodules."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False))


def passing(
    model: nn.Module,
    objective: Objective,
    micro_batch: int,
    length: int,
    *,
    checkpointing: bool,
    autocast: bool,
    cached: str | None = None,
    cache_entries: int = TrainArguments.teacher_cache_entries,
    device: str = "cpu",
    teacher_share: float = 1.0,
) -> dict[str, int]:
    """Bytes that a micro-batch of `micro_batch` samples of `length` tokens needs at its peak, beside the standing memory.

    activations: what the student's layers keep for the backward pass (with gradient checkpointing only the layers' inputs);
    objective: the rest of the peak, that is, a chunk of the student's and teacher's logits and what the terms compute from them,
    with all weights on and every position counted; all logits if the terms need them, the head is trained or the model is a
    classifier; head factor: the factor that the spectrum's term keeps for the whole run, whole on each device, absent without it.
    cached: the form of the cache that the teacher's part comes from, or None. cache_entries: tokens of a row in a sketch.
    device: the type of device whose chunk size is used.
    teacher_share: the teacher runs on this share of the samples, rounded up. `model` is from `attach` on the meta device, and is used
    up.

    Making the factor takes some times its size (0.7 GB for a width of 4096), before there are activations: less than a published
    run's micro-batch takes later, so it is not added. The kernels are the CPU's; a GPU's may keep a little more or less. Not
    included: memory that the numerical libraries allocate for themselves, fragmentation, and the driver's context (about 0.5 GB).
    """
    ledger = Ledger()
    with FakeTensorMode(allow_non_fake_inputs=True):  # for DeBERTa's constants
        _as_in_training(model, ledger, checkpointing)
        ids = torch.zeros(micro_batch, length, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        forward, finish, factor = _forms(model, objective, ids[:, 1:].reshape(-1), device)
        kept = {} if factor is None else {"head factor": factor.nbytes}
        if factor is not None:
            ledger.leave_out(factor)
        with ledger, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            teacher_rows, stats, share = None, None, {}
            if objective.uses_teacher() and cached:
                rows, width = micro_batch * (length - 1), model.get_output_embeddings().weight.shape[1]
                stats = _stats(cached, rows, width, cache_entries)
            elif objective.uses_teacher():
                most = math.ceil(teacher_share * micro_batch)
                with teacher(model):
                    teacher_rows = _rows(forward(**{name: value[:most] for name, value in inputs.items()}))
                if teacher_share < 1:
                    share = {"teacher_rows": torch.arange(len(teacher_rows)), "teacher_weight": 1 / teacher_share}
            before = ledger.live
            output = forward(**inputs)
            activations = ledger.live - before - output.nbytes
            loss = finish(_rows(output), teacher_rows, stats, **share)
            del output  # a trainer keeps the loss alone
            loss.backward()
    return {"activations": activations, "objective": max(ledger.peak - activations, 0), **kept}


def _as_in_training(model: nn.Module, ledger: "Ledger", checkpointing: bool) -> None:
    """Give `model` gradients, and leave its standing memory out of the ledger."""
    _without_storage(model)
    for parameter in model.parameters():
        ledger.leave_out(parameter)
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
            ledger.leave_out(parameter.grad)
    model.train()
    for module in model.modules():
        if isinstance(module, LycorisLayer):
            module.training = False  # otherwise it draws a random number to decide if it is dropped
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _stats(form: str, rows: int, width: int, entries: int) -> TeacherStats | Sketch:
    """Return what a cache of this form gives for `rows` rows. entries: tokens of a row in a sketch."""
    if form == "exact":
        return TeacherStats(torch.empty(rows, width), torch.empty(rows, dtype=torch.float64))
    kept, each = (rows, entries), (rows,)
    return Sketch(
        torch.zeros(kept, dtype=torch.long), torch.empty(kept), torch.empty(kept), *map(torch.empty, (each, each))
    )


def _forms(
    model: nn.Module, objective: Objective, targets: torch.Tensor, device: str
) -> tuple[Callable, Callable, torch.Tensor | None]:
    """(the forward pass, the loss of its rows and the teacher's, the head's factor if there is one), as in ObjectiveModel."""
    weights = objective.maxima()
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    if head is None:  # a classifier

        def classified(rows, taught, stats, **share):
            labels, regression = targets[: len(rows)], rows.shape[1] == 1
            return classifier_objective(rows, taught, labels, objective, weights, regression=regression, **share)[0]

        return lambda **inputs: model(**inputs).logits, classified, None
    parts, _ = split(model, torch.zeros(1, 2, dtype=torch.long), objective)
    if parts is None:

        def dense(rows, taught, stats, **share):
            return dense_objective(rows, taught, targets, objective, weights, **share)[0]

        return lambda **inputs: model(**inputs, use_cache=False).logits, dense, None
    factor = torch.empty(min(head.weight.shape), head.weight.shape[1]) if needs_factor(weights) else None

    def chunked(rows, taught, stats, **share):
        form, options = (objective, weights), {"head_factor": factor, "teacher_stats": stats, **share}
        options["chunk_size"] = rows_of_a_chunk(len(head.weight), device=device)
        return chunked_objective(rows, taught, head.weight, targets, *form, **options)[0]

    return lambda **inputs: parts.body(**inputs, use_cache=False).last_hidden_state, chunked, factor


def _rows(output: torch.Tensor) -> torch.Tensor:
    """(B, T, V) or (B, T, d) → (B·(T−1), …): every position that has a next token. A classifier's (N, D) stays as it is."""
    return output if output.dim() == 2 else output[:, :-1].reshape(-1, output.shape[-1])


def _without_storage(model: nn.Module) -> None:
    """Give `model` parameters and buffers that look as if they were on the CPU (under a FakeTensorMode)."""
    made = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    # keep the old tensor too, so that its id is not reused
                    made[id(tensor)] = (
                        nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty,
                        tensor,
                    )
                tensors[name] = made[id(tensor)][0]


class Ledger(TorchDispatchMode):
    """Count the bytes of the storages that operations create inside the block: those `live` now, and the `peak` so far.

    For tensors without storage; a value that the code asks for (`if total == 0`) reads as 0.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakKeyDictionary()

    def leave_out(self, tensor: torch.Tensor) -> None:
        """Do not count the storage of `tensor`."""
        self.known[tensor.untyped_storage()] = 0

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return 0
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                self.known[storage] = size = storage.nbytes()
                weakref.finalize(storage, self._free, size)
                self.live += size
                self.peak = max(self.peak, self.live)
        return result
