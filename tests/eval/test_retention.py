"""eval.retention: forgetting and KL against float64 numpy, on the embedded model and a PiSSA adapter of it; continuing after a kill."""

import json
import multiprocessing
import shutil
import time

import numpy as np
import pytest
import torch

from ba_lora.errors import UserError
from ba_lora.inference.subject import open_subject
from ba_lora.models import load_model, load_tokenizer
from eval import retention
from tests.common import small_llama
from tests.eval.choices.made import TEXTS, write_texts
from tests.eval.json_lines import read
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
    encoded = retention.encode(tokenizer, texts)
    losses = dict(retention.losses(other, tokenizer, texts, encoded, 2))
    kl = dict(retention.divergences(base, other, tokenizer, encoded, 2))
    for number, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        before, after = logs(base, ids), logs(other, ids)
        expected = -sum(after[place - 1, ids[place]] for place in range(1, len(ids)))
        assert losses[number] == (pytest.approx(expected, abs=1e-9), len(ids) - 1)
        each = (np.exp(before) * (before - after)).sum(-1)[:-1].sum()
        assert each > 0 and kl[number] == (pytest.approx(each, abs=1e-9), len(ids) - 1)


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
    encoded = retention.encode(tokenizer, TEXTS)
    found = [dict(retention.losses(model, tokenizer, TEXTS, encoded, 4)) for model in (load_model("tiny"), tuned)]
    before, after = (sum(nats for nats, _ in each.values()) / sum(n for _, n in each.values()) for each in found)
    assert score["score"] == pytest.approx(after - before, abs=1e-4) and abs(score["score"]) > 0.01
    assert score["kl_to_base"]["score"] > 0 and "forgetting" in capsys.readouterr().out


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """The embedded model with other weights, as a folder."""
    folder, model = tmp_path_factory.mktemp("moved"), load_model("tiny")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.02)
    model.save_pretrained(folder)
    load_tokenizer("tiny").save_pretrained(folder)
    return str(folder)


def words(moved, folder, texts, *more):
    given = ["--model", moved, "--base", "tiny", "--held_out", str(texts), "--output_dir", str(folder)]
    return [*given, "--batch_size", "2", *more]


def test_a_torn_file_is_continued_to_the_same_bytes_and_not_with_other_texts(tmp_path, moved):
    texts = write_texts(tmp_path)
    assert retention.main(words(moved, tmp_path / "whole", texts)) == 0
    lines = (tmp_path / "whole/losses.jsonl").read_bytes()
    assert [each["measure"] for each in read(tmp_path / "whole/losses.jsonl")] == [
        measure for measure in ("base", "tuned", "kl") for _ in TEXTS
    ]
    for kept in (1, 4, 7):  # within the losses of the base, of the tuned model, and the KL
        folder = tmp_path / f"torn-{kept}"
        shutil.copytree(tmp_path / "whole", folder)
        for name in ("score.json", "scored.jsonl"):
            (folder / name).unlink()
        whole = b"".join(lines.splitlines(keepends=True)[:kept])
        (folder / "losses.jsonl").write_bytes(whole + b'{"id": "torn')
        assert retention.main(words(moved, folder, texts)) == 0
        assert (folder / "losses.jsonl").read_bytes() == lines
        assert (folder / "scored.jsonl").read_bytes() == (tmp_path / "whole/scored.jsonl").read_bytes()
        assert json.loads((folder / "score.json").read_text())["resumed"] == kept
    (folder / "score.json").unlink()
    (tmp_path / "texts.txt").write_text("Quite another text of some words.\n")
    with pytest.raises(UserError, match="is unfinished, and this run differs from it in the texts of --held_out"):
        retention.main(words(moved, folder, texts))


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_file(tmp_path, moved):
    texts = tmp_path / "many.txt"
    texts.write_text("".join(f"{text} {number}\n" for number in range(100) for text in TEXTS))

    def run(folder):
        return retention.main(words(moved, folder, texts))

    process = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path / "killed",))
    process.start()
    lines, deadline = tmp_path / "killed/losses.jsonl", time.monotonic() + 60
    while not (lines.is_file() and lines.read_bytes().count(b"\n") >= 40) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert 40 <= lines.read_bytes().count(b"\n") < 900 and not (tmp_path / "killed/score.json").exists()
    for folder in ("killed", "whole"):
        assert run(tmp_path / folder) == 0
    assert json.loads((tmp_path / "killed/score.json").read_text())["resumed"] >= 40
    for name in ("losses.jsonl", "scored.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_model_that_is_its_own_base_forgets_nothing(tmp_path):
    given = ["--model", "tiny", "--base", "tiny", "--held_out", write_texts(tmp_path)]
    assert retention.main([*given, "--output_dir", str(tmp_path / "out")]) == 0
    score = json.loads((tmp_path / "out/score.json").read_text())
    assert (score["score"], score["interval"], score["kl_to_base"]["score"]) == (0, [0, 0], 0)


def test_wrong_input_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is no training run, so its base is not known; name it with --base"):
        retention.main(["--model", "tiny", "--held_out", write_texts(tmp_path), "--output_dir", str(tmp_path / "out")])
    with pytest.raises(UserError, match="text 1, '', has one token"):
        retention.encode(lambda text, **_: {"input_ids": [1]}, [""])
    with pytest.raises(UserError, match="text 1: context and continuation have 600 tokens, and the model has"):
        retention.encode(lambda text, **_: {"input_ids": range(600)}, ["long"], small_llama().config)
