"""Factors that are rounded to 16 bits for an evaluation: the update survives, and nothing else changes."""

import peft
import pytest
import torch
from safetensors.torch import load_file

from ba_lora.methods.attach import attach
from ba_lora.methods.rounding import refactored, refactored_tensors, round_factors
from ba_lora.methods.save import export, load
from tests.common import small_llama


def cancelling(seed=0, out=40, width=24, rank=6, moved=1e-3):
    """(B, A) of an exported PiSSA adapter: [B, −B0] and [A; A0], where training moved both a little; and B·A in float64."""
    generator = torch.Generator().manual_seed(seed)
    b0, a0 = (torch.randn(*shape, generator=generator) for shape in ((out, rank), (rank, width)))
    b, a = (each + moved * torch.randn(each.shape, generator=generator) for each in (b0, a0))
    both = torch.cat([b, -b0], 1), torch.cat([a, a0])
    return *both, both[0].double() @ both[1].double()


def lost(b, a, update, dtype=torch.bfloat16):
    """The share of the update's norm that rounding its factors loses."""
    rounded = b.to(dtype).double() @ a.to(dtype).double()
    return ((rounded - update).norm() / update.norm()).item()


@pytest.mark.parametrize("shape", [{}, {"out": 8, "width": 30}, {"out": 30, "width": 5}, {"rank": 1}, {"moved": 1e-5}])
def test_the_refactored_update_is_the_same_and_survives_rounding(shape):
    b, a, update = cancelling(**shape)
    assert lost(b, a, update) > 0.5  # as it is, most of the update would be noise
    new_b, new_a = refactored(b, a)
    assert (new_b.shape, new_a.shape) == (b.shape, a.shape)
    assert lost(new_b, new_a, update, torch.float32) < 1e-6
    assert lost(new_b, new_a, update) < 2**-8


def test_an_untrained_adapter_and_a_plain_one_stay_what_they_are():
    b, a = torch.zeros(9, 3), torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    new_b, new_a = refactored(b, a)
    assert not (new_b @ new_a).any()
    b = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    assert lost(*refactored(b, a), b.double() @ a.double()) < 2**-8


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The export of a PiSSA adapter on a small Llama, moved by a thousandth."""
    folder = tmp_path_factory.mktemp("adapter") / "pissa"
    model = attach(small_llama(), "pissa", rank=8, alpha=8, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 3e-3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    export(model, folder)
    return folder


def updates(tensors):
    """{name of A: B·A in float64}"""
    return {
        name: tensors[name.replace("lora_A", "lora_B")].double() @ tensor.double()
        for name, tensor in tensors.items()
        if "lora_A" in name
    }


def test_the_tensors_of_an_adapter_keep_their_names_shapes_and_updates(exported):
    before = load_file(exported / "adapter_model.safetensors")
    after = refactored_tensors(before)
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    for (name, update), other in zip(updates(before).items(), updates(after).values(), strict=True):
        assert ((other - update).norm() / update.norm()).item() < 1e-5, name
        rounded = updates({key: tensor.bfloat16() for key, tensor in after.items()})[name]
        assert ((rounded - update).norm() / update.norm()).item() < 2**-8, name


def test_a_bfloat16_base_computes_in_bfloat16_what_float32_factors_compute(exported):
    ids = torch.arange(3, 60)[None]

    def logits(rounded):
        model = load(exported, base=small_llama().bfloat16())
        dtypes = {each.dtype for name, each in model.named_parameters() if "lora_" in name}
        assert dtypes == {torch.float32}
        if rounded:
            assert round_factors(model) == 14
            assert {each.dtype for name, each in model.named_parameters() if "lora_" in name} == {torch.bfloat16}
        with torch.no_grad():
            return model(input_ids=ids).logits.double()

    exact_base = small_llama().bfloat16().float()
    with torch.no_grad():
        exact = load(exported, base=exact_base)(input_ids=ids).logits.double()
        bare = small_llama().bfloat16().float()(input_ids=ids).logits.double()
    errors = [((logits(rounded) - exact).norm() / exact.norm()).item() for rounded in (False, True)]
    assert errors[1] < 1.2 * errors[0] < 0.05  # the base's own rounding decides
    assert (exact - bare).norm() > 0


def test_a_float32_base_and_what_is_not_plain_lora_stay_bit_for_bit(exported):
    model = load(exported, base=small_llama())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert round_factors(model) == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    dora = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    assert round_factors(peft.get_peft_model(small_llama().bfloat16(), dora)) == 0
    assert round_factors(small_llama().bfloat16()) == 0
