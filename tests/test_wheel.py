"""The package as it is installed: the contents and metadata of the wheel, what it may import, and its commands away from the checkout."""

import ast
import email
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.common import ROOT
from tests.test_environments import RANGES

# Packages of an extra that the package imports, each where it is needed.
OF_AN_EXTRA = {
    **{"deepspeed": "deepspeed", "bitsandbytes": "quantize", "gguf": "packages", "openai": "eval", "trl": "trl"},
    **{"matplotlib": "figures", "sklearn": "figures", "threadpoolctl": "figures"},
}
REQUIRED_BY_THE_CORE = {"huggingface_hub", "tokenizers", "pyarrow"}  # by transformers and datasets
OF_THE_USER = {"vllm", "wandb", "liger_kernel", "pip"}  # refused by name or left out where they are missing
MODULES = {"yaml": "pyyaml"}  # module → distribution, where the names differ


def imported(file: Path) -> set[str]:
    """The packages that a module imports anywhere, without those of Python and of the project."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"ba_lora", "eval"}


def shipped() -> list[Path]:
    files = sorted((ROOT / "ba_lora").rglob("*.py"))
    return [file for file in files if "experiments" not in file.relative_to(ROOT).parts]


def test_what_the_package_imports_is_in_its_core_or_in_an_extra():
    core = {name for name, _, _, extra in RANGES if extra is None}
    extras = {extra for *_, extra in RANGES}
    used = set().union(*map(imported, shipped()))
    assert {MODULES.get(name, name) for name in used - {*OF_AN_EXTRA} - REQUIRED_BY_THE_CORE - OF_THE_USER} <= core
    assert set(OF_AN_EXTRA.values()) <= extras
    assert {"torch", "peft", "yaml", "deepspeed"} <= used  # the search finds imports, within functions too


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the tracked and new files, built without the network."""
    if importlib.util.find_spec("setuptools") is None or Version(metadata.version("setuptools")) < Version("77"):
        pytest.skip("the wheel is built with setuptools 77 or newer; pip install 'setuptools>=77'")
    place = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv", ".vllm", "__pycache__", "runs", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, place / "source", ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(place),
    ]
    done = subprocess.run([*command, str(place / "source")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel's files, as site-packages holds them."""
    place = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def call(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    """`ba-lora WORDS` in `folder` with the package in `site`, as its console script calls it."""
    code = "from ba_lora.__main__ import command; command()"
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_wheel_holds_one_package_and_what_it_reads(site):
    (information,) = site.glob("*.dist-info")
    assert {path.name for path in site.iterdir()} == {"ba_lora", information.name}
    package = site / "ba_lora"
    there = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT / "ba_lora").as_posix() for path in shipped()}
    wanted |= {"py.typed", "__init__.pyi", "style.mplstyle", "tiny/checksums.json", "configs/devices.yaml"}
    wanted |= {f"tiny/model/{path.name}" for path in (ROOT / "ba_lora/tiny/model").iterdir()}
    for folder in ("models", "deepspeed", "nlg", "nlu"):
        files = [path for path in (ROOT / "configs" / folder).rglob("*") if path.is_file()]
        wanted |= {path.relative_to(ROOT).as_posix() for path in files}
    assert there == wanted


@pytest.mark.slow
def test_the_metadata_has_the_ranges_the_extras_and_the_command(site):
    (information,) = site.glob("*.dist-info")
    facts = email.message_from_string((information / "METADATA").read_text(encoding="utf-8"))
    assert (facts["Name"], facts["License-Expression"]) == ("ba-lora", "Apache-2.0")
    assert (
        "contributors" in facts["Author"] and facts["Project-URL"] and "Typing :: Typed" in facts.get_all("Classifier")
    )
    needs = [Requirement(text) for text in facts.get_all("Requires-Dist")]
    core = {need.name: need.specifier for need in needs if need.marker is None}
    assert core.keys() == {name for name, _, _, extra in RANGES if extra is None}
    assert all(not {"==", "==="} & {part.operator for part in specifier} for specifier in core.values())
    assert set(facts.get_all("Provides-Extra")) >= {"trl", "deepspeed", "quantize", "dev", "tests"}
    assert (information / "entry_points.txt").read_text().split("\n")[:2] == [
        "[console_scripts]",
        "ba-lora = ba_lora.__main__:command",
    ]


@pytest.mark.slow
def test_an_installed_package_plans_trains_and_refuses_what_needs_the_checkout(site, tmp_path):
    planned = call(site, tmp_path, "plan", "configs/nlg/llama-2-7b-metamath-iclr.yaml", "--devices", "8xA40")
    assert planned.returncode == 0 and "time on 8 × A40" in planned.stdout, planned.stderr
    assert "configs/deepspeed/zero2.json" in planned.stdout
    words = ("--config", "configs/nlg/tiny.yaml", "--max_steps", "2", "--output_dir", "run")
    trained = call(site, tmp_path, "train", *words)
    assert trained.returncode == 0 and (tmp_path / "run" / "adapter" / "README.md").is_file(), trained.stderr
    asked = call(site, tmp_path, "chat", "--model", "run", "--prompt", "2 + 2", "--max_new_tokens", "4")
    assert asked.returncode == 0 and "--- base" in asked.stdout and "--- tuned" in asked.stdout, asked.stderr
    for name in ("eval", "experiments"):
        refused = call(site, tmp_path, name, "run")
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        assert refused.stderr.startswith(f"error: ba-lora {name} belongs to the repository")
