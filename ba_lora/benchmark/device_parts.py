"""The parts of the device check that run in its own process: exactness, the objective alone, the start of the factors."""

import gc
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..methods.decomposition import Decomposer
from ..methods.teacher import teacher
from ..objective.chunked import chunked_objective, rows_of_a_chunk
from ..objective.dense import dense_objective
from ..objective.settings import Objective
from ..training.objective_model import ObjectiveModel
from .bodies import adapt, body_config, make, random_llama
from .clock import forget_peak, free, read_peak, timed
from .contestants import CONSTANT

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MIB = 1 << 20


class Limits(NamedTuple):
    """The largest relative differences that are accepted."""

    start: float  # logits of the student at step 0, and of the teacher later, from those of the base
    loss: float  # chunked from dense
    gradient: float
    objective_loss: float  # the objective on the same inputs from float64
    objective_gradient: float


LIMITS = {
    "float32": Limits(1e-4, 1e-5, 1e-3, 1e-5, 1e-4),
    "bfloat16": Limits(1e-1, 1e-2, 1e-1, 1e-2, 5e-2),
}


def exactness(device: str, smoke: bool) -> list[dict]:
    """Rows {"what", "dtype", "value", "limit"}: the objective and the teacher on this device against what they should equal."""
    rows = []
    for dtype in DTYPES:
        limits = LIMITS[dtype]
        found = _of_a_model(device, dtype, limits, smoke) | _of_the_objective(device, dtype, limits, smoke)
        rows += [
            {"what": what, "dtype": dtype, "value": value, "limit": limit} for what, (value, limit) in found.items()
        ]
    return rows


def _of_a_model(device: str, dtype: str, limits: Limits, smoke: bool) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    base = make(random_llama(503, 64, 2, 48) if smoke else random_llama(5003, 256, 3, 96), dtype, device)
    ids = torch.randint(5, base.config.vocab_size, (4, base.config.max_position_embeddings), device=device)
    labels = ids.clone()
    labels[:, : ids.shape[1] // 2] = -100
    with torch.no_grad():
        wanted = base(input_ids=ids).logits
    student, found = adapt(base, 16, "pissa_niter_4", device).eval(), {}
    with torch.no_grad():
        found["step 0: logits of the student"] = relative(student(input_ids=ids).logits, wanted), limits.start
    objective = Objective.preset("iclr", **CONSTANT)
    models = {
        kind: ObjectiveModel(student, objective, chunked=kind == "chunked").train() for kind in ("chunked", "dense")
    }
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    for kind, model in models.items():
        _, gradient = _step(model, batch, device, dtype)
        found[f"step 0: consistency, {kind}"] = abs(float(model.sums["consistency"])), 0.0
        found[f"step 0: trained tensors without a gradient, {kind}"] = float(gradient is None), 0.0
    with torch.no_grad():
        for parameter in _trained(student):
            parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.1)
        with teacher(student.eval()):
            found["later: logits of the teacher"] = relative(student(input_ids=ids).logits, wanted), limits.start
    student.train()
    (loss, gradient), (dense_loss, dense_gradient) = (_step(model, batch, device, dtype) for model in models.values())
    found["chunked against dense: loss"] = relative(loss, dense_loss), limits.loss
    found["chunked against dense: gradient"] = relative(gradient, dense_gradient), limits.gradient
    return found


def _step(model: ObjectiveModel, batch: dict, device: str, dtype: str) -> tuple[Tensor, Tensor | None]:
    """(loss, the gradients in one vector, or None if one is missing)."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
        loss = model(**batch).loss
    loss.backward()
    gradients = [parameter.grad for parameter in _trained(model.student)]
    missing = any(gradient is None for gradient in gradients)
    return loss.detach(), None if missing else torch.cat([gradient.flatten().double() for gradient in gradients])


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _of_the_objective(device: str, dtype: str, limits: Limits, smoke: bool) -> dict[str, tuple[float, float]]:
    """The chunked objective on inputs of `dtype` against the dense one on the same numbers in float64."""
    torch.manual_seed(0)
    rows, width, vocabulary = (40, 32, 1001) if smoke else (200, 128, 4001)
    hidden, other = (torch.randn(rows, width, device=device).to(DTYPES[dtype]) for _ in range(2))
    weight = (torch.randn(vocabulary, width, device=device) * 0.2).to(DTYPES[dtype])
    targets = torch.randint(0, vocabulary, (rows,), device=device)
    form, lambdas = Objective.preset("iclr"), (0.3, 0.2, 0.5)
    h, reference = hidden.clone().requires_grad_(), hidden.double().requires_grad_()
    loss, _ = chunked_objective(h, other, weight, targets, form, lambdas, chunk_size=rows // 3)
    logits = (each @ weight.double().T for each in (reference, other.double()))
    expected, _ = dense_objective(*logits, targets, form, lambdas)
    loss.backward()
    expected.backward()
    return {
        "objective against float64: loss": (relative(loss, expected), limits.objective_loss),
        "objective against float64: gradient": (relative(h.grad, reference.grad), limits.objective_gradient),
    }


def relative(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖, in float64."""
    value, reference = value.detach().double(), reference.detach().double()
    return (torch.linalg.vector_norm(value - reference) / torch.linalg.vector_norm(reference)).item()


def objective_alone(device: str, smoke: bool) -> list[dict]:
    """Rows {"vocabulary", "way", "mib", "seconds", "peak"}: one forward and backward pass at several chunk sizes, and dense."""
    count, width, vocabularies = (64, 64, (1000,)) if smoke else (2048, 4096, (32000, 128256))
    sizes = (1, 48) if smoke else (48, 128, 256, 512, 1024)
    rows = []
    for vocabulary in vocabularies:
        torch.manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        weight = (torch.randn(vocabulary, width, device=device) * width**-0.5).to(dtype)
        decay = width**0.5 / torch.arange(1, width + 1, device=device)  # a spectrum like that of trained models
        hidden, other = ((torch.randn(count, width, device=device) * decay).to(dtype) for _ in range(2))
        targets = torch.randint(0, vocabulary, (count,), device=device)
        form, factor = Objective.preset("iclr"), torch.eye(width, device=device)

        def chunked(
            lambdas, size, hidden=hidden, other=other, weight=weight, targets=targets, form=form, factor=factor
        ):
            h = hidden.detach().requires_grad_()
            chunk = max(int(size * MIB) // (4 * len(weight)), 1)
            chunked_objective(h, other, weight, targets, form, lambdas, head_factor=factor, chunk_size=chunk)[
                0
            ].backward()

        def dense(lambdas, size, hidden=hidden, other=other, weight=weight, targets=targets, form=form):
            h = hidden.detach().requires_grad_()
            dense_objective(h @ weight.T, other @ weight.T, targets, form, lambdas)[0].backward()

        all_on, alone = form.maxima(), (0.0, 0.0, 0.0)
        ways = [
            (f"{name}, chunked", chunked, on, size)
            for name, on in (("all terms", all_on), ("task", alone))
            for size in sizes
        ]
        ways += [("task and consistency, dense", dense, (all_on[0], 0.0, 0.0), None)]
        for way, run, lambdas, size in ways:
            seconds, peak = _repeated(device, lambda run=run, lambdas=lambdas, size=size: run(lambdas, size))
            rows.append({"vocabulary": vocabulary, "way": way, "mib": size, "seconds": seconds, "peak": peak})
        rows[-1]["default_rows"] = rows_of_a_chunk(vocabulary, device=device)
    return rows


def _repeated(device: str, work, repeats: int = 5) -> tuple[float | None, int | None]:
    """(median seconds, peak bytes) after a warm-up; (None, None) if the memory does not suffice."""
    try:
        work()
        gc.collect()
        free(device)
        forget_peak(device)
        return median(timed(device, work)[0] for _ in range(repeats)), read_peak(device)
    except torch.OutOfMemoryError:
        return None, None


def start(device: str, smoke: bool) -> list[dict]:
    """Rows {"what", "start", "seconds"}: the decomposition of one matrix and of a small model's, after a warm-up of the solvers."""
    size, rank = (96, 8) if smoke else (4096, 128)
    body, layers = ("tiny", 1) if smoke else ("smollm2-135m", None)
    rows = []
    for name in ("pissa_niter_16", "pissa"):
        Decomposer(name, 8)(torch.randn(64, 64, device=device))
        torch.manual_seed(0)
        matrix = torch.randn(size, size, device=device)
        seconds, _ = timed(device, lambda name=name, matrix=matrix: Decomposer(name, rank)(matrix))
        rows.append({"what": f"one matrix of {size} × {size}, rank {rank}", "start": name, "seconds": seconds})
        model = make(body_config(body, layers), "bfloat16", device)
        seconds, _ = timed(device, lambda name=name, model=model: adapt(model, 16, name, device))
        rows.append({"what": f"all matrices of {body}, rank 16", "start": name, "seconds": seconds})
    return rows
