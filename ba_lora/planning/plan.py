"""The resolved plan of a run, before anything is loaded: --dry_run. Needs no weights and no hub, and writes no run folder."""

import math
import os

from ..inference.backends import copies, resolve_anywhere
from ..methods.decomposition import file_bytes
from ..methods.names import method_of, start_of
from ..objective.settings import REGULARIZERS, WEIGHTS
from ..training import launch
from ..training.arguments import TrainArguments
from ..training.combinations import CACHE_FORMS
from ..training.deepspeed_config import used, zero_stage
from ..training.model_numbers import read_numbers
from ..training.optimizers import check_optimizer
from ..training.teacher_rows import row_bytes
from . import devices as capacity
from . import flops
from .files import disk
from .rows import RESPONSE, looks_of, sample_of, samples_seen, steps_of, trained_rows
from .shapes import Shape, Sizes, job_of, passing_of, sizes
from .standing import standing, state_of


def plan(arguments: TrainArguments, *, memory: bool = True) -> dict:
    """The resolved run as plain values; sizes in bytes. memory=False omits the passing part, which takes some seconds.

    The steps are those of `TrainArguments.steps`. Raises UserError if the run would stop early.
    """
    devices = capacity.read_devices(arguments.devices) if arguments.devices else None
    processes = devices.count if devices else _processes(arguments)
    accumulation = arguments.accumulation(processes)
    objective = arguments.objective()
    start = start_of(arguments.method, arguments.init)
    deepspeed = used(arguments.deepspeed, processes)
    stage = zero_stage(deepspeed)
    check_optimizer(arguments.optimizer, deepspeed)
    job = job_of(arguments)
    size, passes = sizes(job), passing_of(job) if memory else None
    samples, samples_from = trained_rows(arguments)
    steps = steps_of(arguments)
    return {
        "model": arguments.model,
        "numbers_from": read_numbers(arguments.model)[1],
        "parameters": size.parameters,
        "dtype": arguments.dtype,
        "quantize": arguments.quantize,
        **_adapter(arguments, size, start),
        "preset": arguments.preset,
        "objective": vars(objective),
        "task": arguments.task,
        "template": arguments.template,
        "data": arguments.data_path or arguments.data or "its own",
        "samples": samples,
        "samples_from": samples_from,
        "epochs": arguments.epochs,
        "effective_batch_size": arguments.effective_batch_size,
        "micro_batch_size": arguments.micro_batch_size,
        "accumulation": accumulation,
        "processes": processes,
        **_start(arguments, processes),
        "steps": steps,
        "held_out": looks_of(arguments),
        "benchmarks": arguments.benchmarks or [],
        "evaluation": _evaluation(arguments, devices and -(-devices.count // launch.processes(check=False)[1])),
        "disk": _disk(arguments, size, start, steps, deepspeed, job.autocast),
        "teacher_cache": _teacher_cache(arguments, size, samples),
        "teacher_share": arguments.teacher_share,
        "zero_stage": stage,
        "memory": standing(size.held, stage, processes, cast=job.autocast, nf4=bool(arguments.quantize))
        | (passes or {}),
        "memory_is_whole": passes is not None,
        "devices": _on_devices(devices, arguments, job, memory) if devices else None,
    }


def _adapter(arguments: TrainArguments, size: Sizes, start: str) -> dict:
    """The rows of the plan on what is trained."""
    return {
        "method": arguments.method,
        "start": start,
        "start_form": arguments.start_form,
        "rank": arguments.rank,
        "alpha": arguments.alpha,
        "rslora": arguments.rslora,
        "layers": arguments.layers,
        "optimizer": arguments.optimizer,
        "compile": arguments.compile,
        "modules_to_save": arguments.modules_to_save or [],
        "targets": list(size.targets),
        "left_out": size.left,
        "trainable_parameters": size.trained,
    }


def _processes(arguments: TrainArguments) -> int:
    """The processes that the environment says, or those that this machine would start."""
    world = os.environ.get("WORLD_SIZE")
    return int(world) if world else math.prod(launch.processes(arguments.use_cpu, check=False))


def flops_of(arguments: TrainArguments, job: Shape, seen: float) -> float:
    """Operations for `seen` samples and for the looks at held-out rows, if their number is known."""
    sample, form = sample_of(arguments), {"checkpointing": job.checkpointing, "cached": job.cached}
    form["teacher_share"] = job.teacher_share
    one = sizes(job).work, job.objective, sample.tokens, sample.trained or 0
    held = looks_of(arguments) or {"looks": 0, "rows": 0}
    looked_at = (held["looks"] or 0) * (held["rows"] or 0)
    return seen * flops.of_a_sample(*one, **form) + looked_at * flops.of_a_look(*one)


def precision_of(arguments: TrainArguments) -> str:
    """The precision of the run's matrix products, as named in configs/devices.yaml."""
    if arguments.dtype in ("bfloat16", "float16"):
        return "bfloat16"
    return "tf32" if arguments.tf32 else "float32"


def _on_devices(devices: capacity.Devices, arguments: TrainArguments, job: Shape, memory: bool) -> dict:
    """The run's needs on `devices`, as planned and with gradient checkpointing: work, hours, bytes by placement."""
    seen, size, sample = samples_seen(arguments), sizes(job), sample_of(arguments)
    precision = precision_of(arguments)
    jobs = {"as planned": job}
    if not job.checkpointing:
        jobs["with --gradient_checkpointing"] = job._replace(checkpointing=True)
    forms = {}
    for name, form in jobs.items():
        work, passes = seen and flops_of(arguments, form, seen), passing_of(form) if memory else None
        forms[name] = {
            "flops": work,
            "hours": work and capacity.hours(work, devices, precision),
            "placements": passes
            and _placements(arguments, capacity.placements(size.held, passes, devices, form.autocast)),
        }
    here = -(-devices.count // launch.processes(check=False)[1])
    start = start_of(arguments.method, arguments.init)
    return {
        "count": devices.count,
        "name": devices.name,
        "memory": devices.memory,
        "quantized": bool(arguments.quantize),
        "precision": precision,
        "peak": devices.peaks[precision],
        "samples": seen,
        "tokens_a_sample": sample.tokens,
        "trained_a_sample": sample.trained,
        "sample": sample.described,
        "forms": forms,
        "processes_a_machine": here,
        "host": capacity.host(size.held, start, max(size.adapted, key=math.prod, default=(0, 0)), job.rank, here),
    }


def _start(arguments: TrainArguments, processes: int) -> dict:
    """How so many processes are started, and the DeepSpeed config that they use or leave out."""
    deepspeed = used(arguments.deepspeed, processes)
    left_out = None if deepspeed else arguments.deepspeed
    launcher = launch.launcher(arguments, processes)
    return {"launcher": launcher, "deepspeed": deepspeed, "deepspeed_left_out": left_out}


def _evaluation(arguments: TrainArguments, there: int | None) -> dict | None:
    """The backend of the evaluation and its processes on the first machine; None without benchmarks. there: its planned devices."""
    if not arguments.benchmarks:
        return None
    if arguments.task:
        return {"backend": "transformers", "processes": 1, "reason": None}
    choice = resolve_anywhere(arguments.eval_backend, arguments.method)
    count = there if there and choice.backend != "openai" else copies(choice.backend, None, None)
    return {"backend": choice.backend, "processes": count, "reason": choice.reason}


def _placements(arguments: TrainArguments, sizes: dict[str, int]) -> dict[str, int]:
    """The run's placements: for a base in 4 bits only the 4-bit one, otherwise all, because 4 bits are a way to fit."""
    return {name: size for name, size in sizes.items() if not arguments.quantize or "nf4" in capacity.PLACEMENTS[name]}


def _disk(
    arguments: TrainArguments, size: Sizes, start: str, steps: int | None, deepspeed: str | None, cast: bool
) -> dict[str, int]:
    held, parts = size.held, (file_bytes(shape, arguments.rank) for shape in size.adapted)
    bytes_of = {"adapter": held.adapter, "copy": held.copy, "decompositions": sum(parts)}
    bytes_of["state"] = state_of(held, zero_stage(deepspeed))
    options = {"parameters": size.parameters, "trained": held.trained, "deepspeed": deepspeed, "cast": cast}
    return disk(arguments, start, steps, **options, **bytes_of)


def _teacher_cache(arguments: TrainArguments, size: Sizes, samples: int | None) -> dict | None:
    """Folder of the teacher's cache and its size in either form; None if it is not requested or has nothing to do."""
    if not arguments.uses_teacher_cache():
        return None
    tokens = min(RESPONSE, arguments.max_length - 1)
    facts = {"width": size.width, "dtype": arguments.teacher_cache_dtype}
    facts |= {"entries": arguments.teacher_cache_entries, "vocabulary": size.work.vocabulary}
    sizes = {
        form: None if samples is None else samples * tokens * row_bytes(facts | {"form": form}) for form in CACHE_FORMS
    }
    form = arguments.teacher_cache_form
    return {"folder": arguments.teacher_cache, "form": form, "sizes": sizes, "tokens_a_sample": tokens}


def show(arguments: TrainArguments) -> None:
    """Print the plan of a run."""
    print(render(plan(arguments)))


def render(made: dict) -> str:
    """A plan as lines of text."""
    objective = made["objective"]
    weights = ", ".join(f"{each.weight} {objective[each.weight]:g} {objective[each.schedule]}" for each in REGULARIZERS)
    forms = (
        f"T {objective['temperature']:g}, top-K {objective['top_k'] or 'all'}, k {objective['svd_k']}, "
        f"{objective['svd_norm']} norm"
    )
    is_on = any(objective[weight] for weight in WEIGHTS)
    samples = "unknown number of" if made["samples"] is None else f"{made['samples']:,}"
    source = {"limit": ", by the limit; the hub was not asked", "unknown": ": the hub was not asked"}
    source["published"] = ", as published; the hub was not asked"
    share = 100 * made["trainable_parameters"] / made["parameters"]
    factors = f"rank {made['rank']}, alpha {made['alpha']:g}{' (rsLoRA)' if made['rslora'] else ''}, on "
    factors += ", ".join(made["targets"]) + (f" of layers {made['layers']}" if made["layers"] else "")
    factors += f"; whole: {', '.join(made['modules_to_save'])}" if made["modules_to_save"] else ""
    form = " in delta form" if made["start_form"] == "delta" else ""
    own = {"full": "none: all weights", "bitfit": "none: the biases"}
    if method_of(made["method"]).is_bottleneck:
        own[made["method"]] = f"bottlenecks of width {made['rank']}"
    lines = [
        ("model", f"{made['model']}, {made['parameters']:,} parameters (from {made['numbers_from']})"),
        (
            "precision",
            made["dtype"] + (f", the frozen linear layers in {made['quantize']}" if made["quantize"] else ""),
        ),
        ("method", made["method"] + ("" if made["method"] in own else f" from a {made['start']} start{form}")),
        ("adapter", own.get(made["method"], factors)),
        *_left_lines(made["left_out"]),
        ("trainable parameters", f"{made['trainable_parameters']:,} ({share:.2f} % of the model)"),
        ("preset", f"{made['preset']}: {weights}; {forms}" if is_on else "regularizers off"),
        ("task", f"classification: {made['task']}") if made["task"] else ("template", made["template"]),
        ("data", f"{made['data']}, {samples} rows{source.get(made['samples_from'], '')}"),
        (
            "effective batch",
            f"{made['effective_batch_size']} = {made['micro_batch_size']} per micro-batch × {made['accumulation']} "
            f"accumulated × {made['processes']} process{'es' if made['processes'] > 1 else ''}",
        ),
        ("launcher", made["launcher"] or "none: one process"),
        ("DeepSpeed", _deepspeed_text(made)),
        *_step_lines(made),
        ("steps", "unknown" if made["steps"] is None else f"{made['steps']:,}"),
        *_held_out_lines(made["held_out"]),
        ("benchmarks", ", ".join(made["benchmarks"]) or "none"),
        *_evaluation_lines(made["evaluation"]),
        ("disk, predicted", ", ".join(f"{name} {_size(size)}" for name, size in made["disk"].items())),
        *_teacher_lines(made["teacher_cache"], made["teacher_share"]),
        *_memory_lines(made),
        *(capacity.lines(made["devices"]) if made["devices"] else ()),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join([*(f"{name:<{width}}{text}" for name, text in lines), "Nothing was loaded or written."])


def _step_lines(made: dict) -> list[tuple[str, str]]:
    compiled = "each layer by itself; memory and time are predicted without that"
    lines = ("optimizer", made["optimizer"]), ("compiled", compiled if made["compile"] else None)
    return [(name, text) for name, text in lines if text]


def _held_out_lines(held: dict | None) -> list[tuple[str, str]]:
    if held is None:
        return []
    rows, looks = ("an unknown number of" if each is None else f"{each:,}" for each in (held["rows"], held["looks"]))
    part = "leave them out" if None in held.values() else "include them"
    return [("held-out rows", f"{rows} rows, looked at {looks} times; work and time {part}")]


def _evaluation_lines(evaluation: dict | None) -> list[tuple[str, str]]:
    if evaluation is None:
        return []
    count, why = evaluation["processes"], evaluation["reason"]
    spread = "" if count is None else f", {count} process{'es' if count > 1 else ''}"
    return [("evaluation", evaluation["backend"] + spread + (f" ({why})" if why else ""))]


def _deepspeed_text(made: dict) -> str:
    if made["deepspeed"] or not made["deepspeed_left_out"]:
        return made["deepspeed"] or "none"
    return f"none: {made['deepspeed_left_out']} divides the work of several processes, and this run has one"


def _left_lines(left: dict[str, int]) -> list[tuple[str, str]]:
    return [("not adapted", f"{', '.join(left)}: {sum(left.values()):,} parameters")] if left else []


def _teacher_lines(cache: dict | None, share: float) -> list[tuple[str, str]]:
    if cache is None:
        return [("teacher", f"on {share:g} of the sequences of a step, drawn by the seed")] if share < 1 else []
    form = cache["form"]
    sizes = {name: "unknown" if size is None else _size(size) for name, size in cache["sizes"].items()}
    others = ", ".join(f"{size} as --teacher_cache_form {name}" for name, size in sizes.items() if name != form)
    where = f"in {cache['folder']} assuming {cache['tokens_a_sample']} trained tokens per sample; the run counts them"
    return [("teacher cache, predicted", f"{sizes[form]} ({form}; {others}) {where}")]


def _memory_lines(made: dict) -> list[tuple[str, str]]:
    zero = f", ZeRO stage {made['zero_stage']} over {made['processes']}" if made["zero_stage"] else ""
    total = _size(sum(made["memory"].values()))
    head = f"{total} at the peak of a full micro-batch{zero}; without the driver's own"
    if not made["memory_is_whole"]:
        why = "the load of each expert depends on the data"
        head = f"more than {total}{zero}: {why}, so activations and the objective are not included"
    return [("memory per GPU, predicted", head), *((f"  {name}", _size(size)) for name, size in made["memory"].items())]


def _size(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
