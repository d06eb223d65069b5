"""The reference is the original model for any start, without touching the adapted one."""

import copy

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

import ba_lora
from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from tests.common import collate, move, ragged_samples, small_llama

BATCH = collate(ragged_samples(4))
IDS = {name: BATCH[name] for name in ("input_ids", "attention_mask")}


def by_peft(**options):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options)
    return get_peft_model(small_llama(), config)


STARTS = {
    "lora by peft": by_peft,
    "pissa by peft": lambda: by_peft(init_lora_weights="pissa"),
    "pissa": lambda: attach(small_llama(), "pissa", rank=4, alpha=4),
    "delta": lambda: attach(small_llama(), "pissa", rank=4, alpha=4, start_form="delta"),
    "full": lambda: attach(small_llama(), "full", rank=1, alpha=1, keep_initial=True),
}


@pytest.mark.parametrize("start", STARTS)
def test_logits_and_hidden_states_are_those_of_the_original_model_after_training(start):
    original, model = small_llama(), STARTS[start]()
    found = ba_lora.reference(model)
    move(model)
    model.train()
    before = copy.deepcopy(model.state_dict())
    logits, hidden = found(**IDS).logits, found.hidden(**IDS)
    torch.testing.assert_close(logits, original(**IDS).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden, original.model(**IDS).last_hidden_state, rtol=1e-4, atol=1e-4)
    assert not logits.requires_grad and model.training and found.train(False).student.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.eval()(**IDS).logits - logits).abs().max() > 0.01


def test_a_model_that_would_be_its_own_reference_is_refused():
    for model in (
        small_llama(),
        get_peft_model(small_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
    ):
        with pytest.raises(UserError, match="has no pre-trained model behind it"):
            ba_lora.reference(model)


def test_a_trained_head_is_not_handed_out_as_the_references():
    found = ba_lora.reference(by_peft(modules_to_save=["lm_head"]))
    assert torch.equal(found(**IDS).logits, small_llama()(**IDS).logits)
    with pytest.raises(UserError, match="leave the head out of modules_to_save"):
        found.get_output_embeddings()
