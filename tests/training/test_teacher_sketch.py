"""The sketch form of the teacher's cache: near the online training, the same files from every build, never mistaken for the exact form."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from ba_lora.data.collator import PadRight
from ba_lora.errors import UserError
from ba_lora.objective.settings import Objective
from ba_lora.planning.plan import plan
from ba_lora.training import teacher_cache
from ba_lora.training.command_line import parse
from ba_lora.training.objective_model import ObjectiveModel
from tests.common import TokenIds, collate, small_llama
from tests.processes import LIMIT
from tests.training.test_teacher_cache import ROOT, SAMPLES, TINY, make, metrics, moved, one_step, run

NUMBERS = (3, 8, 9)


def sketches(folder, entries=8, **options):
    return make(folder, form="sketch", entries=entries, **options)


def batch(cache):
    return PadRight(TokenIds(), cache)([SAMPLES[n] | {"sample": n} for n in NUMBERS])


def shards(folder):
    return {file.name: file.read_bytes() for file in folder.glob("rows-*.safetensors")}


@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "dense"])
def test_a_step_with_the_whole_vocabulary_is_the_online_one_also_with_an_adaptive_weight(tmp_path, is_chunked):
    objective = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, lambda1_schedule="adaptive")
    student = moved(small_llama())
    gradient, sums = one_step(student, objective, collate([SAMPLES[n] for n in NUMBERS]))
    inputs = batch(sketches(tmp_path / "cache", 1000))
    model = ObjectiveModel(student, objective, chunked=is_chunked).train()
    model.begin_step(0, 10)
    model(**inputs).loss.backward()
    cached = torch.cat([p.grad.flatten() for p in student.parameters() if p.requires_grad])
    assert ((gradient - cached).norm() / gradient.norm()).item() < 1e-5
    for name in sums:
        assert model.sums[name].item() == pytest.approx(sums[name].item(), rel=1e-5, abs=1e-5), name


def test_the_dense_and_the_chunked_step_of_one_sketch_are_equal(tmp_path):
    inputs, objective, found = (
        batch(sketches(tmp_path / "cache")),
        Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5),
        [],
    )
    for is_chunked in (True, False):
        student = moved(small_llama())
        model = ObjectiveModel(student, objective, chunked=is_chunked).train()
        model.begin_step(0, 10)
        model(**inputs).loss.backward()
        found.append((torch.cat([p.grad.flatten() for p in student.parameters() if p.requires_grad]), model.sums))
    (one, sums), (two, others) = found
    assert ((one - two).norm() / one.norm()).item() < 1e-5
    assert sums["consistency"].item() == pytest.approx(others["consistency"].item(), rel=1e-5)


def test_the_draws_do_not_depend_on_shards_or_batches_but_on_data_and_temperature(tmp_path, monkeypatch):
    whole = batch(sketches(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "SHARD_BYTES", 1000)
        patch.setattr(teacher_cache, "BUILD_TOKENS", 50)
        parts = batch(sketches(tmp_path / "parts"))
    assert len(shards(tmp_path / "parts")) > 4
    assert torch.equal(
        parts["teacher_words"] >> 26, whole["teacher_words"] >> 26
    )  # the ids: p may differ in its last bit
    torch.testing.assert_close(parts["teacher_threshold"], whole["teacher_threshold"])
    for name, options in {"data": {"data_hash": "e" * 64}, "temperature": {"temperature": 1.0}}.items():
        other = batch(sketches(tmp_path / name, **options))
        assert not torch.equal(other["teacher_words"] >> 26, whole["teacher_words"] >> 26)


def test_two_builders_at_once_and_an_interrupted_one_make_the_files_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_BYTES", 1000)
    sketches(tmp_path / "alone")
    real, made, meet = teacher_cache._shard, [], threading.Barrier(2)

    def shard(*arguments):
        if threading.get_ident() not in made:
            meet.wait(LIMIT)
        made.append(threading.get_ident())
        return real(*arguments)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(teacher_cache, "_shard", shard)
        list(pool.map(partial(make, tmp_path / "two", form="sketch", entries=8), [small_llama(), small_llama()]))
    assert len(set(made)) == 2 and shards(tmp_path / "two") == shards(tmp_path / "alone")

    shutil.copytree(tmp_path / "two", tmp_path / "cut")
    for file in sorted((tmp_path / "cut").glob("*.safetensors"))[2:]:
        file.unlink()
    sketches(tmp_path / "cut")
    assert shards(tmp_path / "cut") == shards(tmp_path / "alone")


def test_a_damaged_sketch_is_built_again_to_the_same_bytes(tmp_path):
    sketches(tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("*.safetensors")
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    for damage in (whole[:-100], bytes(flipped), b""):
        shard.write_bytes(damage)
        sketches(tmp_path / "cache")
        assert shard.read_bytes() == whole
    (tmp_path / "cache" / "cache.json").write_text("{")
    sketches(tmp_path / "cache")
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["form"] == "sketch"


def test_a_cache_of_the_other_form_or_size_is_refused(tmp_path):
    sketches(tmp_path / "sketch")
    make(tmp_path / "exact")
    for folder, options, reason in (
        ("sketch", {}, r"--teacher_cache_form \(sketch, now exact\)"),
        ("exact", {"form": "sketch"}, r"--teacher_cache_form \(exact, now sketch\)"),
        ("sketch", {"form": "sketch", "entries": 9}, r"--teacher_cache_entries \(8, now 9\)"),
    ):
        with pytest.raises(UserError, match=rf"is of another {reason}; name another folder"):
            make(tmp_path / folder, **options)
    words = [*TINY, "--output_dir", "x", "--teacher_cache", "y", "--teacher_cache_form", "sketch"]
    with pytest.raises(UserError, match="--teacher_cache_dtype bfloat16 is an option of an exact cache; leave it out"):
        parse([*words, "--teacher_cache_dtype", "bfloat16"])
    with pytest.raises(UserError, match="--consistency mse needs; leave the cache out"):
        parse([*words, "--consistency", "mse"])
    with pytest.raises(
        UserError, match="--teacher_cache_entries 32 is an option of --teacher_cache_form sketch; add it"
    ):
        parse([*words[:-2], "--teacher_cache_entries", "32"])
    with pytest.raises(
        UserError, match="--teacher_cache_form sketch needs a folder for the cache; add --teacher_cache"
    ):
        parse([*words[:-4], "--teacher_cache_form", "sketch"])
    with pytest.raises(UserError, match="--teacher_cache_entries must be at least 2, got 1"):
        parse([*words, "--teacher_cache_entries", "1"])


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3-8b"])
def test_the_dry_run_predicts_at_most_8_gb_for_100000_samples(name):
    words = ["--config", str(ROOT / f"configs/nlg/{name}-metamath-iclr.yaml"), "--dry_run", "--teacher_cache", "c"]
    made = plan(parse([*words, "--teacher_cache_form", "sketch"]), memory=False)["teacher_cache"]
    assert made["form"] == "sketch" and made["tokens_a_sample"] == 200 and made["sizes"]["sketch"] <= 8e9
    assert made["sizes"]["exact"] == 100_000 * 200 * (4096 * 4 + 8)


def test_a_run_with_32_tokens_a_row_starts_at_zero_and_resumes_to_the_same_bits(tmp_path):
    words = ["--limit", "14", "--epochs", "2", "--save_steps", "3"]
    words += [
        "--teacher_cache",
        str(tmp_path / "cache"),
        "--teacher_cache_form",
        "sketch",
        "--teacher_cache_entries",
        "32",
    ]
    whole, cut = run(tmp_path / "whole", *words), run(tmp_path / "cut", *words)
    record = json.loads((whole / "run.json").read_text())
    assert (record["teacher_cache"]["form"], record["teacher_cache"]["entries"]) == ("sketch", 32)
    assert (record["config"]["teacher_cache_form"], record["config"]["teacher_cache_entries"]) == ("sketch", 32)
    first, *others = (row["consistency"] for row in metrics(whole))
    assert 0 <= first < 1e-6 and min(others[1:]) > 0

    shutil.rmtree(cut / "checkpoints" / "checkpoint-6")
    shutil.rmtree(cut / "adapter")
    (cut / "run.json").write_text(json.dumps(record | {"status": "running"}))
    run(cut, *words, "--resume")
    files = [folder / "adapter" / "adapter_model.safetensors" for folder in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    (cut / "run.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(UserError, match="teacher_cache_entries"):
        run(cut, *words[:-1], "16", "--resume")


@pytest.mark.parametrize(
    "more", [["--method", "full", "--regularizers", "on"], ["--log_gradient_norms"]], ids=["full", "norms"]
)
@pytest.mark.slow
def test_runs_that_need_the_students_logits_train_with_a_sketch_and_no_teacher(tmp_path, monkeypatch, more):
    def never(*_, **__):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr("ba_lora.training.step_model.teacher", never)
    cache = ["--teacher_cache", str(tmp_path / "cache"), "--teacher_cache_form", "sketch"]
    first, *_, last = (row["consistency"] for row in metrics(run(tmp_path / "run", "--limit", "12", *more, *cache)))
    assert abs(first) < 1e-5 < last
