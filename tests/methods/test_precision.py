"""Inputs of adapted layers under autocast: the same numbers without PEFT's cast, and PEFT's cast where there is no autocast."""

import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer

from ba_lora.methods.attach import attach
from ba_lora.methods.precision import keep_inputs_under_autocast
from tests.common import collate, move, ragged_samples, small_llama


def seen(model) -> set:
    """The types of the inputs of the factors A."""
    found = set()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A["default"].register_forward_pre_hook(lambda module, args: found.add(args[0].dtype))
    return found


def trained(model, autocast):
    batch = collate(ragged_samples(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**batch).loss
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("method", ["lora", "pissa", "ba-lora", "dora"])
def test_loss_and_gradients_are_the_same_to_the_bit(method):
    model = attach(small_llama().bfloat16(), method, rank=4, alpha=8)
    move(model)
    other = copy.deepcopy(model)
    keep_inputs_under_autocast(other)
    types = seen(model), seen(other)
    (loss, gradients), (same, others) = trained(model, True), trained(other, True)
    assert loss == same and all(map(torch.equal, gradients, others))
    assert types[0] == {torch.float32}
    assert types[1] == {torch.float32 if method == "dora" else torch.bfloat16}


def test_outside_autocast_the_input_is_cast_as_before():
    model = attach(small_llama().bfloat16(), "lora", rank=4, alpha=8)
    keep_inputs_under_autocast(model)
    types = seen(model)
    trained(model, False)
    assert types == {torch.float32}


def test_gradient_checkpointing_sees_the_same_types_again():
    model = attach(small_llama().bfloat16(), "lora", rank=4, alpha=8)
    move(model)
    keep_inputs_under_autocast(model)
    plain = trained(model, True)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = trained(model.train(), True)
    assert plain[0] == again[0] and all(map(torch.equal, plain[1], again[1]))
