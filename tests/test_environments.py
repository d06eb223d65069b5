"""An active environment of somebody's is used as it is or left alone, shown with real virtual environments; only .venv is the project's."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ba_lora.machine import driver
from tests.common import ROOT

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell on this machine")
SOURCED = 'set -eu; root=$1; shift; . "$root/scripts/environment.sh"; echo "PYTHON $PYTHON"; for word; do echo "[$word]"; done'


def comparison():
    """scripts/environment.py as a module."""
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts" / "environment.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
RANGES = comparison().ranges(PYPROJECT)


def put(environment: Path, name: str, version: str) -> None:
    """Make `environment` hold a package, as far as its installed version is asked for."""
    (packages,) = environment.glob("lib/python*/site-packages")
    place = packages / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(exist_ok=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def environment(tmp_path):
    """A real virtual environment, which holds the lowest tested versions and no package of another extra than figures."""
    place = tmp_path / "cluster env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    for name, lowest, _, extra in RANGES:
        if extra in (None, "figures"):  # what the scripts ask for
            put(place, name, lowest)
    return place


@pytest.fixture
def checkout(tmp_path):
    """The scripts and the requirements, without an environment."""
    place = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", place / "scripts")
    for file in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / file, place)
    return place


def source(checkout: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    own = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHONPATH", "PYTHONSAFEPATH", "BA_LORA_INSTALL")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    command = ["sh", "-c", SOURCED, "sh", str(checkout), *words]
    return subprocess.run(command, env=kept | variables, capture_output=True, text=True, timeout=60)


def packages(environment: Path) -> str:
    """`pip list` of an environment."""
    (place,) = environment.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "list", "--path", str(place), "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def contents(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts)


CONDA = {"CONDA_DEFAULT_ENV": "cluster"}


@pytest.mark.parametrize(("variable", "more"), [("VIRTUAL_ENV", {}), ("CONDA_PREFIX", CONDA)], ids=["venv", "conda"])
def test_an_environment_with_another_torch_is_left_alone(environment, checkout, variable, more):
    (torch,) = environment.glob("lib/python*/site-packages/torch-*.dist-info")
    shutil.rmtree(torch)
    put(environment, "torch", "2.4.1+cu121")
    (peft,) = environment.glob("lib/python*/site-packages/peft-*.dist-info")
    shutil.rmtree(peft)
    before, listed = contents(environment), packages(environment)
    done = source(checkout, **{variable: str(environment)}, **more)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    first, *different, either, other = done.stderr.splitlines()
    assert first.startswith(
        f"error: the active environment {environment} differs from what this project was tested with"
    )
    assert different == [
        "  torch 2.4.1+cu121 is installed; tested with >=2.11,<2.14",
        "  peft is not installed; tested with >=0.20,<0.22",
    ]
    assert ("(conda deactivate)" if more else "(deactivate)") in either and ".venv" in either
    assert "--install" in other and "BA_LORA_INSTALL=1" in other
    assert '"torch"' in listed and (contents(environment), packages(environment)) == (before, listed)
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_environment_within_the_ranges_is_used_as_it_is(environment, checkout, variable):
    before = contents(environment)
    done = source(checkout, "a b", **{variable: str(environment), "CONDA_DEFAULT_ENV": "cluster"})
    assert done.returncode == 0 and done.stdout == f"PYTHON {environment}/bin/python\n[a b]\n", done.stderr
    assert contents(environment) == before and not (checkout / ".venv").exists()


def test_the_tests_ask_for_the_packages_that_only_they_need(environment, checkout):
    command = ["sh", str(checkout / "scripts" / "test.sh")]
    done = subprocess.run(command, env=os.environ | {"VIRTUAL_ENV": str(environment)}, capture_output=True, text=True)
    assert done.returncode == 2 and "  pytest is not installed; tested with " in done.stderr


@pytest.mark.parametrize(("words", "variables"), [(("--install",), {}), ((), {"BA_LORA_INSTALL": "1"})])
def test_installing_is_a_choice_and_the_word_for_it_reaches_no_command(environment, checkout, words, variables):
    (torch,) = environment.glob("lib/python*/site-packages/torch-*.dist-info")
    shutil.rmtree(torch)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "pip").mkdir()  # an installer that records its words
    (packages / "pip" / "__main__.py").write_text("import sys; print(sys.argv[1:])")
    done = source(checkout, "configs/a.yaml", *words, "--rank", "4", VIRTUAL_ENV=str(environment), **variables)
    assert done.returncode == 0 and f"'-r', '{checkout}/requirements.txt'" in done.stdout, done.stderr
    assert done.stdout.endswith("[configs/a.yaml]\n[--rank]\n[4]\n")
    marker = environment / "ba-lora-requirements.txt"
    assert marker.read_bytes() == (checkout / "requirements.txt").read_bytes()


def test_the_projects_own_environment_is_kept_at_the_pins_when_it_is_active(checkout):
    place = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    shutil.copy(checkout / "requirements.txt", place / "ba-lora-requirements.txt")
    done = source(checkout, VIRTUAL_ENV=f"{checkout}/scripts/../.venv")
    assert done.returncode == 0 and done.stdout == f"PYTHON {place}/bin/python\n", done.stderr
    (checkout / "requirements.txt").write_text("changed==1\n")
    assert "No module named pip" in source(checkout, VIRTUAL_ENV=str(place)).stderr  # it would install them


def test_an_active_environment_that_is_gone_is_not_to_be_removed(checkout, tmp_path):
    done = source(checkout, VIRTUAL_ENV=str(tmp_path / "gone"))
    assert (done.returncode, done.stderr) == (
        2,
        f"error: no python in {tmp_path}/gone; leave that environment with: deactivate\n",
    )


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        *[(version, True) for version in ("2.11", "2.11.0", "2.13.0+cu126", "2.13.5", "2.12.0a0+5228986c39.nv25.06")],
        *[(version, False) for version in ("2.10.9", "2.14.0", "2.14.0.dev2", "3", "1.13", "unknown", "")],
    ],
)
def test_versions_of_torch(monkeypatch, version, fits):
    module = comparison()
    monkeypatch.setattr(module.metadata, "version", lambda name: version)
    assert (module.differences('[project]\ndependencies = [\n    "torch>=2.11,<2.14",\n]\n', ()) == []) == fits


def test_an_old_python_is_named(monkeypatch):
    module = comparison()
    monkeypatch.setattr(module.sys, "version_info", (3, 9, 2))
    assert module.differences("# nothing", ()) == ["Python 3.9 is here, and 3.10 or newer is needed"]


def test_the_ranges_are_those_that_a_reader_of_toml_finds():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads(PYPROJECT)["project"]
    groups = {None: project["dependencies"], **project["optional-dependencies"]}
    wanted = []
    for extra, lines in groups.items():
        for each in map(Requirement, lines):
            if each.name != project["name"]:
                ends = {part.operator: part.version for part in each.specifier}
                wanted.append((each.name, ends.pop(">="), ends.pop("<"), extra))
                assert not ends and each.marker is None
    assert comparison().ranges(PYPROJECT) == wanted and len(wanted) > 25
    own = next(each for each in map(Requirement, groups["dev"]) if each.name == project["name"])
    assert own.extras <= groups.keys()


@pytest.mark.parametrize(
    "text",
    [
        '[project]\ndependencies = [\n    "torch==2.13",\n]\n',
        '[project.optional-dependencies]\nquantize = ["bitsandbytes>=0.50.2,<0.51"]\n',
    ],
)
def test_a_requirement_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="NAME"):
        comparison().differences(text, ())


def test_every_pinned_package_has_a_range_that_holds_its_pin():
    module = comparison()
    pins = [line.partition(";")[0].partition("==") for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pinned = [(name.partition("[")[0].strip(), version.strip()) for name, sign, version in pins if sign]
    ranges = {name: (lowest, below) for name, lowest, below, _ in RANGES}
    assert {name for name, _ in pinned} == ranges.keys()
    for name, version in pinned:
        lowest, below = map(module.numbers, ranges[name])
        assert lowest <= module.numbers(version) < below, name
    assert f'    "{driver.TORCH}",' in PYPROJECT.splitlines()  # in the remedy for a driver


def test_the_core_has_nothing_that_only_a_part_needs():
    core = {name for name, _, _, extra in RANGES if extra is None}
    assert core.isdisjoint({"pytest", "pytest-xdist", "ruff", "uv", "deepspeed", "bitsandbytes", "trl", "matplotlib"})
