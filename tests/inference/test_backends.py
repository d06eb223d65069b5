"""The transformers backend on a random Llama of a few thousand parameters, and on the embedded model if it is present."""

import random
from collections import Counter

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ba_lora.data.instruction import encode_prompt
from ba_lora.data.templates import TEMPLATES
from ba_lora.data.tinymath import generate as generate_problems
from ba_lora.errors import UserError
from ba_lora.inference import local
from ba_lora.inference.backends import get_backend
from ba_lora.inference.local import generate, stream
from ba_lora.inference.requests import Sampling
from ba_lora.tiny import MODEL_DIR
from tests.inference.letters import EOS, Letters

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,  # wide, so that the random model does not repeat one token
    )
    return LlamaForCausalLM(config).eval()


def run(model, prompts, tokenizer=None, **options):
    options = {"max_new_tokens": 24, "progress": False} | options
    return generate(prompts, model=model, tokenizer=tokenizer or Letters(), **options)


def one_by_one(model, prompt, steps):
    """Greedy tokens without padding or cache: the definition that the backend must match."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + steps and (len(ids) == len(prompt) or ids[-1] != EOS):
            ids.append(model(torch.tensor([ids])).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_left_padded_batches_equal_one_prompt_at_a_time_without_padding_or_cache(llama, prompts):
    expected = [one_by_one(llama, prompt, 24) for prompt in prompts]
    assert {"stop", "length"} == {"stop" if tokens[-1] == EOS else "length" for tokens in expected}
    for batch_size in (5, 64):
        found = run(llama, prompts, batch_size=batch_size)
        assert [completion.text for completion in found] == [Letters().decode(tokens, True) for tokens in expected]
        assert [completion.tokens for completion in found] == [len(tokens) for tokens in expected]


def test_completions_do_not_depend_on_where_the_rounds_end(llama, prompts, monkeypatch):
    whole = run(llama, prompts)
    monkeypatch.setattr(local, "ROUND_TOKENS", 7)
    assert run(llama, prompts) == whole


@pytest.mark.parametrize("pad", [EOS, None, 0])
def test_generation_stops_at_eos_whatever_the_padding_token(llama, prompts, pad):
    found = run(llama, prompts, Letters(pad_token_id=pad))
    assert found == run(llama, prompts)
    stopped = [completion for completion in found if completion.finish_reason == "stop"]
    assert stopped and all(completion.tokens <= 24 and chr(97 + EOS) not in completion.text for completion in stopped)


def test_a_completion_that_fills_its_limit_is_marked_as_cut(llama, prompts):
    found = run(llama, prompts, max_new_tokens=3)
    assert {completion.tokens for completion in found if completion.finish_reason == "length"} == {3}


def test_decoding_is_greedy_whatever_the_generation_config_says_and_restores_it(llama, prompts):
    expected, before = run(llama, prompts), llama.generation_config
    llama.generation_config = type(before)(
        do_sample=True, temperature=3.0, repetition_penalty=5.0, num_beams=2, eos_token_id=7, min_new_tokens=9
    )
    try:
        assert run(llama, prompts) == expected
        assert llama.generation_config.do_sample and llama.generation_config.eos_token_id == 7
    finally:
        llama.generation_config = before


def test_an_adapted_model_in_training_mode_generates_without_dropout_and_returns_to_training(llama, prompts):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama, peft.LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"]))
    try:
        model.train()
        assert run(model, prompts) == run(model, prompts)
        assert model.training
    finally:
        model.unload()
        llama.eval()


def test_completions_never_run_past_the_last_position(llama):
    (found,) = run(llama, [[5] * 250], max_new_tokens=40)
    assert found.tokens <= 6
    with pytest.raises(UserError, match="256 positions"):
        run(llama, [[5] * 256])


def test_a_tokenizer_without_eos_is_refused(llama):
    with pytest.raises(UserError, match="end-of-sequence"):
        run(llama, [[5]], Letters(eos_token_id=None))


def test_no_prompts_give_no_completions(llama):
    assert run(llama, []) == []


# Stop strings


def first_stop(tokens, stop):
    """(text, number of tokens) up to the first stop string, token by token: the definition."""
    for count in range(1, len(tokens) + 1):
        text = Letters().decode(tokens[:count], True)
        places = [text.index(string) for string in stop if string in text]
        if places:
            return text[: min(places)], count
    return Letters().decode(tokens, True), len(tokens)


@pytest.mark.parametrize("round_tokens", [3, 64])
def test_a_completion_ends_before_its_first_stop_string_wherever_that_lies(llama, prompts, monkeypatch, round_tokens):
    monkeypatch.setattr(local, "ROUND_TOKENS", round_tokens)
    free = [one_by_one(llama, prompt, 24) for prompt in prompts]
    pairs = Counter(
        text[place : place + 2]
        for text in (Letters().decode(row, True) for row in free)
        for place in range(len(text) - 1)
    )
    stop = tuple(pair for pair, _ in pairs.most_common(3)) + ("never",)
    found = run(llama, prompts, sampling=Sampling(stop=stop))
    assert [(completion.text, completion.tokens) for completion in found] == [first_stop(row, stop) for row in free]
    stopped = [completion for completion, row in zip(found, free, strict=True) if completion.tokens < len(row)]
    assert len(stopped) > 3 and {completion.finish_reason for completion in stopped} == {"stop"}


def test_a_stop_string_that_is_a_special_token_ends_a_completion_although_no_text_shows_it(llama, prompts):
    free = [one_by_one(llama, prompt, 24) for prompt in prompts]
    found = run(llama, prompts, sampling=Sampling(stop=("<five>",)))
    for completion, row in zip(found, free, strict=True):
        expected = row.index(5) + 1 if 5 in row else len(row)
        assert completion.tokens == expected
    assert any(5 in row for row in free)


# Sampling


def sample(model, prompts, seeds, **options):
    sampling = Sampling(**({"temperature": 1.0} | options))
    found = stream(
        prompts, model=model, tokenizer=Letters(), max_new_tokens=12, batch_size=5, sampling=sampling, seeds=seeds
    )
    by_number = dict(found)
    return [by_number[number] for number in range(len(prompts))]


def test_a_sampled_completion_depends_on_its_seed_and_not_on_its_batch_or_its_round(llama, prompts, monkeypatch):
    whole = sample(llama, prompts, range(12))
    assert whole != sample(llama, prompts, range(1, 13))
    assert [sample(llama, [prompt], [seed])[0] for seed, prompt in enumerate(prompts)] == whole
    monkeypatch.setattr(local, "ROUND_TOKENS", 5)
    backwards = sample(llama, prompts[::-1], range(11, -1, -1))
    assert backwards[::-1] == whole


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7)])
def test_drawn_tokens_have_the_chances_that_temperature_and_top_p_give_them(temperature, top_p):
    torch.manual_seed(0)
    logits, draws = torch.randn(9) * 1.5, 4000
    chances = torch.softmax(logits.double() / temperature, -1)
    order = chances.argsort(descending=True)
    keep = order[: int((chances[order].cumsum(-1) < top_p).sum()) + 1]
    expected = torch.zeros(9, dtype=torch.double)
    expected[keep] = chances[keep] / chances[keep].sum()
    draw = local._Draw(Sampling(temperature, top_p), [random.Random(seed) for seed in range(draws)])
    tokens = draw(None, logits.repeat(draws, 1)).argmax(-1)
    found = torch.bincount(tokens, minlength=9) / draws
    assert not found[expected == 0].any()
    assert (found - expected).abs().max() < 4 * (0.25 / draws) ** 0.5


def test_a_very_low_temperature_is_greedy(llama, prompts):
    assert sample(llama, prompts, range(12), temperature=1e-6) == run(llama, prompts, max_new_tokens=12)


def test_an_unknown_backend_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'transformers'"):
        get_backend("transformer")


@pytest.mark.skipif(not MODEL_DIR.is_dir(), reason="needs the embedded model in ba_lora/tiny/model")
def test_the_embedded_model_answers_alike_in_a_batch_and_alone():
    from ba_lora.models import load_model, load_tokenizer

    model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
    questions = [problem["question"] for problem in generate_problems("pretrain-test", 8)]
    prompts = [encode_prompt(tokenizer, TEMPLATES["plain"], question) for question in questions]
    batched = run(model, prompts, tokenizer, max_new_tokens=64)
    alone = [run(model, [prompt], tokenizer, max_new_tokens=64)[0] for prompt in prompts]
    assert batched == alone
    assert any(completion.finish_reason == "stop" for completion in batched)
