"""The models that split into body and frozen head; equal results of the two ways of training; the factor on disk."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from ba_lora.data.collator import counted
from ba_lora.methods.attach import attach
from ba_lora.objective import head as head_module
from ba_lora.objective.chunked import factor_of
from ba_lora.objective.head import cached_factor, split
from ba_lora.objective.settings import Objective
from ba_lora.training.objective_model import ObjectiveModel
from tests.common import SMALL as SMALL_MODEL
from tests.common import collate, move, ragged_samples, small_llama

SMALL = SMALL_MODEL | {"max_position_embeddings": 64, "initializer_range": 0.2}
SEPARABLE = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gpt2": GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),  # its head is tied to the embeddings
}
OTHERWISE = {  # the logits are not the head's product alone
    "gemma2": Gemma2Config(**SMALL, head_dim=16, final_logit_softcapping=3.0),
    "granite": GraniteConfig(**SMALL, logits_scaling=8.0),
    "cohere": CohereConfig(**SMALL, logit_scale=0.0625),
}
IDS = torch.tensor([[5, 6, 7, 8]])
ALL_TERMS = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, svd_norm="frobenius")
V5 = Objective(0.3, 0.2, 0.1, svd_k=3)


def random_model(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).float()


def frozen(model):
    return model.requires_grad_(False)


@pytest.mark.parametrize("adapted", [False, True], ids=["bare", "adapted"])
@pytest.mark.parametrize("name", SEPARABLE)
def test_ordinary_models_come_apart(name, adapted):
    model = frozen(random_model(SEPARABLE[name]))
    if adapted:
        targets = ["c_attn"] if name == "gpt2" else ["q_proj", "down_proj"]
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, fan_in_fan_out=name == "gpt2")
        )
    model.train()
    parts, reason = split(model, IDS)
    assert reason == "" and model.training
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        logits = parts.head(parts.body(input_ids=IDS).last_hidden_state)
        assert torch.allclose(logits, model(input_ids=IDS).logits, atol=1e-5)


@pytest.mark.parametrize("name", OTHERWISE)
def test_capped_and_scaled_logits_are_refused(name):
    parts, reason = split(frozen(random_model(OTHERWISE[name])), IDS)
    assert parts is None and "a soft cap or a scale" in reason


def test_a_trained_an_adapted_and_a_biased_head_are_refused():
    assert split(small_llama(), IDS) == (None, "the head is trained")
    adapted = get_peft_model(small_llama(), LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
    assert split(adapted, IDS) == (None, "the head is adapted")
    biased = small_llama()
    biased.lm_head = torch.nn.Linear(32, 97, bias=True)
    assert split(frozen(biased), IDS) == (None, "the head has a bias")


def wrapped(base, objective=ALL_TERMS, **options):
    """An adapted model, its factors moved away from the start so that every term has a gradient."""
    model = attach(base, "ba-lora", rank=4, alpha=4, seed=1)
    move(model)
    return ObjectiveModel(model, objective, **options).train()


def step(model, batches):
    """(losses, gradient) of an optimiser step cut into `batches`."""
    items = torch.tensor(sum(int(counted(batch["labels"]).sum()) for batch in batches))
    model.zero_grad()
    model.begin_step(0, 10, micro_batches=len(batches))
    losses = [model(**batch, num_items_in_batch=items).loss for batch in batches]
    sum(losses).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    return torch.stack(losses).detach(), gradient


def ragged_batches():
    samples = ragged_samples(7)
    return [collate(samples[:4]), collate(samples[4:5]), collate(samples[5:])]


@pytest.mark.parametrize("objective", [ALL_TERMS, V5], ids=["iclr form", "v5 form"])
@pytest.mark.parametrize("base", [small_llama, lambda: random_model(SEPARABLE["gpt2"])], ids=["llama", "gpt2"])
def test_training_without_logits_has_the_losses_and_gradients_of_training_with_them(base, objective):
    batches = ragged_batches()
    without, having = wrapped(base(), objective), wrapped(base(), objective, chunked=False)
    losses, gradient = step(without, batches)
    expected_losses, expected = step(having, batches)
    assert without.parts and not having.parts  # two different ways; otherwise the test could not fail
    assert torch.allclose(losses, expected_losses, rtol=1e-6)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    for name, value in without.sums.items():
        assert value.item() == pytest.approx(having.sums[name].item(), rel=1e-5, abs=1e-6), name


def test_a_model_that_does_not_come_apart_trains_on_its_logits_and_says_so_once(caplog):
    batches = ragged_batches()
    base = random_model(OTHERWISE["granite"])
    model, dense = wrapped(base), wrapped(random_model(OTHERWISE["granite"]), chunked=False)
    with caplog.at_level(logging.WARNING, "ba_lora.objective.settings"):
        losses, gradient = step(model, batches)
    assert [record.getMessage() for record in caplog.records] == [
        "the logits are kept, at the cost of memory and time: "
        "the logits are not the head's product alone (a soft cap or a scale)"
    ]
    expected_losses, expected = step(dense, batches)
    assert torch.equal(losses, expected_losses) and torch.equal(gradient, expected)


@pytest.fixture
def counted_factors(monkeypatch, tmp_path):
    """An empty cache, and the list of heads for which a factor was computed."""
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(head_module, "factor_of", lambda weight: made.append(weight) or factor_of(weight))
    return made


def linear(seed, dtype=torch.float32):
    weight = torch.randn(97, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)
    head = torch.nn.Linear(32, 97, bias=False)
    head.weight = torch.nn.Parameter(weight, requires_grad=False)
    return head


def test_the_factor_is_made_once_for_the_same_values_and_again_for_others(counted_factors, tmp_path):
    first, again = cached_factor(linear(0)), cached_factor(linear(0))
    assert len(counted_factors) == 1 and torch.equal(first, again)
    assert torch.equal(first, factor_of(linear(0).weight))
    assert not torch.equal(cached_factor(linear(1)), first)
    cached_factor(linear(0, torch.bfloat16))
    assert len(counted_factors) == 3 and len(list((tmp_path / "heads").glob("[!.]*"))) == 3


def test_of_several_that_ask_at_the_same_moment_one_makes_the_factor(counted_factors, tmp_path, monkeypatch):
    def slowly(weight, made=head_module.factor_of):
        time.sleep(0.2)
        return made(weight)

    monkeypatch.setattr(head_module, "factor_of", slowly)
    with ThreadPoolExecutor(4) as pool:
        factors = list(pool.map(lambda _: cached_factor(linear(0)), range(4)))
    assert len(counted_factors) == 1 and all(torch.equal(factor, factors[0]) for factor in factors)


def test_a_damaged_file_is_made_anew(counted_factors, tmp_path):
    first = cached_factor(linear(0))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(cached_factor(linear(0)), first) and len(counted_factors) == 2
    assert torch.equal(cached_factor(linear(0)), first) and len(counted_factors) == 2
