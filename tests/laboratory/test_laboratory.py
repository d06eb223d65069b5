"""Twins and their traces: same batches but for planted tokens, the same bits again, s as defined."""

import numpy as np
import pytest
import torch

from ba_lora.data.planted.items import DOSES, items
from ba_lora.data.planted.probes import probes
from ba_lora.data.planted.rows import planted_rows
from ba_lora.data.templates import TEMPLATES
from ba_lora.errors import UserError
from ba_lora.laboratory import names, traces, twins
from ba_lora.laboratory.names import parse
from ba_lora.models import load_model
from ba_lora.tiny.recipe import cut_batches
from tests.data.test_planted import VALUES

pytestmark = pytest.mark.usefixtures("one_thread")


def test_names():
    assert parse("twin:B,seed=3") == ("B", 3, names.STEPS)
    assert parse("twin:A,seed=3,steps=20").steps == 20
    assert parse("tiny") is None
    folders = {parse(f"twin:{each}").folder for each in ("A,seed=3", "B,seed=3", "A,seed=4", "A,seed=3,steps=20")}
    assert len(folders) == 4
    for wrong in ("twin:C,seed=3", "twin:A", "twin:A,seed=x"):
        with pytest.raises(UserError, match="is not the name of a twin; write twin:A,seed=N"):
            parse(wrong)


def test_batches_of_twins_differ_at_planted_tokens_only(tiny_tokenizer):
    made = {side: twins.samples(parse(f"twin:{side},seed=5,steps=60"), tiny_tokenizer) for side in "AB"}
    batches = {side: list(cut_batches(list(each), 32, 5)) for side, each in made.items()}
    planted = {token for value in VALUES for token in tiny_tokenizer.encode(" " + value)}
    digits = set(tiny_tokenizer.encode("0123456789"))
    differ = 0
    for ours, theirs in zip(batches["A"], batches["B"], strict=True):
        for (a, a_labels), (b, b_labels) in zip(ours, theirs, strict=True):
            assert [label == -100 for label in a_labels] == [label == -100 for label in b_labels]
            apart = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
            assert all(pair <= planted or pair <= digits for pair in map(set, apart))
            differ += len(apart)
    assert differ > 1000


def test_a_twin_is_made_once_and_has_the_same_bits_again(monkeypatch, tmp_path):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "one"))
    first = load_model("twin:A,seed=5,steps=2")
    assert first.config._name_or_path == "twin:A,seed=5,steps=2"
    other = load_model("twin:B,seed=5,steps=2")
    monkeypatch.setattr(twins, "_make", None)  # opened from the cache
    load_model("twin:A,seed=5,steps=2")
    monkeypatch.undo()
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "two"))
    again = load_model("twin:A,seed=5,steps=2")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_s_is_the_share_of_the_first_alternative(tiny_model, tiny_tokenizer):
    asked = probes(5)[::60] + probes(5)[-3:]
    found = traces.shares(tiny_model, tiny_tokenizer, asked)
    for probe, share in zip(asked, found, strict=True):
        logs = []
        for text in (probe.first, probe.second):
            prompt = tiny_tokenizer.encode(probe.prompt) if probe.prompt else []
            ids = prompt + tiny_tokenizer.encode(text)
            with torch.no_grad():
                logits = tiny_model(torch.tensor([ids])).logits[0].double().numpy()
            logs.append(sum(_log_softmax(logits[place - 1])[ids[place]] for place in range(1, len(ids))))
        assert share == pytest.approx(1 / (1 + np.exp(logs[1] - logs[0])), abs=1e-5)


def _log_softmax(row):
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def test_groups_are_means_over_items():
    found = traces.grouped({item: float(item.dose == 1.0) for item in items(5)["fact"]})
    assert found == {"fact": {"0.0": 0.0, "0.25": 0.0, "0.5": 0.0, "1.0": 1.0}}
    assert set(map(float, found["fact"])) == {dose for dose, _ in DOSES["fact"]}


def test_the_loss_of_responses_is_that_of_single_samples(tiny_model, tiny_tokenizer):
    rows = planted_rows("neutral-test", 6)
    total = tokens = 0
    for row in rows:
        prompt = tiny_tokenizer.encode(TEMPLATES["plain"].render(row["question"]))
        response = [*tiny_tokenizer.encode(" " + row["answer"]), tiny_tokenizer.eos_token_id]
        with torch.no_grad():
            logits = tiny_model(torch.tensor([prompt + response])).logits[0].double().numpy()
        for place, token in enumerate(response, len(prompt)):
            total -= _log_softmax(logits[place - 1])[token]
            tokens += 1
    assert traces.response_loss(tiny_model, tiny_tokenizer, rows) == pytest.approx(total / tokens, abs=1e-5)
