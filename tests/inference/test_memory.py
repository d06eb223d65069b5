"""The memory of a generation: its size per token, batches that fit, and what happens when they do not."""

import pytest
import torch

from ba_lora.errors import RunFailure
from ba_lora.inference import memory
from ba_lora.inference.local import _steps, generate, stream
from ba_lora.inference.memory import bytes_per_token, tokens_that_fit
from ba_lora.inference.requests import Sampling
from tests.common import small_llama
from tests.inference.letters import Letters


@pytest.fixture(scope="module")
def llama():
    return small_llama(vocab_size=30, initializer_range=0.4, max_position_embeddings=256)


@pytest.fixture
def batches(llama, monkeypatch):
    """(rows, tokens) of every batch that the model has generated."""
    made, generate_all = [], llama.generate
    monkeypatch.setattr(llama, "generate", lambda **o: made.append(o["input_ids"].shape) or generate_all(**o))
    return made


def run(model, prompts, **options):
    return generate(
        prompts,
        model=model,
        tokenizer=Letters(),
        **{"max_new_tokens": 24, "batch_size": 8, "progress": False} | options,
    )


def test_a_token_takes_the_keys_and_values_that_a_cache_really_holds(llama):
    with torch.no_grad():
        cache = llama(input_ids=torch.ones(3, 7, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert bytes_per_token(llama) * 3 * 7 == held
    assert bytes_per_token(small_llama().bfloat16()) == bytes_per_token(small_llama()) // 2
    assert bytes_per_token(small_llama(head_dim=32)) == 2 * bytes_per_token(small_llama())
    assert bytes_per_token(torch.nn.Linear(2, 2)) is None


def test_a_token_of_llama_2_7b_takes_half_a_megabyte():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(dtype="bfloat16", num_hidden_layers=32)).bfloat16()
    assert bytes_per_token(model) == 2 * 32 * 4096 * 2


def test_a_batch_has_no_more_tokens_than_fit_in_free_memory_and_the_completions_are_the_same(
    llama, prompts, batches, monkeypatch
):
    whole, before = run(llama, prompts), max(rows for rows, _ in batches)
    batches.clear()
    longest = max(map(len, prompts))
    free = 3 * (longest + _steps(longest)) * bytes_per_token(llama) / memory.SHARE
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(free) + 1)
    assert run(llama, prompts) == whole and before == 8
    assert batches[0][0] == 3 and all(rows * tokens <= tokens_that_fit(llama) for rows, tokens in batches)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    batches.clear()
    assert run(llama, prompts) == whole and {rows for rows, _ in batches} == {1}  # one at a time, whatever is free


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)], ids=["greedy", "sampled"])
def test_a_batch_that_runs_out_of_memory_is_halved_until_it_fits_and_nothing_is_lost(
    llama, prompts, monkeypatch, caplog, most, sampling
):
    whole = run(llama, prompts, sampling=sampling, seeds=range(12))
    generate_all, tried = llama.generate, []

    def limited(**options):
        tried.append(len(options["input_ids"]))
        if tried[-1] > most:  # in the middle of the batch: some numbers are drawn already
            generate_all(**options | {"max_new_tokens": 2})
            raise torch.OutOfMemoryError("out of memory")
        return generate_all(**options)

    monkeypatch.setattr(llama, "generate", limited)
    found = stream(
        prompts,
        model=llama,
        tokenizer=Letters(),
        max_new_tokens=24,
        batch_size=8,
        sampling=sampling,
        seeds=range(12),
    )
    by_number = dict(found)
    assert [by_number[number] for number in range(12)] == whole
    assert tried[:3] == [8, 4, 2] and tried.count(8) == 1  # later batches begin with what fitted
    assert "out of memory with 8 rows" in caplog.text


def test_a_single_row_that_does_not_fit_is_one_line(llama, prompts, monkeypatch):
    def full(**options):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(llama, "generate", full)
    with pytest.raises(
        RunFailure, match="one row of .* tokens does not fit in the device's memory; what is written stays"
    ):
        run(llama, prompts)
