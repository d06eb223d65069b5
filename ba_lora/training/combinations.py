"""Options of a run that do not go together."""

from ..errors import UserError
from ..methods.names import method_of
from .teacher_share import check_share

CACHE_FORMS = ("exact", "sketch")  # of --teacher_cache_form
UNCOMPILED = {
    "deepspeed": "it moves the tensors that compiled layers read",
    "quantize": "4-bit layers were not tried",
    "gradient_checkpointing": "running a compiled layer again for its gradient was not tried",
    "log_gradient_norms": "torch runs backward through a compiled layer once",
    "packing": "packed rows were not tried",
    "modules_to_save": "modules trained whole were not tried",
    "teacher_share": "a teacher on a part of the sequences was not tried",
    "dropout": "a compiled layer draws other random numbers",
}  # options that --compile refuses: why
UNCOMPILED_METHODS = {
    "loha": "every adapted layer draws a random number to choose its way, which torch does not compile",
    "dora": "torch cannot compile its layers whole and makes dozens of pieces of them, which takes minutes",
}


def check_combinations(arguments) -> None:
    """Raise UserError for the first pair of options of `arguments` (TrainArguments) that contradict each other."""
    if arguments.hub_public and not arguments.push_to_hub:
        raise UserError("--hub_public says how --push_to_hub makes its repository; give --push_to_hub USER/NAME too")
    if arguments.devices and not arguments.dry_run:
        raise UserError(f"--devices {arguments.devices} goes with --dry_run, which plans for them; leave it out")
    if arguments.resume and arguments.overwrite:
        raise UserError("--resume continues a run and --overwrite replaces it; give one of them")
    if arguments.merge and arguments.method == "full":
        raise UserError(
            "--merge folds an adapter into its base; full fine-tuning saves the whole model already, leave it out"
        )
    if arguments.merge and method_of(arguments.method).is_bottleneck:
        raise UserError(
            f"--merge: the layers that {arguments.method} adds cannot be folded into the base; leave it out"
        )
    if arguments.packing and arguments.micro_batch_size == 1:
        raise UserError(
            "--packing puts the samples of a micro-batch together and --micro_batch_size is 1; raise it, or leave packing out"
        )
    if arguments.teacher_cache_form == "sketch" and not arguments.teacher_cache:
        raise UserError("--teacher_cache_form sketch needs a folder for the cache; add --teacher_cache FOLDER")
    entries = arguments.teacher_cache_entries
    if arguments.teacher_cache_form == "exact" and entries != type(arguments).teacher_cache_entries:
        raise UserError(f"--teacher_cache_entries {entries} is an option of --teacher_cache_form sketch; add it")
    if arguments.uses_teacher_cache():
        _check_teacher_cache(arguments)
    if arguments.teacher_share < 1:
        _check_teacher_share(arguments)
    if arguments.compile:
        _check_compile(arguments)
    _check_validation(arguments)


def _check_teacher_cache(arguments) -> None:
    if arguments.teacher_cache_form == "exact":
        for is_needed, who in (
            (arguments.method == "full", "full fine-tuning needs because it trains the head"),
            (arguments.log_gradient_norms, "--log_gradient_norms needs"),
        ):
            if is_needed:
                raise UserError(
                    f"--teacher_cache holds no logits, which {who}; leave one of them out, or add --teacher_cache_form sketch"
                )
        return
    if arguments.teacher_cache_dtype != "float32":
        raise UserError(
            f"--teacher_cache_dtype {arguments.teacher_cache_dtype} is an option of an exact cache; leave it out with "
            "--teacher_cache_form sketch"
        )
    if arguments.objective().consistency != "kl":
        raise UserError(
            f"--teacher_cache_form sketch holds no logits, which --consistency {arguments.objective().consistency} needs; "
            "leave the cache out"
        )


def _check_teacher_share(arguments) -> None:
    share, objective = arguments.teacher_share, arguments.objective()
    if not objective.uses_teacher() and not arguments.log_all_terms:
        raise UserError(f"--teacher_share {share}: no teacher runs here, because lambda1 is 0; leave it out")
    if arguments.teacher_cache:
        raise UserError(
            f"--teacher_share {share} with --teacher_cache: the cache has the rows of every sequence and no teacher runs, so a "
            "share would only add noise; leave one of them out"
        )
    check_share(share, objective)


def _check_compile(arguments) -> None:
    why = UNCOMPILED_METHODS.get(arguments.method)
    if why:
        raise UserError(
            f"--compile with --method {arguments.method}: {why}; use another method, or leave --compile out"
        )
    for name, why in UNCOMPILED.items():
        value = getattr(arguments, name)
        if value != getattr(type(arguments), name):
            named = "" if value is True else " ".join(["", *value] if isinstance(value, list) else ["", str(value)])
            raise UserError(f"--compile with --{name}{named}: {why}; leave one of them out")


def _check_validation(arguments) -> None:
    data, share, defaults = arguments.validation_data, arguments.validation_share, type(arguments)
    if data and share:
        raise UserError(
            f"--validation_data {data} and --validation_share {share} both name held-out rows; leave one of them out"
        )
    for name in ("validation_split", "validation_limit"):
        value = getattr(arguments, name)
        if not data and value != getattr(defaults, name):
            raise UserError(f"--{name} {value} belongs to --validation_data FILE; add it, or leave --{name} out")
    for name in ("validation_steps", "keep", "patience"):
        value = getattr(arguments, name)
        if not data and not share and value != getattr(defaults, name):
            raise UserError(
                f"--{name} {value} needs held-out rows; add --validation_data FILE or --validation_share SHARE"
            )
    for name in ("keep", "patience"):
        value = getattr(arguments, name)
        if arguments.method == "adalora" and value != getattr(defaults, name):
            raise UserError(f"--{name} {value}: adalora plans its ranks over all steps of the run; leave it out")
