"""The command ba-lora: its table, what it opens, and what it says in an installed package, which lacks the repository's part."""

import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import ba_lora
from ba_lora import __main__ as entry
from ba_lora.commands import train
from ba_lora.errors import CALLED
from ba_lora.preflight import __main__ as preflight
from ba_lora.preflight import evaluations
from tests.common import ROOT, command
from tests.test_help import SLOW

HELPS = """
import sys
from ba_lora import __main__ as entry
for name in entry.COMMANDS:
    sys.argv = ["ba-lora", name, "--help"]
    try:
        entry.main()
    except SystemExit as end:
        assert not end.code, name
print("IMPORTED", *sys.modules)
"""


@pytest.fixture(autouse=True)
def no_name_stays(monkeypatch):
    """The command renames itself in --help and may put the repository on the path; both end with the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    yield
    CALLED.clear()


@pytest.fixture
def installed(monkeypatch):
    """As in an installed package."""
    monkeypatch.setattr(entry, "CHECKOUT", False)
    monkeypatch.setattr(evaluations, "CHECKOUT", False)
    monkeypatch.setattr(preflight, "CHECKOUT", False)


def said(capsys, *words: str) -> str:
    """What `ba-lora WORDS` prints; it must not fail."""
    sys.argv = ["ba-lora", *words]
    assert not entry.main()
    return capsys.readouterr().out


def test_the_table_has_a_line_for_each_command_and_comes_without_words_too(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    text = said(capsys, "--help")
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == [*entry.COMMANDS]
    assert said(capsys) == text
    assert said(capsys, "--version") == f"ba-lora {ba_lora.__version__}\n"


def test_a_help_names_the_command_as_it_was_called_and_imports_no_large_library():
    done = subprocess.run([sys.executable, "-c", HELPS], cwd=ROOT, capture_output=True, text=True, check=True)
    text, _, imported = done.stdout.partition("IMPORTED ")
    for name in entry.COMMANDS:
        assert f"usage: ba-lora {name} " in text, name
    assert "python train.py" not in text and "python -m ba_lora.chat" not in text
    assert SLOW & set(imported.split()) == set() and "ba_lora.training.arguments" in imported


def test_an_unknown_command_is_answered_with_the_nearest():
    done = command("-m", "ba_lora", "trian", "--output_dir", "runs/x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: command 'trian' is not known, did you mean 'train'?")
    assert done.stderr.count("\n") == 1


def test_an_option_reaches_its_command():
    done = command("-m", "ba_lora", "train", "--lerning_rate", "1", "--output_dir", "runs/x")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown option --lerning_rate, did you mean")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["tiny.yaml", "--devices", "1xA40"], ["--config", "tiny.yaml", "--devices", "1xA40", "--dry_run"]),
        (["--model", "mistral-7b"], ["--model", "mistral-7b", "--dry_run"]),
    ],
)
def test_a_plan_is_a_training_with_dry_run(monkeypatch, words, options):
    given = []
    monkeypatch.setattr(train, "main", given.extend)
    monkeypatch.setattr(sys, "argv", ["ba-lora", "plan", *words])
    entry.main()
    assert given == options


def test_the_console_script_is_this_command():
    (line,) = (line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("ba-lora = "))
    module, _, name = line.partition('"')[2].rstrip('"').partition(":")
    assert getattr(importlib.import_module(module), name) is entry.command


@pytest.mark.parametrize("name", ["eval", "experiments"])
def test_an_installed_package_says_in_one_line_what_belongs_to_the_repository(installed, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", ["ba-lora", name, "--help"])
    with pytest.raises(
        entry.UserError, match=f"ba-lora {name} belongs to the repository .* clone .*ba_lora {name} in it"
    ):
        entry.main()
    monkeypatch.setattr(sys, "argv", [])
    assert name not in said(capsys, "--help").split()


def test_a_preflight_of_an_installed_package_names_the_benchmarks_and_goes_on(installed, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(preflight, "check", lambda arguments: [*evaluations.findings(arguments)] and pytest.fail())
    text = said(
        capsys, "preflight", "configs/nlg/tiny.yaml", "--output_dir", str(tmp_path), "--benchmarks", "humaneval"
    )
    assert "has no eval/: humaneval can be run in a checkout" in text
    assert "start it with: ba-lora train --config configs/nlg/tiny.yaml --output_dir" in text


def stub() -> dict[str, str]:
    """{public name: its module} as __init__.pyi says."""
    tree = ast.parse((ROOT / "ba_lora" / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname: node.module for node in imports for alias in node.names if alias.asname == alias.name}


def test_type_checkers_find_the_public_names_where_they_are():
    assert stub() == ba_lora._HOMES
    assert (ROOT / "ba_lora" / "py.typed").is_file()


@pytest.mark.parametrize("name", ba_lora._HOMES)
def test_a_public_signature_has_types(name):
    public = getattr(ba_lora, name)
    functions = [public.__init__, public.forward] if hasattr(public, "forward") else [public]
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        assert [each.name for each in parameters if each.annotation is each.empty and each.name != "self"] == []
