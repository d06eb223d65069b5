"""The delta form of a PiSSA start: the trajectory of the residual form, a start and a teacher that are the base to the bit."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from ba_lora.errors import UserError
from ba_lora.methods import attach as attaching
from ba_lora.methods.attach import attach
from ba_lora.methods.delta import delta_layers, start_tensors
from ba_lora.methods.precision import keep_inputs_under_autocast
from ba_lora.methods.quantisation import keep_packing
from ba_lora.methods.rounding import round_factors
from ba_lora.methods.save import export, load
from ba_lora.methods.teacher import initial_copy, initial_tensors, kept_parameters, teacher
from ba_lora.objective.settings import Objective
from ba_lora.training.objective_model import ObjectiveModel
from tests.common import classifier_batch, collate, move, ragged_samples, small_classifier, small_llama

FORMS = ("residual", "delta")
OBJECTIVE = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3)


def adapted(form, model=None, method="ba-lora", **options):
    return attach(model or small_llama(), method, rank=4, alpha=6, start_form=form, **options)


def layers(model) -> dict[str, LoraLayer]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def updates(model) -> torch.Tensor:
    """The change of every adapted weight in float64, from the equation of each form."""
    made, initial = [], initial_tensors(model)
    for name, layer in layers(model).items():
        a, b = (getattr(layer, f"lora_{which}")["default"].weight.detach().double() for which in "AB")
        if delta_layers(model):
            a0, b0 = (getattr(layer, f"lora_{which}0")["default"].weight.double() for which in "AB")
            product = (b0 + b) @ (a0 + a) - b0 @ a0
        else:
            product = (
                b @ a
                - initial[f"{name}.lora_B.default.weight"].double() @ initial[f"{name}.lora_A.default.weight"].double()
            )
        made.append((layer.scaling["default"] * product).flatten())
    return torch.cat(made)


def trained(model, steps=20, clip=0.5, weight_decay=0.0):
    """The losses of `steps` steps of clipped AdamW on the whole objective, and the update after them."""
    wrapped = ObjectiveModel(model, OBJECTIVE).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=weight_decay)
    samples, losses, norms = ragged_samples(4 * steps), [], []
    for step in range(steps):
        wrapped.begin_step(step, steps)
        loss = wrapped(**collate(samples[4 * step : 4 * step + 4])).loss
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(parameters, clip).item())
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert min(norms) > clip  # every step was clipped
    return torch.tensor(losses, dtype=torch.float64), updates(model)


def in_double(model):
    """`model` in float64, W_res (if it has one) recomputed from the weight that it was in float32."""
    whole = small_llama().double()
    model = model.double()
    if not delta_layers(model):
        for name, layer in layers(model).items():
            weight = whole.get_submodule(name.removeprefix("base_model.model.")).weight.detach()
            product = layer.lora_B["default"].weight.detach() @ layer.lora_A["default"].weight.detach()
            layer.base_layer.weight.data = weight - layer.scaling["default"] * product
    return model


@pytest.mark.parametrize(
    ("prepare", "closeness"),
    [(lambda model: model, 1e-5), pytest.param(in_double, 1e-12, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)
def test_both_forms_have_the_same_losses_and_the_same_update(prepare, closeness):
    (losses, update), (others, other) = (trained(prepare(adapted(form))) for form in FORMS)
    torch.testing.assert_close(others, losses, rtol=closeness / 10, atol=closeness / 10)
    assert (update - other).norm() < closeness * update.norm()
    assert update.norm() > 0.1


def test_weight_decay_is_the_exception():
    (_, update), (_, other) = (trained(in_double(adapted(form)), steps=3, weight_decay=0.1) for form in FORMS)
    assert (update - other).norm() > 1e-3 * update.norm()


@pytest.mark.parametrize("method", ["pissa", "ba-lora", "pissa_niter_4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_start_and_the_teacher_are_the_base_to_the_bit(method, dtype):
    base, batch = small_llama().to(dtype), collate(ragged_samples(4))
    original, weights = base(**batch).logits, copy.deepcopy(base.state_dict())
    model = adapted("delta", base, method)
    assert torch.equal(model(**batch).logits, original)
    move(model)
    assert (model(**batch).logits - original).abs().max() > 0.01
    with teacher(model):
        assert torch.equal(model(**batch).logits, original)
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits, original)
    assert (model(**batch).logits - original).abs().max() > 0.01  # switched on again
    kept = model.unload().state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in weights.items())


def test_consistency_starts_at_exactly_zero_in_bfloat16():
    wrapped = ObjectiveModel(adapted("delta", small_llama().bfloat16()), OBJECTIVE, all_terms=True).train()
    wrapped.begin_step(0, 10)
    wrapped(**collate(ragged_samples(4)))
    assert wrapped.sums["consistency"].item() == 0.0


def test_only_the_changes_are_trained_and_nothing_is_copied():
    model = adapted("delta", small_llama().bfloat16())
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert found and all(p.dtype == torch.float32 and not p.any() for p in found.values())
    start = start_tensors(model)
    assert len(start) == len(found) and all(p.dtype == torch.float32 and p.any() for p in start.values())
    assert not any(p.requires_grad for p in start.values())
    assert not list(initial_copy(model).parameters()) and kept_parameters(model) == list(start.values())
    model.set_adapter("default")  # PEFT's, which trains the active adapter
    assert not any(p.requires_grad for p in start.values())


@pytest.mark.parametrize("name", ["roberta-large", "gpt2-xl"])  # gpt2-xl: of Conv1D layers
def test_a_trained_head_has_a_teacher_too(name, tmp_path):
    base = small_classifier(name).eval()
    model = adapted("delta", base)
    batch = classifier_batch(4, 7)
    original = model(**batch).logits
    move(model)
    logits = model(**batch).logits
    with teacher(model):
        assert torch.equal(model(**batch).logits, original)
    assert (logits - original).abs().max() > 1e-3
    export(model, tmp_path / "adapter")
    opened = load(tmp_path / "adapter", small_classifier(name).eval())
    torch.testing.assert_close(opened(**batch).logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.merge_and_unload()(**batch).logits, logits, rtol=1e-4, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    small_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    return tmp_path


def test_the_exports_of_the_two_forms_are_the_same_adapter(tmp_path):
    batch, found = collate(ragged_samples(4)), []
    changes = adapted("delta")
    move(changes)
    factors = adapted("residual")
    for name, layer in layers(factors).items():
        other = layers(changes)[name]
        for which in "AB":
            weight, change = (getattr(each, f"lora_{which}")["default"].weight for each in (layer, other))
            weight.data += change.data
    for form, model in (("residual", factors), ("delta", changes)):
        export(model, tmp_path / form)
        config = json.loads((tmp_path / form / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 12, True)
        found.append(load(tmp_path / form, small_llama()))
        torch.testing.assert_close(found[-1](**batch).logits, model.eval()(**batch).logits, rtol=1e-4, atol=1e-4)
    products = [[layer.get_delta_weight("default") for layer in layers(model).values()] for model in found]
    for one, other in zip(*products, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stabilised", [False, True])
def test_the_exported_alpha_keeps_the_scaling_of_the_layers(form, stabilised, tmp_path, monkeypatch):
    plain = attaching._peft_config

    def config(*words):
        made = plain(*words)
        made.use_rslora = stabilised
        return made

    monkeypatch.setattr(attaching, "_peft_config", config)
    model, batch = adapted(form), collate(ragged_samples(4))
    move(model)
    export(model, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["lora_alpha"] == pytest.approx(6 * 2**0.5 if stabilised else 12) and written["r"] == 8
    opened = load(tmp_path / "adapter", small_llama())
    for layer in (*layers(model).values(), *layers(opened).values()):
        assert layer.scaling["default"] == pytest.approx(6 / 2 if stabilised else 6 / 4)
    torch.testing.assert_close(opened(**batch).logits, model.eval()(**batch).logits, rtol=1e-4, atol=1e-4)


def test_runs_that_share_a_base_object_keep_their_own_logits(tmp_path):
    base, batch, logits = small_llama(), collate(ragged_samples(4)), {}
    for name, seed in (("one", 0), ("two", 1)):
        model = adapted("delta", base, "pissa_niter_4", seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        export(model, tmp_path / name)
        logits[name] = model.eval()(**batch).logits
        base = model.unload()
    both = PeftModel.from_pretrained(base, tmp_path / "one", adapter_name="one")
    both.load_adapter(tmp_path / "two", adapter_name="two")
    for name in ("one", "two", "one"):
        both.set_adapter(name)
        torch.testing.assert_close(both(**batch).logits, logits[name], rtol=1e-4, atol=1e-4)
    assert (logits["one"] - logits["two"]).abs().max() > 0.1


def test_a_merge_is_the_model_and_is_taken_back():
    model, batch = adapted("delta").eval(), collate(ragged_samples(4))
    move(model)
    logits = model(**batch).logits
    model.merge_adapter()
    torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="unmerge"), teacher(model):
        pass
    model.unmerge_adapter()
    torch.testing.assert_close(model(**batch).logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.merge_and_unload(safe_merge=True)(**batch).logits, logits, rtol=1e-4, atol=1e-4)


def test_the_model_can_be_copied_deleted_and_is_not_rounded():
    model, batch = copy.deepcopy(adapted("delta", small_llama().bfloat16())).eval(), collate(ragged_samples(4))
    original = small_llama().bfloat16()(**batch).logits
    move(model)
    logits = model(**batch).logits
    assert round_factors(model) == 0 and torch.equal(model(**batch).logits, logits)
    model.base_model.delete_adapter("default")
    assert not start_tensors(model) and not [name for name, _ in model.named_parameters() if "lora_" in name]
    assert torch.equal(model.base_model.model(**batch).logits, original)


def gradient(autocast=True, spares=False, checkpoints=False):
    """(loss, its gradient) of a base in bfloat16."""
    model = adapted("delta", small_llama().bfloat16()).train()
    move(model)
    if spares:
        keep_inputs_under_autocast(model)
    if checkpoints:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = model if autocast else model.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**collate(ragged_samples(3)), use_cache=False).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def test_autocast_spares_a_cast_and_checkpointing_recomputes_the_same():
    (loss, one), (same, other), (again, recomputed) = (gradient(), gradient(spares=True), gradient(True, True, True))
    assert loss == same == again and torch.equal(other, recomputed)
    _, exact = gradient(autocast=False)
    assert (other - exact).norm() < 1.2 * (one - exact).norm() < 0.05 * exact.norm()


def test_dropout_leaves_the_start_at_the_base_in_this_form_only():
    model, batch = adapted("delta", dropout=0.5).train(), collate(ragged_samples(4))
    original = small_llama()(**batch).logits
    assert torch.equal(model(**batch).logits, original)
    move(model)
    assert not torch.equal(model(**batch).logits, model(**batch).logits)
    with teacher(model):
        assert torch.equal(model(**batch).logits, original)
    with pytest.raises(UserError, match="dropout 0.5 does not go with a PiSSA start.*start_form delta"):
        adapted("residual", dropout=0.5)


@pytest.mark.parametrize(("form", "method"), [("delta", "lora"), ("delta", "full"), ("other", "pissa")])
def test_a_form_that_does_not_apply_is_refused(form, method):
    with pytest.raises(UserError, match=f"start_form '{form}'"):
        adapted(form, method=method)


def test_a_later_start_takes_the_factors_of_an_earlier_one_in_either_form(tmp_path):
    first = adapted("residual")
    names = [name.removeprefix("base_model.model.") for name in layers(first)]
    values = initial_tensors(first)
    factors = {n: tuple(values[f"base_model.model.{n}.lora_{w}.default.weight"] for w in "AB") for n in names}
    start = start_tensors(adapted("delta", factors=factors))
    for name, tensor in values.items():
        assert torch.equal(start[name.replace(".default", "0.default")], tensor)


QUANTISED = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "8 bits": {"load_in_8bit": True},
}


@pytest.mark.parametrize("kind", ["nf4", pytest.param("8 bits", marks=pytest.mark.slow)])
def test_a_base_that_came_quantised_is_trained_and_its_export_is_the_trained_model(kind, folder):
    def opened():
        config = BitsAndBytesConfig(**QUANTISED[kind])
        base = AutoModelForCausalLM.from_pretrained(folder / "base", quantization_config=config, dtype=torch.float32)
        keep_packing(base)  # this test evaluates it before `attach`
        return base

    base, batch = opened(), collate(ragged_samples(4))
    original, seen = base(**batch).logits, "model.layers.1.mlp.up_proj"
    model = adapted("delta", base)
    assert torch.equal(model(**batch).logits, original)
    layer = layers(model)[f"base_model.model.{seen}"]
    weight = layer.base_layer(torch.eye(64)).T.detach()  # as the layer computes with it
    leading = layer.scaling["default"] * layer.lora_B0["default"].weight @ layer.lora_A0["default"].weight
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(leading, u[:, :4] * s[:4] @ v[:4], rtol=0, atol=0.02 * s[0].item())
    losses, _ = trained(model, steps=8, clip=1e-3)
    assert losses[-1] != losses[0]
    logits = model.eval()(**batch).logits
    assert (logits - original).abs().max() > 0.01
    with teacher(model):
        assert torch.equal(model(**batch).logits, original)
    export(model, folder / "adapter")
    again = load(folder / "adapter", opened())
    torch.testing.assert_close(again(**batch).logits, logits, rtol=1e-4, atol=1e-3)
