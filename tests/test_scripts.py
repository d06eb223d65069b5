"""The set-up shared by the shell commands, with a fake interpreter: what it creates, and that it installs only once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
*"-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; touch "$last/pyvenv.cfg" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="no POSIX shell on this machine")


@pytest.fixture
def checkout(tmp_path):
    """scripts/ and requirements.txt beside a python3 that records how it is called."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for file in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "python3"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    return tmp_path


def call(checkout, *words, cwd=None, **variables):
    own = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHONPATH", "PYTHONSAFEPATH", "BA_LORA_INSTALL")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    environment = kept | {"PATH": f"{checkout}/bin:/usr/bin:/bin", "CALLS": f"{checkout}/calls"} | variables
    (checkout / "calls").write_text("")
    done = subprocess.run(
        ["sh", *words], cwd=cwd or checkout, env=environment, capture_output=True, text=True, timeout=60
    )
    return done, (checkout / "calls").read_text()


def test_a_fresh_checkout_gets_an_environment_and_the_pinned_requirements_once(checkout):
    done, calls = call(checkout, "scripts/ba-lora.sh", "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert "-m venv" in calls and "pip install" in calls and f"-r {checkout}/requirements.txt" in calls
    assert calls.splitlines()[-1] == "-m ba_lora.experiments run --seeds 1"
    _, again = call(checkout, "scripts/ba-lora.sh", "configs/nlg/tiny.yaml", "--rank", "4")
    assert again.splitlines() == ["-m ba_lora.experiments one configs/nlg/tiny.yaml --rank 4"]
    (checkout / "requirements.txt").write_text("changed")
    assert "pip install" in call(checkout, "scripts/test.sh")[1]


def test_an_active_environment_is_used(checkout):
    (checkout / "mine" / "bin").mkdir(parents=True)
    shutil.copy(checkout / "bin" / "python3", checkout / "mine" / "bin" / "python")
    done, calls = call(checkout, "scripts/test.sh", VIRTUAL_ENV=f"{checkout}/mine")
    assert done.returncode == 0 and "-m venv" not in calls and not (checkout / ".venv").exists()
    assert calls.splitlines()[-1] == "-m pytest -n 3 --dist loadfile -m not slow"
    assert call(checkout, "scripts/test.sh", "slow", "-x", VIRTUAL_ENV=f"{checkout}/mine")[1].endswith(
        "-m pytest -n 2 --dist loadfile -m slow -x\n"
    )


def test_a_missing_python_and_a_missing_venv_module_are_said_in_one_line(checkout):
    tools = checkout / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "cmp", "cp", "mkdir", "touch"):
        (tools / name).symlink_to(shutil.which(name))
    done, _ = call(checkout, "scripts/ba-lora.sh", PATH=str(tools))
    assert done.returncode == 2 and done.stderr.startswith("error: no Python 3.10 or newer was found")
    assert len(done.stderr.splitlines()) == 1
    (tools / "python3").write_text('#!/bin/sh\ncase "$*" in *venv*) exit 1 ;; esac\n')
    (tools / "python3").chmod(0o755)
    done, _ = call(checkout, "scripts/ba-lora.sh", PATH=str(tools))
    assert done.returncode == 2 and "has no venv module; install it" in done.stderr


@pytest.mark.parametrize("method", ["lora", "pissa", "full"])
def test_the_other_methods_are_the_same_launcher_with_a_method(checkout, method):
    start = {"pissa": "--method pissa"}.get(method, f"--method {method} --init none")
    words = ["configs/nlg/some.yaml", "--dry_run"]
    assert call(checkout, f"scripts/{method}.sh", *words)[1].splitlines()[-1] == (
        f"-m ba_lora.experiments one configs/nlg/some.yaml --dry_run {start}"
    )
    assert call(checkout, f"scripts/{method}.sh", "--seed", "1")[1].splitlines()[-1] == (
        f"-m ba_lora.experiments one configs/nlg/tiny.yaml --seed 1 {start}"
    )


def test_the_launchers_of_classification_start_the_comparison_one_config_or_a_row(checkout):
    assert call(checkout, "scripts/nlu.sh")[1].splitlines()[-1] == (
        "-m ba_lora.experiments run configs/experiments/nlu-main-embedded.yaml --untuned --seeds 1 --methods lora pissa ba-lora"
    )
    _, calls = call(checkout, "scripts/nlu.sh", "configs/nlu/some.yaml", "--rank", "4")
    assert calls.splitlines() == ["-m ba_lora.experiments one configs/nlu/some.yaml --rank 4"]
    done, calls = call(checkout, "scripts/glue.sh", "bert-large", "lora", "cola", "rte", "--dry_run")
    assert done.returncode == 0 and calls.splitlines() == [
        f"-m ba_lora.experiments one configs/nlu/bert-large-{task}.yaml --method lora --dry_run"
        for task in ("cola", "rte")
    ]
    assert len(call(checkout, "scripts/glue.sh", "bert-large", "lora")[1].splitlines()) == 8
    done, _ = call(checkout, "scripts/glue.sh", "bert-large")
    assert done.returncode == 2 and "sh scripts/glue.sh MODEL METHOD" in done.stderr


def test_the_figure_of_the_features_is_three_runs_and_a_drawing(checkout):
    done, calls = call(checkout, "scripts/tsne.sh", "configs/nlu/some.yaml", "--max_steps", "9")
    one = "-m ba_lora.experiments one configs/nlu/some.yaml --method {0} --output_dir runs/some/{0} --overwrite --max_steps 9"
    drawn = (
        f"{checkout}/tsne_visualization.py --features_dir runs/some/lora runs/some/pissa runs/some/ba-lora "
        "--names LoRA PiSSA BA-LoRA --step all --output_dir runs/some/figure"
    )
    assert done.returncode == 0
    assert calls.splitlines()[-4:] == [*map(one.format, ("lora", "pissa", "ba-lora")), drawn]


def test_what_is_kept_is_measured_of_a_run_or_of_an_adapter_on_its_base(checkout):
    for words, options in (
        (["runs/mine"], "--model runs/mine"),
        (["runs/mine", "--held_out", "a.txt"], "--model runs/mine --held_out a.txt"),
        (["BASE", "ADAPTER", "--dtype", "auto"], "--model BASE --adapter ADAPTER --dtype auto"),
    ):
        _, calls = call(checkout, "scripts/eval_retention.sh", *words)
        assert calls.splitlines()[-1] == f"-m eval.retention {options}"


def test_the_laboratory_is_an_experiment_and_its_figures(checkout):
    quick = "configs/experiments/laboratory-quick.yaml"
    done, calls = call(checkout, "scripts/laboratory.sh")
    assert done.returncode == 0
    assert calls.splitlines()[-2:] == [
        f"-m ba_lora.experiments run {quick}",
        f"-m ba_lora.experiments figure {quick} --results none",
    ]
    assert "figure mine.yaml" in call(checkout, "scripts/laboratory.sh", "mine.yaml")[1].splitlines()[-1]


def test_tables_and_figures_are_those_of_the_experiments_in_results_and_the_points_are_redrawn(checkout):
    done, _ = call(checkout, "scripts/tables.sh")
    assert done.returncode == 2 and done.stderr.endswith(
        "error: results/ is empty; run: python -m ba_lora.experiments collect FILE\n"
    )
    for folder in ("results/t-sne", "results/small", "configs/experiments"):
        (checkout / folder).mkdir(parents=True)
    (checkout / "configs/experiments/small.yaml").touch()
    table = "-m ba_lora.experiments table configs/experiments/small.yaml --runs none --output_dir assets/small --quiet"
    assert call(checkout, "scripts/tables.sh")[1].splitlines() == [table]
    done, calls = call(checkout, "scripts/figures.sh")
    assert calls.splitlines() == [
        f"-m ba_lora.experiments figure configs/experiments/{name}.yaml --runs none --output_dir assets/{name}"
        for name in ("small", "ablation-embedded", "ranks-embedded")
    ]
    assert done.returncode  # the interpreter that writes down its calls draws nothing to copy
    for name in ("ablation-embedded/bars", "ranks-embedded/curves_rank"):
        for ending in ("pdf", "png"):
            (checkout / f"assets/{name}.{ending}").parent.mkdir(parents=True, exist_ok=True)
            (checkout / f"assets/{name}.{ending}").touch()
    redrawn = call(checkout, "scripts/figures.sh")[1].splitlines()[-1]
    assert redrawn.startswith("tsne_visualization.py --redraw results/t-sne --output_dir ")
    assert not Path(redrawn.split()[-1]).exists()


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda script: script.stem)
def test_help_is_the_comment_at_the_top_and_starts_nothing(checkout, script):
    if script.stem == "environment":
        return  # sourced by the others, not run
    for word in ("--help", "-h"):
        done, calls = call(checkout, f"scripts/{script.name}", word)
        assert done.returncode == 0 and calls == "" and not (checkout / ".venv").exists()
        assert f"  sh scripts/{script.name}" in done.stdout and "set -eu" not in done.stdout
        assert done.stdout.splitlines() == [
            line.removeprefix("#").removeprefix(" ")
            for line in script.read_text().partition("\nset -eu\n")[0].splitlines()[1:]
        ]


def test_paths_are_those_of_the_folder_in_which_a_script_is_called(checkout, tmp_path_factory):
    """The project's modules come from its own folder, also if the user's has an eval.py."""
    here = tmp_path_factory.mktemp("elsewhere")
    fake = checkout / "bin" / "python3"
    fake.write_text(FAKE + 'echo "$PWD $PYTHONPATH $PYTHONSAFEPATH" >> "$CALLS.places"\n')
    for script, *words in (
        ("ba-lora", "mine.yaml"),
        ("lora", "mine.yaml"),
        ("nlu", "mine.yaml"),
        ("glue", "bert-large", "lora", "cola"),
        ("tsne", "mine.yaml"),
        ("eval_all", "runs/mine"),
        ("eval_math", "runs/mine"),
    ):
        done, calls = call(checkout, f"{checkout}/scripts/{script}.sh", *words, cwd=here)
        assert done.returncode == 0, done.stderr
        assert f" {words[0]}" in calls or script == "glue"
    places = set((checkout / "calls.places").read_text().splitlines())
    assert f"{here} {checkout} 1" in places and not (here / ".venv").exists()
    assert {place.split()[0] for place in places} == {str(here)}
