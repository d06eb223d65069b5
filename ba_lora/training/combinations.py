"""Options of a run that do not go together."""

from ..errors import UserError
from ..methods.names import method_of


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
