"""`ba_lora.reference` as TRL's reference model: the base of every start, where TRL's own way gives the residual of a PiSSA start."""

import pytest
import torch

import ba_lora
from ba_lora.methods.attach import attach
from ba_lora.models import load_tokenizer
from tests.common import collate, ragged_samples, small_llama
from tests.trl.trainers import LORA, VOCABULARY, arguments, datasets, trained, trl, with_adapter

BATCH = collate(ragged_samples(4))
IDS = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
PAIRS = [
    {"prompt": "What is 3 + 4? ", "chosen": "It is 7.", "rejected": "It is 12."},
    {"prompt": "Is 2 even? ", "chosen": "Yes, 2 is even.", "rejected": "No."},
] * 2


def attached(form="residual"):
    base = small_llama(vocab_size=VOCABULARY)
    return attach(base, "pissa", rank=4, alpha=8, target_modules=LORA["target_modules"], start_form=form)


STARTS = {
    "lora": lambda: with_adapter(small_llama(vocab_size=VOCABULARY)),
    "residual": attached,
    "delta": lambda: attached("delta"),
}


@pytest.mark.parametrize("start", STARTS)
def test_only_of_a_residual_does_trl_own_reference_differ_from_the_base(start):
    from trl.trainer.utils import use_adapter

    base, model = small_llama(vocab_size=VOCABULARY), STARTS[start]()
    original = base(**IDS).logits
    with use_adapter(model, None), torch.no_grad():
        theirs = model(**IDS).logits
    ours = ba_lora.reference(model)(**IDS).logits
    torch.testing.assert_close(ours, original, rtol=1e-4, atol=1e-4)
    assert ((theirs - original).abs().max() > 0.1) == (start == "residual")


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_dpo_starts_from_log_2_and_its_reference_stays_the_base(start, tmp_path):
    model, base = STARTS[start](), small_llama(vocab_size=VOCABULARY)
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=ba_lora.reference(model),
        args=arguments(tmp_path, trl.DPOConfig, bf16=False, gradient_checkpointing=False, learning_rate=0.01),
        train_dataset=datasets.Dataset.from_list(PAIRS),
        processing_class=load_tokenizer("tiny"),
    )
    before = trained(model)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)  # the policy is the reference
    assert rows[1]["loss"] < rows[0]["loss"] and not torch.equal(trained(model), before)
    torch.testing.assert_close(trainer.ref_model(**IDS).logits, base(**IDS).logits, rtol=1e-4, atol=1e-4)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    found = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)[:, 1:]
    log_p = torch.log_softmax(base(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1], -1)
    kept = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels == -100, 0).sum(1)
    torch.testing.assert_close(torch.cat(found), kept, rtol=1e-4, atol=1e-3)
