"""eval.retention: forgetting and KL against float64 numpy, on the embedded model and a PiSSA adapter of it."""

import json

import numpy as np
import pytest
import torch

from ba_lora.errors import UserError
from ba_lora.inference.subject import open_subject
from ba_lora.models import load_model, load_tokenizer
from eval import retention
from tests.eval.choices.made import TEXTS, write_texts
from tests.inference.vllm_results import export_adapters

pytestmark = pytest.mark.usefixtures("one_thread")


def logs(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def test_losses_and_kl_are_those_of_numpy(tmp_path):
    base, other, tokenizer = load_model("tiny").double(), load_model("tiny").double(), load_tokenizer("tiny")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.02)
    texts = [*TEXTS, TEXTS[0]]
    (sums, tokens), (kl, _) = (
        retention.losses_of(other, tokenizer, texts, 2),
        retention.kl_of(base, other, tokenizer, texts, 2),
    )
    for number, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        before, after = logs(base, ids), logs(other, ids)
        expected = -sum(after[place - 1, ids[place]] for place in range(1, len(ids)))
        assert sums[number] == pytest.approx(expected, abs=1e-9) and tokens[number] == len(ids) - 1
        each = (np.exp(before) * (before - after)).sum(-1)[:-1].sum()
        assert kl[number] == pytest.approx(each, abs=1e-9)
    assert kl.min() > 0


def test_the_mean_is_per_token_and_its_error_that_of_the_texts():
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 50, size=300)
    sums = tokens * draw.normal(0.5, 0.1, size=300)
    found = retention.per_token(sums, tokens)
    assert found["score"] == pytest.approx(sums.sum() / tokens.sum())
    residual = sums - found["score"] * tokens
    assert found["stderr"] == pytest.approx(np.sqrt((residual**2).sum()) / tokens.sum(), rel=0.08)


@pytest.mark.slow
def test_the_base_of_a_pissa_adapter_is_the_model_before_its_decomposition(tmp_path, capsys):
    export_adapters(tmp_path)
    out, texts = tmp_path / "out", write_texts(tmp_path)
    words = ["--model", "tiny", "--adapter", str(tmp_path / "pissa"), "--held_out", texts, "--output_dir", str(out)]
    assert retention.main(words) == 0
    score = json.loads((out / "score.json").read_text())
    tokenizer = load_tokenizer("tiny")
    tuned = open_subject("tiny", adapter=str(tmp_path / "pissa")).model
    losses = [retention.losses_of(model, tokenizer, TEXTS, 4) for model in (load_model("tiny"), tuned)]
    before, after = (sums.sum() / tokens.sum() for sums, tokens in losses)
    assert score["score"] == pytest.approx(after - before, abs=1e-4) and abs(score["score"]) > 0.01
    assert score["kl_to_base"]["score"] > 0 and "forgetting" in capsys.readouterr().out


def test_wrong_input_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no training run, so its base is not known; name it with --base"):
        retention.main(["--model", "tiny", "--held_out", write_texts(tmp_path), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(UserError, match="text 1, '', has one token"):
        retention.encode(lambda text: {"input_ids": [1]}, [""])
