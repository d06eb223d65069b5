"""The teacher is the original model, and leaves no trace."""

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from ba_lora.methods.attach import attach
from ba_lora.methods.teacher import has_teacher, initial_copy, keep_initial_copy, teacher
from tests.common import collate, ragged_samples, small_llama

METHODS = ["full", "lora", "pissa", "pissa_niter_4", "ba-lora"]


def adapted(method, dtype=torch.float32, **options):
    return attach(small_llama().to(dtype), method, rank=4, alpha=8, keep_initial=True, **options)


def nudge(model):
    """Stand-in for training: move every trained tensor far."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn_like(parameter)


@pytest.mark.parametrize("method", METHODS)
def test_teacher_equals_the_original_model_after_training(method):
    batch = collate(ragged_samples(4))
    original = small_llama()(**batch).logits
    model = adapted(method)
    nudge(model)
    with teacher(model):
        seen = model(**batch).logits
    torch.testing.assert_close(seen, original, rtol=1e-4, atol=1e-4)
    assert (model(**batch).logits - original).abs().max() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_teacher_equals_the_student_exactly_before_training(method, dtype):
    model, batch = adapted(method, dtype), collate(ragged_samples(4))
    student = model(**batch).logits
    with teacher(model):
        assert torch.equal(model(**batch).logits, student)


def test_a_tied_tensor_is_replaced_wherever_it_stands():
    model = attach(small_llama(tie_word_embeddings=True), "full", rank=1, alpha=1, keep_initial=True)
    batch = collate(ragged_samples(2))
    before = model(**batch).logits
    nudge(model)
    with teacher(model):
        torch.testing.assert_close(model(**batch).logits, before)


def snapshot(model):
    state = {name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    return state, [module.training for module in model.modules()], torch.is_grad_enabled()


def assert_unchanged(before, after):
    assert before[0].keys() == after[0].keys()
    for name, (identity, requires_grad, value) in before[0].items():
        assert after[0][name][:2] == (identity, requires_grad), name
        assert torch.equal(after[0][name][2], value), name
    assert before[1:] == after[1:]


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_restored_after_an_exception(method):
    model = adapted(method).train()
    model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("mlp"))).eval()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="inside"), teacher(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("inside")
    assert_unchanged(before, snapshot(model))


def test_teacher_is_the_original_even_where_adapters_were_switched_off():
    batch, model = collate(ragged_samples(2)), adapted("pissa")
    original = small_llama()(**batch).logits
    with model.disable_adapter():
        residual = model(**batch).logits
        with teacher(model):
            torch.testing.assert_close(model(**batch).logits, original, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(**batch).logits, residual)
    assert (residual - original).abs().max() > 0.1  # why disable_adapter() is not a teacher


def test_teacher_runs_without_dropout_and_the_student_keeps_its_own():
    model = attach(small_llama(attention_dropout=0.5), "pissa", rank=4, alpha=4).train()
    batch = collate(ragged_samples(2))
    with teacher(model):
        torch.testing.assert_close(model(**batch).logits, small_llama()(**batch).logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.slow  # torch.compile takes seconds to import
@pytest.mark.parametrize(
    ("method", "form"), [("full", {}), ("lora", {}), ("pissa", {}), ("pissa", {"start_form": "delta"})]
)
def test_compiled_layers_take_the_values_of_the_teacher_and_then_the_students_again(method, form):
    model, batch = adapted(method, **form).eval(), collate(ragged_samples(4))
    nudge(model)

    def both():
        with teacher(model):
            seen = model(**batch).logits
        return model(**batch).logits, seen

    with torch.no_grad():  # as in a look at held-out rows: nothing but the values tells the two passes apart
        student, base = both()
        for layer in next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList)):
            layer.compile(dynamic=True, backend="eager")
        torch.testing.assert_close(model(**batch).logits, student)
        for found, plain in zip(both(), (student, base), strict=True):
            torch.testing.assert_close(found, plain)
    assert (student - base).abs().max() > 0.5


def test_a_model_without_an_initial_copy_has_no_teacher():
    model = attach(small_llama(), "full", rank=1, alpha=1)
    with pytest.raises(ValueError, match="keep_initial=True"), teacher(model):
        pass


def test_a_merged_adapter_is_refused():
    model = adapted("lora")
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge"), teacher(model):
        pass


def test_the_copy_is_frozen_follows_the_dtype_and_survives_deepcopy():
    model = copy.deepcopy(adapted("pissa")).to(torch.float64)
    kept = initial_copy(model)
    assert all(not p.requires_grad and p.dtype == torch.float64 for p in kept.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in kept.parameters()) == trained
    batch = collate(ragged_samples(2))
    original = small_llama().to(torch.float64)(**batch).logits
    nudge(model)
    with teacher(model):
        torch.testing.assert_close(model(**batch).logits, original, rtol=1e-4, atol=1e-4)


def by_peft(seed=0, **options):
    """A small model with an adapter from stock PEFT."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **options}
    torch.manual_seed(seed)
    return get_peft_model(small_llama(), LoraConfig(task_type="CAUSAL_LM", **options))


BESIDE = {
    "lora": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora": {"use_dora": True},
    "a whole head": {"modules_to_save": ["lm_head"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [3, 4]}},
}


@pytest.mark.parametrize("name", BESIDE)
def test_an_adapter_beside_an_untouched_base_needs_no_copy(name):
    model, batch = by_peft(**BESIDE[name]), collate(ragged_samples(4))
    assert has_teacher(model) and initial_copy(model) is None
    nudge(model)
    before = snapshot(model)
    with teacher(model):
        seen = model(**batch).logits
    assert torch.equal(seen, small_llama()(**batch).logits)
    assert_unchanged(before, snapshot(model))
    assert (model(**batch).logits - seen).abs().max() > 0.1


CHANGED = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "trained biases": {"bias": "all"},
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_adapter_that_changed_its_base_has_a_teacher_only_with_a_copy(name):
    torch.manual_seed(0)
    base = small_llama(attention_bias=True)
    batch = collate(ragged_samples(4))
    original = base(**batch).logits.detach()
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **CHANGED[name]}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    assert not has_teacher(model)
    with pytest.raises(ValueError, match="no initial copy"), teacher(model):
        pass
    keep_initial_copy(model)
    assert has_teacher(model)
    nudge(model)
    with teacher(model):
        torch.testing.assert_close(model(**batch).logits, original, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_virtual_tokens_has_no_teacher():
    model = get_peft_model(small_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not has_teacher(model)
