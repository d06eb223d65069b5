"""Several processes that share the prompts: real ones, with the embedded model on the CPU."""

import json
import os
import signal
import sys

import pytest
import torch

from ba_lora.errors import RunFailure, UserError
from ba_lora.inference import backends
from ba_lora.inference.copies import Copies
from ba_lora.inference.local import stream
from ba_lora.inference.requests import Sampling
from ba_lora.inference.subject import open_subject
from ba_lora.machine import devices
from eval import gsm8k
from tests.processes import orphans, start, wait_until

WORDS = ["--model", "tiny", "--data", "tinymath:test", "--max_new_tokens", "64", "--batch_size", "4"]
TIMES = ("seconds", "tokens_per_second", "checksum", "resumed", "processes")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The processes get one thread each, and so does this one: sums are then in the same order."""
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


@pytest.fixture(scope="module")
def subject():
    return open_subject("tiny")


@pytest.fixture(scope="module")
def copies(subject):
    opened = Copies(2, {"model": "tiny"})
    yield opened
    opened.close()


def prompts_of(subject, count):
    return [subject.tokenizer(each["question"])["input_ids"] for each in gsm8k.load_problems("tinymath:test", count)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9, stop=("9",))], ids=["greedy", "sampled"])
def test_two_processes_write_what_one_writes_whatever_is_asked(subject, copies, sampling):
    prompts = prompts_of(subject, 13)
    options = {"max_new_tokens": 40, "batch_size": 4, "end": subject.tokenizer.eos_token_id, "sampling": sampling}
    options["seeds"] = list(range(13))
    alone = dict(stream(prompts, model=subject.model, tokenizer=subject.tokenizer, **options))
    shared = list(copies.stream(prompts, **options))
    assert len(shared) == 13 and dict(shared) == alone
    assert len({completion.text for completion in alone.values()}) > 5
    assert dict(copies.stream(prompts[:1], **options | {"seeds": [0]})) == {0: alone[0]}  # one has nothing to do
    assert list(copies.stream([], **options | {"seeds": []})) == []


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_asked(subject, copies):
    options = {"max_new_tokens": 4, "batch_size": 4, "end": 2, "sampling": Sampling(), "seeds": [0]}
    with pytest.raises(UserError, match="leaves no space for a completion"):
        copies.stream([[5] * 5000], **options)


@pytest.mark.slow
def test_a_model_that_no_process_can_open_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError) as raised:
        Copies(1, {"model": str(tmp_path)})
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_a_process_that_is_killed_ends_the_evaluation_in_one_line_and_the_others_with_it(subject, copies):
    """The last test that uses these processes."""
    prompts = prompts_of(subject, 40)
    options = {"max_new_tokens": 200, "batch_size": 1, "end": subject.tokenizer.eos_token_id, "sampling": Sampling()}
    found = copies.stream(prompts, **options, seeds=[0] * 40)
    next(found)
    copies._processes[1].kill()
    with pytest.raises(RunFailure, match="process 2 of 2 .* ended with status -9; what is written stays"):
        list(found)
    assert all(process.poll() is not None for process in copies._processes)


def evaluate(folder, *words):
    assert gsm8k.main([*WORDS, *words, "--output_dir", str(folder)]) == 0
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "score.json"}


def score(folder):
    return json.loads((folder / "score.json").read_text())


@pytest.mark.slow  # the fast tier compares what two processes generate
def test_an_evaluation_on_two_processes_leaves_the_files_of_one_which_may_finish_it(tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    expected = evaluate(alone, "--limit", "24", "--processes", "1")
    assert evaluate(shared, "--limit", "24", "--processes", "2") == expected
    assert (score(alone)["processes"], score(shared)["processes"]) == (1, 2)
    same = [{key: value for key, value in score(place).items() if key not in TIMES} for place in (alone, shared)]
    assert same[0] == same[1] and same[0]["backend"] == "transformers"

    (shared / "score.json").unlink()
    (shared / "scored.jsonl").unlink()
    (shared / "generations.jsonl").write_bytes(expected["generations.jsonl"][:2000])
    assert evaluate(shared, "--limit", "24", "--processes", "1") == expected
    assert score(shared)["resumed"] == expected["generations.jsonl"][:2000].count(b"\n") > 0


@pytest.mark.slow
def test_processes_end_with_a_killed_parent_and_the_same_command_continues(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ["--limit", "40", "--processes", "2", "--batch_size", "1"]
    with orphans() as left:
        process = start(sys.executable, "-m", "eval.gsm8k", *WORDS, *words, "--output_dir", str(killed))
        lines = killed / "generations.jsonl"
        wait_until(lambda: lines.is_file() and lines.read_bytes().count(b"\n") >= 3, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert left(within=20) == []
    before = lines.read_bytes().count(b"\n")
    assert 3 <= before < 40
    assert evaluate(killed, *words) == evaluate(whole, *words[:2])
    assert score(killed)["resumed"] == before


def test_copies_are_one_per_gpu_or_as_many_as_are_asked_for(monkeypatch):
    monkeypatch.delenv("NPROC", raising=False)
    assert backends.copies("transformers", None, None) == backends.copies("vllm", None, None) == 1
    assert backends.copies("transformers", 3, None) == 3 and backends.copies("openai", None, None) is None
    monkeypatch.setenv("NPROC", "2")
    assert (backends.copies("transformers", None, None), backends.copies("vllm", None, None)) == (2, 1)
    monkeypatch.setattr(backends, "gpus", lambda: 4)
    assert backends.copies("transformers", None, None) == backends.copies("vllm", None, None) == 2
    monkeypatch.delenv("NPROC")
    assert backends.copies("transformers", None, None) == backends.copies("vllm", None, None) == 4
    assert backends.copies("vllm", None, None, tensor_parallel=2) == 2 and backends.copies("vllm", None, 3) == 3
    monkeypatch.setenv("NPROC", "8")  # of the training, which may have used the CPU
    assert backends.copies("transformers", None, None) == backends.copies("vllm", None, None) == 4
    with pytest.raises(UserError, match="--processes is 5 and torch finds 4 GPUs, one for each; lower it to 4"):
        backends.copies("transformers", 5, None)


def test_each_copy_sees_one_of_the_gpus_that_its_parent_sees(monkeypatch):
    assert devices.visible(1) is None
    monkeypatch.setattr(devices, "gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [devices.visible(number) for number in range(2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert [devices.visible(number) for number in range(2)] == ["3", "5"]
