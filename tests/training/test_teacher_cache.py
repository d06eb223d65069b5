"""The teacher's cache: the same training as with the online teacher, built once, shared by later runs, never mistaken."""

import json
import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from ba_lora.data.collator import PadRight, counted
from ba_lora.data.samples import Samples
from ba_lora.errors import UserError
from ba_lora.folders import ownership
from ba_lora.methods.attach import attach
from ba_lora.objective.settings import Objective
from ba_lora.planning.plan import plan, render
from ba_lora.training import teacher_cache
from ba_lora.training.command_line import parse
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.run import train
from ba_lora.training.teacher_cache import prepare
from ba_lora.training.teacher_rows import row_bytes
from ba_lora.training.trainer import BALoRATrainer
from tests.common import TokenIds, collate, ragged_samples, small_llama
from tests.processes import LIMIT

ROOT = Path(__file__).parents[2]
TINY = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--progress", "false", "--logging_steps", "1"]
# a quarter of the config's rate: at the full rate, such small batches amplify any rounding to 2e-6 within 20 steps
TINY += ["--effective_batch_size", "4", "--micro_batch_size", "2", "--rank", "8", "--learning_rate", "1e-3"]
SAMPLES = ragged_samples(40)
WIDTH = 32  # of small_llama


def dataset(samples=SAMPLES):
    return Samples.from_list(samples)


def make(folder, model=None, samples=SAMPLES, *, data_hash="d" * 64, temperature=2.0, dtype="float32", **options):
    """The cache of the small model."""
    options = {"temperature": temperature, "dtype": dtype, "collate": collate, **options}
    return prepare(folder, model or small_llama(), dataset(samples), data_hash, **options)


def run(folder, *words):
    return train(parse([*TINY, "--output_dir", str(folder), *words]))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def factors(folder):
    """(trained, initial) factors of an adapter from a PiSSA start, which is exported as [A, A0] and [B, −B0]."""
    trained, initial = [], []
    for name, value in sorted(load_file(folder / "adapter" / "adapter_model.safetensors").items()):
        now, then = value.chunk(2, dim=0 if "lora_A" in name else 1)
        trained.append(now.flatten())
        initial.append(then.flatten() if "lora_A" in name else -then.flatten())
    return torch.cat(trained), torch.cat(initial)


def assert_same_training(online, cached):
    """Losses within 1e-6, adapters within 1e-5 of the update's norm."""
    for one, two in zip(metrics(online), metrics(cached), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6, abs=1e-6), one["step"]
        assert two["consistency"] == pytest.approx(one["consistency"], rel=1e-5, abs=4e-6), one["step"]
    (one, start), (two, _) = factors(online), factors(cached)
    assert ((one - two).norm() / (one - start).norm()).item() <= 1e-5


@pytest.fixture
def no_teacher(monkeypatch):
    """Fail on any later forward of the teacher, online or in a build."""

    def never(*_, **__):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr("ba_lora.training.step_model.teacher", never)
    monkeypatch.setattr(teacher_cache, "_shard", never)


@pytest.mark.slow
def test_twenty_cached_steps_are_the_online_ones_and_serve_another_seed_and_method(tmp_path, request):
    cache = ["--teacher_cache", str(tmp_path / "cache")]
    online = run(tmp_path / "online", "--limit", "80")
    cached = run(tmp_path / "cached", "--limit", "80", *cache)
    assert_same_training(online, cached)
    assert len(metrics(online)) == 20 and metrics(online)[0]["consistency"] == 0.0
    assert metrics(online)[-1]["consistency"] > 0.1 and abs(metrics(cached)[0]["consistency"]) < 1e-5
    record = json.loads((cached / "run.json").read_text())
    assert record["teacher_cache"]["rows"] == metrics(cached)[-1]["tokens"]

    request.getfixturevalue("no_teacher")
    words = ["--limit", "80", "--max_steps", "3", "--learning_rate", "1e-2", *cache]
    for name, more in {"seed": ["--seed", "7"], "method": ["--method", "lora", "--regularizers", "on"]}.items():
        first, *_, last = (row["consistency"] for row in metrics(run(tmp_path / name, *words, *more)))
        assert abs(first) < 1e-5 < 1e-3 < last


def test_two_epochs_grouped_by_length_interrupted_and_resumed_equal_the_online_run(tmp_path, monkeypatch):
    words = ["--limit", "14", "--epochs", "2", "--group_by_length", "--save_steps", "3"]
    online = run(tmp_path / "online", *words)
    words += ["--teacher_cache", str(tmp_path / "cache")]
    cut = run(tmp_path / "cut", *words)
    shutil.rmtree(cut / "checkpoints" / "checkpoint-6")
    shutil.rmtree(cut / "adapter")
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps(record | {"status": "running"}))
    run(cut, *words, "--resume")
    assert len(metrics(cut)) == 8
    assert_same_training(online, cut)


@pytest.fixture
def elsewhere(monkeypatch):
    """A function: the small model in the host's memory beside a GPU with so many free bytes, and the list of its moves."""

    def pretend(free):
        model, moves = small_llama(), []
        monkeypatch.setattr(model, "to", lambda place: moves.append(str(place)))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (free, free))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        return model, moves

    return pretend


def test_a_model_in_the_hosts_memory_is_on_the_gpu_for_the_build_alone(tmp_path, monkeypatch, elsewhere):
    """As under ZeRO-3."""
    model, moves = elsewhere(1 << 40)
    build, during = teacher_cache._build, []
    monkeypatch.setattr(teacher_cache, "_build", lambda *given: during.extend(moves) or build(*given))
    make(tmp_path / "cache", model, device="cuda:3")
    assert (during, moves) == (["cuda:3"], ["cuda:3", "cpu"])
    make(tmp_path / "cache", model, device="cuda:3")  # complete: nothing to build
    make(tmp_path / "again", model, device="cpu")
    assert moves == ["cuda:3", "cpu"]
    for file in (tmp_path / "cache").glob("*.safetensors"):
        assert load_file(file)["u"].equal(load_file(tmp_path / "again" / file.name)["u"])


def test_it_comes_back_after_a_failure_and_a_gpu_that_is_too_small_is_named(tmp_path, monkeypatch, elsewhere):
    model, moves = elsewhere(int(teacher_cache.ROOM) + sum(each.nbytes for each in small_llama().parameters()) // 2)
    message = (
        r"whole model on one GPU, which needs 3\.0 GB, and cuda:0 has 3\.0 GB free; leave it out .* or with --use_cpu"
    )
    with pytest.raises(UserError, match=message):
        make(tmp_path / "cache", model, device="cuda:0")
    assert not moves and not (tmp_path / "cache").exists()

    def fails(*_):
        raise RuntimeError("out of memory")

    model, moves = elsewhere(1 << 40)
    monkeypatch.setattr(teacher_cache, "_build", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        make(tmp_path / "cache", model, device="cuda:0")
    assert moves == ["cuda:0", "cpu"]


def test_rows_are_what_the_original_model_gives_in_the_order_that_the_batch_counts_them(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 4000)
    monkeypatch.setattr(teacher_cache, "BUILD_TOKENS", 50)
    cache = make(tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("rows-*.safetensors"))) > 4
    numbers = [31, 4, 17]
    batch = PadRight(TokenIds(), cache)([SAMPLES[n] | {"sample": n} for n in numbers])
    model = small_llama().double()
    mask = counted(batch["labels"])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][mask]
    log_p = torch.log_softmax(logits / 2.0, dim=-1)
    u, c = log_p.exp() @ model.lm_head.weight, (log_p.exp() * log_p).sum(-1)
    assert batch["teacher_u"].dtype == torch.float32 and batch["teacher_c"].dtype == torch.float64
    torch.testing.assert_close(batch["teacher_u"].double(), u, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch["teacher_c"], c, rtol=1e-5, atol=1e-5)


def moved(model):
    """The small model, adapted and moved away from its start."""
    student = attach(model, "ba-lora", rank=4, alpha=4)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


def one_step(student, objective, batch):
    """(gradient, sums of the terms) of one step."""
    model = ObjectiveModel(student, objective).train()
    model.begin_step(0, 10)
    model(**batch).loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters() if p.requires_grad])
    model.zero_grad()
    return gradient, model.sums


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 3e-3)])
def test_a_step_is_the_online_one_to_the_precision_of_the_cache_also_with_an_adaptive_weight(tmp_path, dtype, error):
    cache = make(tmp_path / "cache", dtype=dtype)
    objective = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, lambda1_schedule="adaptive")
    samples, student = [SAMPLES[n] | {"sample": n} for n in (3, 8, 9)], moved(small_llama())
    gradient, sums = one_step(student, objective, collate(samples))
    cached_gradient, cached = one_step(student, objective, PadRight(TokenIds(), cache)(samples))
    assert ((gradient - cached_gradient).norm() / gradient.norm()).item() < error
    assert sums["lambda1"].item() != pytest.approx(0.3)
    for name in sums:
        assert cached[name].item() == pytest.approx(sums[name].item(), rel=error, abs=1e-5), name


def test_an_interrupted_build_goes_on_with_the_shards_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 4000)
    real, made = teacher_cache._shard, []

    def shard(*arguments):
        made.append(arguments)
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(teacher_cache, "_shard", shard)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    with pytest.raises(UserError, match=r"is of another temperature \(2.0, now 1.0\)"):
        make(tmp_path / "cache", temperature=1.0)
    cache = make(tmp_path / "cache")
    assert len(made) == 1 + len(cache.layout.members)
    whole = make(tmp_path / "whole").rows([*range(40)])
    assert all(torch.equal(value, whole[name]) for name, value in cache.rows([*range(40)]).items())


def test_two_builders_at_once_share_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 4000)
    real, made, meet = teacher_cache._shard, [], threading.Barrier(2)

    def shard(*arguments):
        if threading.get_ident() not in made:
            meet.wait(LIMIT)  # both are at a shard, and not the same one
        made.append(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(teacher_cache, "_shard", shard)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(make, tmp_path / "cache"), [small_llama(), small_llama()]))
    assert len(set(made)) == 2
    assert len(made) == len(make(tmp_path / "cache").layout.members)


def test_a_builder_that_starts_while_another_claims_the_folder_is_not_refused(tmp_path, monkeypatch):
    make(tmp_path / "other")
    real, folder = ownership.is_ours, tmp_path / "cache"
    folder.mkdir()

    def look(*arguments):
        found = real(*arguments)
        shutil.copy(tmp_path / "other" / "cache.json", folder)  # the other process claims it just after this look
        return found

    monkeypatch.setattr(ownership, "is_ours", look)
    make(folder)


def edited(model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] += 1e-3
    return model


def relabelled(samples):
    """The same token ids, with one trained token fewer."""
    longest = max(range(len(samples)), key=lambda n: sum(label >= 0 for label in samples[n]["labels"]))
    first = next(i for i, label in enumerate(samples[longest]["labels"]) if label >= 0)
    labels = [-100 if i == first else label for i, label in enumerate(samples[longest]["labels"])]
    return [*samples[:longest], samples[longest] | {"labels": labels}, *samples[longest + 1 :]]


OTHERS = {
    "another temperature (2.0, now 1.0)": {"temperature": 1.0},
    "another --teacher_cache_dtype (float32, now bfloat16)": {"dtype": "bfloat16"},
    "another model, by its config and weights (": {"model": lambda: edited(small_llama())},
    "another model, by its config and weights": {"model": lambda: small_llama(rms_norm_eps=1e-4)},
    "another precision of the model (float32, now bfloat16)": {"model": lambda: small_llama().bfloat16()},
    "another data, tokenizer, template or max_length, by the token ids (dddddddddddd, now e": {"data_hash": "e" * 64},
    "another choice of trained tokens (": {"samples": lambda: relabelled(SAMPLES)},
}


@pytest.mark.parametrize("reason", OTHERS)
def test_a_cache_of_something_else_is_refused_with_what_differs(tmp_path_factory, reason):
    folder = tmp_path_factory.getbasetemp() / "teacher-cache-of-the-small-model"
    make(folder)  # build it once
    changes = {name: value() if callable(value) else value for name, value in OTHERS[reason].items()}
    with pytest.raises(UserError) as error:
        make(folder, **changes)
    assert f"--teacher_cache {folder} is of {reason}" in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).endswith("name another folder, or remove this one to build it again")


def test_an_older_format_and_a_foreign_folder_are_refused_and_a_damaged_shard_is_built_again(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    make(folder)
    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "FORMAT", 99)
        with pytest.raises(UserError, match=r"is of another version of the format \(1, now 99\)"):
            make(folder)
    shard = folder / "rows-00000.safetensors"
    whole = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(whole[:-100]), shard.unlink):
        damage()
        make(folder)
        assert shard.read_bytes() == whole
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"is not empty and holds no cache \(thesis.txt, ...\); name another folder"):
        make(tmp_path / "thesis")
    with pytest.raises(UserError, match="thesis.txt is a file; name a folder"):
        make(tmp_path / "thesis" / "thesis.txt")


def test_a_disk_that_is_too_small_is_refused_with_both_sizes_and_nothing_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    rows = sum(label >= 0 for sample in SAMPLES for label in sample["labels"])
    need = rows * row_bytes({"width": WIDTH, "dtype": "float32"})
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage(need - 1))
    with pytest.raises(
        UserError, match=rf"\({rows} rows of 136 bytes\) and its disk has 0.000 GB free; use another disk"
    ):
        make(tmp_path / "new" / "cache")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: usage(need))
    make(tmp_path / "new" / "cache")
    size = sum(file.stat().st_size for file in (tmp_path / "new" / "cache").glob("*.safetensors"))
    assert need <= size < need + 1000


def test_a_head_that_needs_logits_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(
        UserError, match="holds no logits, which this run needs: the head, lm_head, is adapted; leave it"
    ):
        make(tmp_path / "cache", target_modules=["q_proj", "lm_head"])
    biased = small_llama()
    biased.lm_head.bias = torch.nn.Parameter(torch.zeros(biased.lm_head.out_features))
    with pytest.raises(UserError, match="the head has a bias"):
        make(tmp_path / "cache", biased)
    assert not (tmp_path / "cache").exists()
    for words in (["--method", "full", "--regularizers", "on"], ["--log_gradient_norms"]):
        with pytest.raises(
            UserError,
            match="--teacher_cache holds no logits, which .* needs.*leave one of them out, or add --teacher_cache_form sketch",
        ):
            parse([*TINY, "--output_dir", "x", "--teacher_cache", "y", *words])
    dense = ObjectiveModel(moved(small_llama()), Objective(0.1), chunked=False).train()
    batch = PadRight(TokenIds(), make(tmp_path / "cache", temperature=1.0))([SAMPLES[0] | {"sample": 0}])
    with pytest.raises(UserError, match="the teacher cache holds no logits"):
        dense(**batch)


def test_without_a_weight_of_consistency_the_option_says_that_it_does_nothing(tmp_path, caplog):
    words = ["--limit", "4", "--max_steps", "1", "--teacher_cache", str(tmp_path / "cache")]
    folder = run(tmp_path / "run", *words, "--lambda1", "0")
    assert "--teacher_cache does nothing here: lambda1 is 0" in caplog.text
    assert not (tmp_path / "cache").exists() and metrics(folder)[0]["consistency"] is None


def test_the_dry_run_prints_the_size():
    words = ["--config", str(ROOT / "configs/nlg/llama-2-7b-metamath-iclr.yaml"), "--dry_run", "--teacher_cache", "c"]
    made = plan(parse(words), memory=False)
    assert made["teacher_cache"]["sizes"] == {"exact": 100_000 * 200 * (4096 * 4 + 8), "sketch": 100_000 * 200 * 392}
    text = "327.84 GB (exact; 7.84 GB as --teacher_cache_form sketch) in c assuming 200 trained tokens per sample"
    assert text in render(made)
    halved = plan(parse([*words, "--teacher_cache_dtype", "bfloat16", "--max_length", "101"]), memory=False)
    assert halved["teacher_cache"]["sizes"]["exact"] == 100_000 * 100 * (4096 * 2 + 8)
    assert plan(parse([*words, "--lambda1", "0"]), memory=False)["teacher_cache"] is None


def test_deepspeed_does_not_round_what_the_teacher_contributes(tmp_path, monkeypatch):
    """Transformers casts floating-point inputs to DeepSpeed's precision; bfloat16 needs a GPU, so it is simulated."""
    trainer = BALoRATrainer(moved(small_llama()), Objective(0.1), TrainingArguments(str(tmp_path), use_cpu=True))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    config = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(trainer, "accelerator", SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=config)))
    batch = {"teacher_u": torch.rand(3, 4), "teacher_c": torch.rand(3).double(), "other": torch.rand(2)}
    prepared = trainer._prepare_inputs(batch)
    assert prepared["other"].dtype == torch.bfloat16
    assert all(torch.equal(prepared[name], batch[name]) for name in ("teacher_u", "teacher_c"))
