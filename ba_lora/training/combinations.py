"""Options of a run that exclude each other: merging, and the teacher's cache."""

from ..errors import UserError
from ..methods.names import method_of

CACHE_FORMS = ("exact", "sketch")  # of --teacher_cache_form


def check_combinations(arguments) -> None:
    """Raise UserError for the first pair of options of `arguments` (TrainArguments) that exclude each other."""
    if arguments.merge and arguments.method == "full":
        raise UserError(
            "--merge folds an adapter into its base; full fine-tuning saves the whole model already, leave it out"
        )
    if arguments.merge and method_of(arguments.method).is_bottleneck:
        raise UserError(
            f"--merge: the layers that {arguments.method} adds cannot be folded into the base; leave it out"
        )
    if arguments.teacher_cache_form == "sketch" and not arguments.teacher_cache:
        raise UserError("--teacher_cache_form sketch needs a folder for the cache; add --teacher_cache FOLDER")
    entries = arguments.teacher_cache_entries
    if arguments.teacher_cache_form == "exact" and entries != type(arguments).teacher_cache_entries:
        raise UserError(f"--teacher_cache_entries {entries} is an option of --teacher_cache_form sketch; add it")
    if arguments.uses_teacher_cache():
        _check_teacher_cache(arguments)


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
