"""Options of a run that do not go together."""

from ..errors import UserError
from ..methods.names import method_of
from .teacher_share import check_share


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
    if arguments.teacher_share < 1:
        _check_teacher_share(arguments)


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
