"""The pre-trained model, recovered from the adapted one without a second copy of it.

A low-rank method writes W = W_res + s·B0·A0 and trains the factors. The pre-trained model is therefore the adapted model
with its trained tensors at their initial values. Those values are kept as frozen parameters of the model (so that they
follow its device, dtype and partitioning) and replace the trained tensors during the teacher's forward.

PEFT's `disable_adapter()` would give the residual W_res: after a PiSSA start that is a damaged model, not the teacher. In the delta
form (delta.py) the base has kept its weights. There the adapter is switched off, and its changes, which start at zero, need no copy.
The same holds for an adapter that PEFT put beside a base whose weights it left alone, as LoRA does: without a copy it is switched off.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..modes import evaluating
from ..sharding import gathered
from .delta import change_tensors, in_delta_form, start_tensors

COPY = "initial_copy"  # the name under which the model holds its InitialCopy
# PEFT's init_lora_weights that leave the base's weights as they are; others, such as pissa, olora, corda, loftq and lora_ga, change them
INTACT = (True, False, "gaussian", "eva", "mica", "orthogonal")
SWITCHED = (
    BaseTunerLayer,
    AuxiliaryTrainingWrapper,
)  # an adapted layer, and a module that PEFT trains whole beside the original


class InitialCopy(nn.Module):
    """Frozen copies of every trained tensor of `model` at this moment, without the changes of the delta form; `places` lists
    where each one belongs.

    A tied tensor has several places. Memory: as much as the trained tensors; little for an adapter, a second model for full
    fine-tuning.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        places: dict[int, list[str]] = {}
        tensors, changes = {}, change_tensors(model)
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad and name not in changes:
                places.setdefault(id(parameter), []).append(name)
                tensors[id(parameter)] = parameter
        self.places = list(places.values())
        self.copies = nn.ParameterList(
            nn.Parameter(tensor.detach().clone(), requires_grad=False) for tensor in tensors.values()
        )


def keep_initial_copy(model: nn.Module) -> None:
    """Give `model` the frozen copy of its trained tensors that `teacher` needs. Call it before the first step."""
    model.add_module(COPY, InitialCopy(model))


def initial_copy(model: nn.Module) -> InitialCopy | None:
    """The copy that `keep_initial_copy` made, or None."""
    return model._modules.get(COPY)


def initial_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """{parameter name: initial value} of every trained tensor; in the delta form, whose changes start at zero, A0 and B0 under
    names of their own instead. Raises ValueError if no copy was kept."""
    copy = _require_copy(model)
    copied = {name: tensor for names, tensor in zip(copy.places, copy.copies, strict=True) for name in names}
    return copied | start_tensors(model)


def kept_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The frozen parameters that hold the start of the trained ones: the initial copy, and A0 and B0 of the delta form."""
    return [*(initial_copy(model) or nn.Module()).parameters(), *start_tensors(model).values()]


def has_teacher(model: nn.Module) -> bool:
    """Return True if `teacher` can recover the pre-trained model: from the initial copy, or by switching the adapter off."""
    return initial_copy(model) is not None or rests_on_its_base(model)


def rests_on_its_base(model: nn.Module) -> bool:
    """Return True if `model` without its adapter is the pre-trained model: a PeftModel whose start changed no weight of the base, and
    which trains nothing but its adapter."""
    if not isinstance(model, PeftModel) or any(config.is_prompt_learning for config in model.peft_config.values()):
        return False
    if any(getattr(config, "init_lora_weights", True) not in INTACT for config in model.peft_config.values()):
        return False
    beside = set()
    for module in model.modules():
        if isinstance(module, SWITCHED):
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module.original_module
            beside |= {id(p) for p in module.parameters()} - {id(p) for p in base.parameters()}
    return all(id(parameter) in beside for parameter in model.parameters() if parameter.requires_grad)


def _require_copy(model: nn.Module) -> InitialCopy:
    copy = initial_copy(model)
    if copy is None:
        raise ValueError("the model keeps no initial copy, so it has no teacher; attach it with keep_initial=True")
    return copy


@contextmanager
def teacher(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the block, `model` is the pre-trained model: evaluation mode, no gradient, and initial values with adapters on (in the
    delta form off). A PeftModel without an initial copy has its adapters off if that gives the pre-trained model.

    Afterwards, also after an exception, it is the student again, with every mode and flag restored. Raises ValueError if there is
    neither, or if adapters are merged into the base weights (the student cannot be separated from them).
    """
    copy = None if initial_copy(model) is None and rests_on_its_base(model) else _require_copy(model)
    modules = dict(model.named_modules())
    switched = [module for module in modules.values() if isinstance(module, SWITCHED)]
    if any(getattr(layer, "merged", False) for layer in switched):
        raise ValueError("the adapter is merged into the base weights; unmerge it before the teacher is used")
    flags = [(layer, layer._disable_adapters) for layer in switched]
    initial = list(copy.parameters()) if copy else []
    undo = []
    try:
        for layer, _ in flags:
            layer._disable_adapters = copy is None or in_delta_form(layer)
        for names, tensor in zip(copy.places if copy else (), initial, strict=True):
            for name in names:
                owner, _, key = name.rpartition(".")
                undo.append(_replace(modules[owner], key, tensor))
        with evaluating(model), gathered(initial), torch.no_grad():
            yield model
    finally:
        for each in undo:
            each()
        for layer, disabled in flags:
            layer._disable_adapters = disabled


def _replace(module: nn.Module, key: str, tensor: nn.Parameter) -> Callable[[], object]:
    """Make `tensor` the value of the parameter `key` of `module`; return the function that gives the trained one back.

    The tensor takes the parameter's place, where a compiled function looks for it: torch.compile has no guard against an attribute
    that hides a parameter, and would run the student's function on the student's values. ZeRO-3 records the parameters of each module
    and fails if they change from one forward to the next. There the tensor hides the parameter.
    """
    trained = module._parameters[key]
    if hasattr(trained, "ds_id"):
        vars(module)[key] = tensor
        return partial(vars(module).pop, key)
    module._parameters[key] = tensor
    return partial(module._parameters.__setitem__, key, trained)
