"""Asking and continuing: a killed run continues, existing completions are not repeated, a changed run is refused by its option."""

import hashlib
import json
import multiprocessing
import shutil
import signal
import time
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.inference import local
from ba_lora.inference.requests import make_request
from ba_lora.inference.subject import open_subject, weights_hash
from ba_lora.tiny import MODEL_DIR
from eval import gsm8k
from eval.harness import ask as harness
from eval.harness.lines import read_lines

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not MODEL_DIR.is_dir(), reason="needs the embedded model in ba_lora/tiny/model"),
]


def words(folder, *more, limit=24):
    options = ["--model", "tiny", "--data", "tinymath:test", "--limit", str(limit), "--max_new_tokens", "64"]
    return [*options, "--batch_size", "2", "--output_dir", str(folder), *more]


def run(folder, *more, limit=24):
    assert gsm8k.main(words(folder, *more, limit=limit)) == 0
    return (folder / "generations.jsonl").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def whole(finished):
    """The generations of the finished run."""
    return (finished / "generations.jsonl").read_bytes()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def interrupt(folder, keep):
    """Leave `keep` bytes of the generations, as after a kill, without a score."""
    path = folder / "generations.jsonl"
    path.write_bytes(path.read_bytes()[:keep])
    (folder / "score.json").unlink()
    (folder / "scored.jsonl").unlink()


@pytest.fixture
def asked(monkeypatch):
    """The prompts given to the backend, call by call."""
    calls = []
    stream = local.stream
    monkeypatch.setattr(local, "stream", lambda prompts, **options: calls.append(prompts) or stream(prompts, **options))
    return calls


# Continuing


def test_a_run_killed_in_the_middle_continues_to_the_same_files(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = multiprocessing.get_context("fork").Process(target=gsm8k.main, args=(words(killed, limit=32),))
    process.start()
    lines, deadline = killed / "generations.jsonl", time.monotonic() + 60
    while not (lines.is_file() and lines.read_bytes().count(b"\n") >= 5) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = lines.read_bytes().count(b"\n")
    assert 5 <= before < 32 and not (killed / "score.json").exists()
    assert run(killed, limit=32) == run(whole, limit=32)
    scores = [json.loads((folder / "score.json").read_text()) for folder in (killed, whole)]
    assert (scores[0]["resumed"], scores[1]["resumed"]) == (before, 0)
    for name in ("resumed", "seconds", "tokens_per_second", "checksum"):
        del scores[0][name], scores[1][name]
    assert scores[0] == scores[1]
    assert (killed / "scored.jsonl").read_bytes() == (whole / "scored.jsonl").read_bytes()


@pytest.mark.parametrize("torn", ["half a line", "half a character", "one byte", "all but the last line's end"])
def test_a_torn_last_line_is_dropped_and_only_what_is_missing_is_asked(folder, whole, asked, torn):
    place = whole.index(b"\n", 2000) + 1
    keep = {"half a line": place + 30, "half a character": place - 1, "one byte": 1}.get(torn, len(whole) - 1)
    interrupt(folder, keep)
    if torn == "half a character":
        with open(folder / "generations.jsonl", "ab") as file:
            file.write(b"\n\xe2\x82")
    kept = (folder / "generations.jsonl").read_bytes().count(b"\n")
    assert run(folder) == whole
    assert sum(map(len, asked)) == 24 - kept


def test_finished_generations_without_a_score_are_scored_without_asking(folder, whole, asked):
    interrupt(folder, len(whole))
    assert run(folder) == whole and not asked
    score = json.loads((folder / "score.json").read_text())
    assert (score["resumed"], score["n"], score["tokens_per_second"]) == (24, 24, None)


def test_a_higher_limit_asks_only_the_new_tasks(tmp_path, asked):
    run(tmp_path, limit=10)
    interrupt(tmp_path, 10**6)
    asked.clear()
    run(tmp_path, limit=24)
    assert sum(map(len, asked)) == 14
    assert [line["id"] for line in read(tmp_path / "generations.jsonl")] == list(range(24))


def test_samples_are_drawn_alike_in_one_go_and_after_an_interruption(tmp_path):
    drawn = ["--samples", "3", "--temperature", "0.9", "--seed", "7"]
    whole = run(tmp_path, *drawn, limit=6)
    lines = read(tmp_path / "generations.jsonl")
    assert [(line["id"], line["sample"]) for line in lines] == [
        (task, sample) for task in range(6) for sample in range(3)
    ]
    assert len({line["completion"] for line in lines}) > 6
    score = json.loads((tmp_path / "score.json").read_text())
    expected = {"temperature": 0.9, "top_p": 1.0, "samples": 3, "seed": 7, "max_new_tokens": 64, "batch_size": 2}
    assert score["sampling"] == expected
    interrupt(tmp_path, len(whole) // 2)
    assert run(tmp_path, *drawn, limit=6) == whole
    other = run(tmp_path, *drawn[:-1], "8", "--overwrite", limit=6)
    assert other != whole


def test_another_batch_size_may_finish_what_one_began(folder, whole):
    interrupt(folder, 3000)
    assert run(folder, "--batch_size", "5") == whole


def test_on_a_gpu_the_batch_size_and_the_processes_must_be_those_of_the_first_part(folder, whole, monkeypatch):
    """Its kernels round by the shape of a batch, so a completion may depend on them."""
    interrupt(folder, len(whole) - 200)
    monkeypatch.setattr(harness, "gpus", lambda: 1)
    run(folder, "--overwrite")
    config = json.loads((folder / "generation.json").read_text())
    assert (config["batch_size"], config["processes"]) == (2, 1)
    interrupt(folder, len(whole) - 200)
    with pytest.raises(UserError, match=r"--batch_size \(2 before, 5 now\).*--overwrite"):
        run(folder, "--batch_size", "5")
    assert run(folder) == whole


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--temperature", "0.5"], r"--temperature \(0.0 before, 0.5 now\)"),
        (["--max_new_tokens", "32"], r"--max_new_tokens \(64 before, 32 now\)"),
        (["--dtype", "bfloat16"], "differs from it in --dtype"),
        (["--template", "alpaca"], r"--template \('plain' before, 'alpaca' now\)"),
        (["--model", str(MODEL_DIR), "--template", "plain"], "differs from it in --model"),
        (["--data", "tinymath:validation"], "differs from it in --data"),
        (["--limit", "3"], "id 3 is not asked now, or with another prompt: --data, --limit or --protocol"),
    ],
)
def test_an_unfinished_run_with_a_changed_option_is_refused_by_the_option_and_kept(folder, whole, change, message):
    interrupt(folder, len(whole) - 200)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=f"{message}.*--overwrite"):
        run(folder, *change)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert run(folder) == whole


def test_weights_that_changed_meanwhile_are_noticed(folder):
    interrupt(folder, 600)
    config = json.loads((folder / "generation.json").read_text())
    (folder / "generation.json").write_text(json.dumps(config | {"model_hash": "0" * 64}))
    with pytest.raises(UserError, match="in the weights of --model;"):
        run(folder)


def test_a_config_or_tokenizer_that_changed_meanwhile_at_the_same_path_is_noticed(tmp_path):
    base = Path(shutil.copytree(MODEL_DIR, tmp_path / "base"))
    words = ("--model", str(base), "--template", "plain")
    run(tmp_path / "out", *words, limit=2)
    interrupt(tmp_path / "out", 300)
    (base / "generation_config.json").write_text("{}")  # not used
    for name in ("config.json", "tokenizer.json"):
        before = (base / name).read_text()
        (base / name).write_text(before + "\n")
        with pytest.raises(UserError, match="in the config or tokenizer of --model, or the config of --adapter;"):
            run(tmp_path / "out", *words, limit=2)
        (base / name).write_text(before)
    run(tmp_path / "out", *words, limit=2)


def test_overwrite_starts_afresh(tmp_path, asked):
    whole = run(tmp_path, limit=4)
    asked.clear()
    assert run(tmp_path, "--overwrite", limit=4) == whole and sum(map(len, asked)) == 4


def test_generations_of_unknown_origin_are_neither_continued_nor_lost(tmp_path):
    (tmp_path / "generations.jsonl").write_text('{"id": 0}\n')
    with pytest.raises(UserError, match=r"holds no evaluation \(generations.jsonl, ...\)"):
        run(tmp_path)
    assert (tmp_path / "generations.jsonl").read_text() == '{"id": 0}\n'


def test_a_damaged_line_in_the_middle_is_named(folder, whole):
    interrupt(folder, len(whole))
    lines = whole.splitlines(keepends=True)
    (folder / "generations.jsonl").write_bytes(lines[0] + b"{broken\n" + lines[2])
    with pytest.raises(UserError, match="generations.jsonl, line 2: not valid JSON"):
        run(folder)


def test_a_finished_evaluation_is_not_run_again_without_overwrite(folder):
    with pytest.raises(UserError, match=r"already holds scored.jsonl, score.json; add --overwrite"):
        run(folder)


def test_samples_of_one_task_are_lines_of_their_own_and_the_same_sample_twice_is_refused(tmp_path):
    lines = [{"id": "a", "sample": number, "completion": "1", "reference": "1"} for number in range(3)]
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0] | {"id": "b"}]))
    assert len(read_lines(path, ("id", "completion"))) == 4
    assert read_lines(path, ("id", "completion"), limit=1) == lines
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[1]]))
    with pytest.raises(UserError, match="line 4: id a was already on line 2"):
        read_lines(path, ("id", "completion"))


# Prompts


@pytest.mark.parametrize("template", ["plain", "alpaca"])
def test_a_later_turns_prompt_is_one_text_whose_ids_are_those_of_its_parts(template):
    subject = open_subject("tiny", template=template)
    messages = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Three."}]
    request = make_request(subject, 1, [*messages, {"role": "user", "content": "And now?"}], ["r"])
    assert subject.tokenizer.decode(request.ids) == request.prompt
    assert request.prompt.count("</s>") == 1 and request.prompt.index("Three.</s>") < request.prompt.index("And now?")
    assert request.ids.count(subject.tokenizer.eos_token_id) == 1 and request.reference == ["r"]


# Hashes


def test_hashes_are_those_of_the_files_that_were_opened(tmp_path):
    weights = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert weights_hash("tiny") == weights_hash(str(MODEL_DIR)) == weights
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"a")
    assert weights_hash(str(tmp_path)) == hashlib.sha256(b"a").hexdigest()
    (tmp_path / "b.safetensors").write_bytes(b"b")
    both = weights_hash(str(tmp_path))
    (tmp_path / "b.safetensors").write_bytes(b"c")
    assert both != weights_hash(str(tmp_path))
    assert weights_hash("no/such-model") is None
