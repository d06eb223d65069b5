"""The options of a method that depend on each other: the form of its start, dropout, a base in 4 bits."""

from ..errors import UserError, choose
from ..methods.names import (
    FORMS,
    QUANTISED,
    check_form,
    check_quantised,
    check_scaling,
    default_form,
    method_of,
    start_of,
)
from ..methods.target_names import check_numbered
from .deepspeed_config import zero_stage
from .optimizers import OPTIMIZERS


def check_method_options(arguments) -> None:
    """Fill in the form of the start in a TrainArguments. UserError for options that do not go together."""
    method, dropout = arguments.method, arguments.dropout
    start = start_of(method, arguments.init)
    arguments.start_form = _form(arguments, start)
    if start.startswith("pissa") and dropout and arguments.start_form == "residual":
        raise UserError(
            f"--dropout {dropout} does not go with a PiSSA start ({method}); set it to 0, or add --start_form delta"
        )
    if dropout and not method_of(method).dropout:
        raise UserError(f"--dropout {dropout} has no place in method {method}; set it to 0")
    check_scaling(method, arguments.rslora)
    _check_layers(arguments)
    if arguments.optimizer:
        choose("--optimizer", arguments.optimizer, OPTIMIZERS)
    if arguments.quantize:
        choose("--quantize", arguments.quantize, QUANTISED)
        check_quantised(method)
        if zero_stage(arguments.deepspeed) == 3:
            raise UserError("--quantize: ZeRO-3 cannot cut packed 4-bit weights; use ZeRO-2 or leave --quantize out")
        if arguments.start_form == "delta":
            raise UserError(
                f"--start_form delta keeps the base's weights and --quantize {arguments.quantize} holds W_res in 4 bits; leave one "
                "of them out"
            )


def _check_layers(arguments) -> None:
    named = arguments.targets()
    if arguments.layers and method_of(arguments.method).files != "peft":
        raise UserError(
            f"--layers {arguments.layers}: method {arguments.method} adapts no layers by number; leave it out"
        )
    if arguments.modules_to_save and method_of(arguments.method).files != "peft":
        raise UserError(
            f"--modules_to_save {' '.join(arguments.modules_to_save)}: method {arguments.method} trains its own tensors alone; leave it out"
        )
    check_numbered(named["target_modules"], named["layers"])


def _form(arguments, start: str) -> str:
    """The form of the start: the given one, or the default. A start other than PiSSA's counts as the residual form."""
    if arguments.start_form:
        return check_form(arguments.start_form, start, arguments.method)
    if arguments.quantize or not start.startswith("pissa"):
        return FORMS[0]
    return default_form(arguments.dtype)
