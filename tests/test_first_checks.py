"""Refusals that need only the options and the disk: the libraries, which take seconds to import, are not waited for."""

import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.folders.places import check_model_folder, check_trained, is_path
from tests.common import finished_run

ROOT = Path(__file__).parents[1]
LIMIT = 2  # seconds of CPU; with torch and transformers it would be 6 or more
TINY = "configs/nlg/tiny.yaml"
TRAIN, ONE = ("train.py",), ("-m", "ba_lora.experiments", "one", TINY)
RUN, GSM8K = ("-m", "ba_lora.experiments", "run"), ("-m", "eval.gsm8k", "--output_dir", "OUT")
CHAT = ("-m", "ba_lora.chat")
REFUSALS = [
    (TRAIN, "--output_dir is missing"),
    ((*TRAIN, "--output_dir", "OUT", "--method", "lorra"), "method 'lorra' is not known, did you mean 'lora'?"),
    ((*TRAIN, "--output_dir", "OUT", "--data", "nope.jsonl"), "data file nope.jsonl does not exist"),
    ((*TRAIN, "--output_dir", "OUT", "--data", "tinymath:tests"), "tinymath split 'tests' is not known"),
    ((*TRAIN, "--output_dir", "OUT", "--model", "runs/nope"), "model folder runs/nope does not exist"),
    ((*TRAIN, "--output_dir", "OUT", "--model", "package:nope"), "model package 'nope' is not known"),
    ((*TRAIN, "--output_dir", "RUN"), "holds a run already; add --resume"),
    ((*TRAIN, "--output_dir", "RUN", "--resume", "--rank", "3"), "--resume: "),
    ((*TRAIN, "--output_dir", "FOREIGN"), "is not empty and holds no run"),
    ((*TRAIN, "--config", "configs/experiments/ranks.yaml"), "run it with: python -m ba_lora.experiments run configs/"),
    ((*ONE, "--data", "data/nope.csv"), "data file data/nope.csv does not exist"),
    ((*ONE, "--eval_data", "nope.jsonl"), "data file nope.jsonl does not exist"),
    ((*ONE, "--output_dir", "RUN"), "holds a run already"),
    (("-m", "ba_lora.experiments", "one", "nope.yaml"), "config file nope.yaml does not exist"),
    ((*RUN, "nope.yaml"), "experiment file nope.yaml does not exist"),
    ((*RUN, TINY), f"is the config of one run; train and evaluate it with: sh scripts/ba-lora.sh {TINY}"),
    ((*GSM8K, "--model", "runs/nope"), "--model runs/nope does not exist"),
    ((*GSM8K, "--model", "docs"), "--model docs is not a run folder (run.json), adapter folder"),
    ((*GSM8K, "--model", "tiny", "--adapter", "runs/nope"), "--adapter runs/nope does not exist"),
    ((*GSM8K, "--model", "tiny", "--data", "nope.jsonl"), "data file nope.jsonl does not exist"),
    (("-m", "eval.all", "runs/nope"), "error: --model runs/nope does not exist"),
    (("-m", "eval.humaneval", "--output_dir", "OUT", "--model", "runs/nope"), "--model runs/nope does not exist"),
    ((*GSM8K, "--model", "CLASSIFIER"), "is a classifier, which writes no text; evaluate it with python -m eval.glue"),
    (CHAT, "--model is missing; name a run folder to compare with its base"),
    ((*CHAT, "--model", "runs/nope"), "--model runs/nope does not exist"),
    ((*CHAT, "--run", "no/such/run"), "--model no/such/run does not exist"),
    ((*CHAT, "--model", "docs"), "--model docs is not a run folder (run.json), adapter folder"),
    ((*CHAT, "--model", "FOREIGN"), "is not a run folder (run.json), adapter folder"),
    ((*CHAT, "--model", "STOPPED"), "has neither adapter/ nor model/: the run has not ended"),
    ((*CHAT, "--model", "CLASSIFIER"), "is a classifier, which writes no text; evaluate it with python -m eval.glue"),
    ((*CHAT, "--model", "package:nope"), "model package 'nope' is not known"),
    ((*CHAT, "--model", "tiny", "--only", "tuned"), "--only tuned chooses between a run and its base"),
    ((*CHAT, "--model", "RUN", "--template", "alpacca"), "template 'alpacca' is not known, did you mean 'alpaca'?"),
    ((*CHAT, "--model", "RUN", "--dtype", "float8"), "--dtype 'float8' is not known"),
    (("-m", "ba_lora.benchmark", "--only", "our"), "--only 'our' is not known, did you mean 'ours'?"),
    (("-m", "ba_lora.benchmark", "--model", "runs/nope"), "model folder runs/nope does not exist"),
    (("-m", "ba_lora.benchmark", "--body", "llama-2-7"), "did you mean 'llama-2-7b'"),
    (("-m", "ba_lora.benchmark", "--body", "tiny", "--growth"), "--body has its own sizes; leave out --model"),
    (("-m", "ba_lora.benchmark.device_check", "--only", "exactnes"), "did you mean 'exactness'"),
    (("-m", "ba_lora.benchmark.device_table", "--write", "nope.md"), "--write nope.md does not exist"),
    (("-m", "ba_lora.benchmark", "--output_dir", "FOREIGN"), "is not empty and holds no benchmark"),
    (("-m", "ba_lora.tiny.pretrain", "--output_dir", "OUT", "--steps", "0"), "--steps is 0: it must be greater than 0"),
    (("-m", "ba_lora.tiny.pretrain", "--output_dir", "FOREIGN"), "is not empty and holds no model of this command"),
    (("-m", "ba_lora.planning.table", "nope.yaml"), "config file nope.yaml does not exist"),
    (("-m", "ba_lora.experiments.price", "nope.yaml"), "experiment file nope.yaml does not exist"),
    ((*RUN, "EXPERIMENT", "--dry_run"), "data nope.csv is neither an existing path nor a hub id"),
    (
        ("-m", "eval.mt_bench", "--bse_url", "http://me:word@host/v1"),
        "unknown option --bse_url, did you mean '--base_url'",
    ),
    (("-m", "eval.mbpp", "--base_ur1=http://me:word@host/v1"), "unknown option --base_ur1, did you mean '--base_url'"),
    ((*GSM8K, "--limit", "http://me:word@host/v1"), "--limit: invalid int value: 'http://[hidden]@host/v1'"),
    ((*GSM8K, "--seed", "sk-abcdefghijklmnop"), "--seed: invalid int value: '[hidden]'"),
    ((*GSM8K, "https://word@host"), "unknown argument 'https://[hidden]@host'; see --help"),
    ((*GSM8K, "--no\x1b[31m", "x"), "unknown option --no\\x1b[31m"),
    (("-m", "eval.glue", "--submision"), "unknown option --submision, did you mean '--submission'"),
    (("-m", "eval.gluex", "--limit"), "--limit: expected one argument"),
    (("-m", "eval.all", "tiny", "--output_dir", "OUT", "--lmit", "8"), "unknown option --lmit, did you mean '--limit'"),
    (("-m", "eval.all", "tiny", "--output_dir", "OUT", "--limit", "8.5"), "--limit: invalid int value: '8.5'"),
    ((*RUN, "--jbos", "2"), "unknown option --jbos, did you mean '--jobs'?; see --help"),
    (
        ("-m", "ba_lora.experiments", "figure", "EXPERIMENT", "--quiet"),
        "unknown option --quiet here; it belongs to table; see --help",
    ),
    (("-m", "ba_lora.experiments", "rnu"), "invalid choice: 'rnu'"),
    (("-m", "ba_lora.hub", "RUN"), "the following arguments are required: USER/NAME"),
    (("tsne_visualization.py", "--output_dir", "OUT"), "--features_dir --redraw is required"),
    (("-m", "eval.glue", "--model", "runs/nope"), "--model runs/nope is not a run folder of a classifier"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """{word of a row above: the path that it stands for}: an unused name, runs, a folder of someone else's."""
    home = tmp_path_factory.mktemp("places")
    (home / "foreign").mkdir()
    (home / "foreign" / "thesis.tex").touch()
    for name in ("run", "stopped", "classifier"):
        (home / name).mkdir(exist_ok=True)
        finished_run(home / name, model="tiny")
    shutil.rmtree(home / "stopped" / "adapter")
    (home / "classifier" / "adapter" / "task.json").write_text("{}")
    text = (ROOT / "configs/experiments/nlg-main-embedded.yaml").read_text(encoding="utf-8")
    (home / "experiment.yaml").write_text(text.replace("tinymath:test", "nope.csv"), encoding="utf-8")
    made = {word: home / word.lower() for word in ("RUN", "STOPPED", "CLASSIFIER", "FOREIGN")}
    return {"OUT": home / "out", "EXPERIMENT": home / "experiment.yaml", **made}


@pytest.mark.parametrize(("words", "message"), REFUSALS, ids=[" ".join(words) for words, _ in REFUSALS])
def test_a_refusal_takes_less_than_two_seconds_of_cpu(words, message, places):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *(str(places.get(word, word)) for word in words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert "word@" not in done.stderr
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < LIMIT
    assert not places["OUT"].exists() and not (ROOT / "runs" / "nope").exists()


def shown() -> list[tuple[str, str]]:
    """[(command, the error that docs/start.md shows for it)]"""
    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    return re.findall(r"^\$ (python .*)\n(error: .*)$", page, flags=re.M)


@pytest.mark.parametrize(("line", "error"), shown())
def test_the_refusals_of_the_page_are_what_the_commands_print(line, error):
    _, *words = shlex.split(line)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", error + "\n")


def test_the_page_shows_refusals():
    assert len(shown()) >= 6


def test_a_name_is_a_path_if_it_begins_like_one_or_lies_in_a_folder_that_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    paths = ("./a", "../a", "/a", "~/a", "a/b/c", "runs/a", "models/a")
    assert [name for name in (*paths, "gpt2", "openai/gsm8k", "meta-llama/Llama-2-7b-hf") if is_path(name)] == [*paths]


def test_a_folder_is_a_model_or_holds_something_trained(tmp_path):
    (tmp_path / "file").touch()
    for check, kind in ((check_model_folder, "model folder"), (lambda name: check_trained(name, "--model"), "--model")):
        check("someone/base")
        with pytest.raises(UserError, match=f"{kind} .*file is a file; name the folder"):
            check(str(tmp_path / "file"))
        with pytest.raises(UserError, match=f"{kind} .*none does not exist"):
            check(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_model_folder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_trained(str(tmp_path), "--model")
    with pytest.raises(UserError, match="no safetensors weights"):
        check_model_folder(str(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="the run has not ended"):
        check_trained(str(tmp_path), "--model")
