"""The transformers backend on a random Llama of a few thousand parameters, and on the embedded model where it is there."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ba_lora.data.instruction import encode_prompt
from ba_lora.data.templates import TEMPLATES
from ba_lora.data.tinymath import generate as generate_problems
from ba_lora.errors import UserError
from ba_lora.tiny import MODEL_DIR
from eval import backends
from eval.backends import generate, get_backend

EOS = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A model this small is slowed down by threads, a hundredfold where other processes want the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Letters:
    """A tokenizer of 30 letters; token 2 ends a text."""

    def __init__(self, pad_token_id=0, eos_token_id=EOS):
        self.pad_token_id, self.eos_token_id = pad_token_id, eos_token_id

    def decode(self, tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False):
        special = (0, 1, EOS) if skip_special_tokens else ()
        return "".join(chr(97 + token) for token in tokens if token not in special)


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


@pytest.fixture(scope="module")
def prompts():
    chance = random.Random(0)
    return [[chance.randrange(3, 30) for _ in range(chance.randrange(2, 40))] for _ in range(12)]


def run(model, prompts, tokenizer=None, **options):
    options = {"max_new_tokens": 24, "progress": False} | options
    return generate(prompts, model=model, tokenizer=tokenizer or Letters(), **options)


def one_by_one(model, prompt, steps):
    """Greedy tokens without padding or cache: the definition that the backend must meet."""
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
    monkeypatch.setattr(backends, "ROUND_TOKENS", 7)
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


@pytest.mark.parametrize("name", ["vllm", "openai"])
def test_a_planned_backend_says_that_it_is_not_there(name):
    with pytest.raises(UserError, match="not available in this version"):
        get_backend(name)


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
