"""SIGINT and SIGTERM to any command, an evaluation, a training: each ends in order with one line and leaves no process behind.

If a test needs a signal during an import, the library is replaced by a module that reports the import and sleeps.
"""

import contextlib
import json
import signal
import sys
import time

import psutil
import pytest

from tests.eval.execution.sandboxes import box_or_skip
from tests.processes import GROUP, LIMIT, ROOT, SAID, SIGNALS, lines_of, orphans, send, sleeping, start, wait_until

SLOW = pytest.mark.slow
TWO_OF_FOUR = pytest.mark.parametrize(  # of the four combinations of SIGNALS and GROUP
    ("number", "group"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM"),
        pytest.param(signal.SIGINT, False, id="SIGINT to the parent", marks=SLOW),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to the group", marks=SLOW),
    ],
)


def run_script(folder, body, **options):
    """A command with this body as its `main`, run under run_cli like the project's own."""
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    head = "import ctypes, os, signal, subprocess, sys, threading, time\nfrom pathlib import Path\n"
    text = f"{head}from ba_lora import signals\nfrom ba_lora.errors import run_cli\nhere = Path(sys.argv[1])\ndef main():\n"
    (folder / "command.py").write_text(f"{text}{lines}run_cli(main)\n")
    environment = {"PYTHONPATH": str(ROOT)}
    return start(sys.executable, str(folder / "command.py"), str(folder), env=environment, **options)


# Any command

STUCK = {
    "asleep": "time.sleep(1000)",
    "in a library that Python cannot leave": (
        "mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock\nlock(mutex)\nlock(mutex)"
    ),
    "in a library that swallows it": "while True:\n    try: time.sleep(1000)\n    except BaseException: pass",
    "in a library that turns it into another error": "try: time.sleep(1000)\nexcept BaseException: raise ImportError('x')",
    "in a finalizer": "class Last:\n    def __del__(self): time.sleep(0.6)\nLast()\ntime.sleep(1000)",
    "in a callback of multiprocessing": (
        "import multiprocessing.util\nclass Last: pass\nlast = Last()\n"
        "multiprocessing.util.Finalize(last, time.sleep, (0.6,))\ndel last\ntime.sleep(1000)"
    ),
    "in threads": "threads = [threading.Thread(target=time.sleep, args=(1000,)) for _ in '12']\n"
    "for each in threads: each.start()\nfor each in threads: each.join()",
    "waiting for a child": "subprocess.run(['sleep', '1000'])",
    "with a child in another session": (
        "subprocess.Popen(['sh', '-c', 'trap \"\" INT TERM; sleep 999 & sleep 1000'], start_new_session=True).wait()"
    ),
}


@SIGNALS
@pytest.mark.parametrize("body", STUCK.values(), ids=STUCK)
def test_a_command_ends_with_one_line_whatever_it_is_in(tmp_path, number, body):
    with orphans() as left:
        process = run_script(tmp_path, f"(here / 'ready').touch()\n{body}")
        wait_until((tmp_path / "ready").exists, process)
        time.sleep(0.2)
        assert send(process, number) == (128 + number, SAID[number])
        assert left() == []


def test_blocks_are_left_in_order_and_a_finished_command_keeps_its_status(tmp_path):
    process = run_script(
        tmp_path,
        "signals.GRACE = 99\n"  # however busy the machine is
        "try:\n    (here / 'ready').touch(); time.sleep(99)\nfinally:\n    (here / 'left').touch()",
    )
    wait_until((tmp_path / "ready").exists, process)
    assert send(process, signal.SIGTERM)[0] == 143 and (tmp_path / "left").exists()
    assert run_script(tmp_path, "return 3").wait(LIMIT) == 3


def test_a_command_under_nohup_goes_on_after_sigint_and_ends_at_sigterm(tmp_path):
    process = run_script(tmp_path, "(here / 'ready').touch()\ntime.sleep(1000)", ignored=[signal.SIGINT])
    wait_until((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(Exception, match="timed out"):
        process.wait(2)
    assert send(process, signal.SIGTERM) == (143, SAID[signal.SIGTERM])


def test_signals_of_a_forked_child_are_its_own(tmp_path):
    body = """
child = os.fork()
if child == 0:
    time.sleep(1000)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
time.sleep(2 * signals.GRACE)
return 0 if status == signal.SIGTERM else 4
"""
    process = run_script(tmp_path, body)
    assert (process.wait(LIMIT), process.communicate()[1]) == (0, "")


CHILD = "import signal, sys, time; open(sys.argv[1], 'w'); {}; time.sleep(1000)"


@pytest.mark.parametrize("how", ["killed", "interrupted twice"])
def test_a_command_that_another_runs_ends_with_it(tmp_path, how):
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    words = [sys.executable, "-c", CHILD.format(deaf), str(tmp_path / "ready")]
    with orphans() as left:
        process = run_script(tmp_path, f"status, number = signals.run({words!r})\nprint(status)\nreturn 128 + number")
        wait_until((tmp_path / "ready").exists, process)
        time.sleep(0.3)
        if how == "killed":
            process.kill()
            process.wait(LIMIT)
        else:
            process.send_signal(signal.SIGINT)
            time.sleep(1.5)
            assert process.poll() is None
            assert send(process, signal.SIGINT)[0] == 130
        assert left() == []


# Evaluations


MODULES = [
    pytest.param(name, marks=SLOW) for name in ("eval.humaneval", "eval.all", "eval.glue", "ba_lora.tiny.pretrain")
]


@SIGNALS
@pytest.mark.parametrize("module", ["eval.gsm8k", "ba_lora.chat", *MODULES])
def test_a_command_that_still_imports_its_libraries_ends_with_one_line(tmp_path, number, module):
    library = {"eval.glue": "numpy", "ba_lora.chat": "torch", "ba_lora.tiny.pretrain": "torch"}.get(module, "tqdm")
    environment, asleep = sleeping(tmp_path, library)
    words = {"eval.all": ["tiny"], "ba_lora.chat": ["--model", "tiny"], "ba_lora.tiny.pretrain": ["--output_dir", "x"]}
    process = start(sys.executable, "-m", module, *words.get(module, []), env=environment)
    wait_until(asleep, process)
    assert send(process, number) == (128 + number, SAID[number])


def write_lines(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def has_started(process, words, count=1):
    """Return True if at least `count` processes below this one have `words` in their command."""
    found = 0
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += words in " ".join(child.cmdline())
    return found >= count


@TWO_OF_FOUR
def test_an_evaluation_leaves_no_sandbox(tmp_path, number, group):
    box_or_skip()
    task = {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(f): f(1)"}
    data = write_lines(tmp_path / "data.jsonl", [task | {"task_id": f"T/{n}"} for n in range(4)])
    program = "import time\ndef f(x):\n    time.sleep(1000)\n"
    given = write_lines(tmp_path / "given.jsonl", [{"id": f"T/{n}", "completion": program} for n in range(4)])
    words = ["--rescore", given, "--data", data, "--output_dir", str(tmp_path / "out")]
    with orphans() as left:
        process = start(sys.executable, "-m", "eval.humaneval", *words)
        wait_until(lambda: has_started(process, "inside.py"), process)
        time.sleep(0.5)
        assert send(process, number, group) == (128 + number, SAID[number])
        assert left() == [] and not (tmp_path / "out" / "score.json").exists()


@pytest.mark.slow
@SIGNALS
def test_an_evaluation_leaves_no_process_that_compares_formulas(tmp_path, number):
    tower = "\\boxed{9^{9^{9^{%d}}}}"
    given = [{"id": n, "completion": tower % (n + 9), "reference": str(n)} for n in range(4)]
    words = ["--rescore", write_lines(tmp_path / "given.jsonl", given), "--output_dir", str(tmp_path / "out")]
    with orphans() as left:
        process = start(sys.executable, "-m", "eval.hendrycks_math", *words)
        wait_until(lambda: has_started(process, "latex_worker"), process)
        time.sleep(0.5)
        assert send(process, number) == (128 + number, SAID[number])
        assert left() == []


GSM8K = [sys.executable, "-m", "eval.gsm8k", "--model", "tiny", "--limit", "300", "--output_dir"]


def kept(folder):
    return (folder / "generations.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.slow
@TWO_OF_FOUR
def test_an_evaluation_keeps_what_it_has_generated_and_goes_on(tmp_path, number, group):
    out = tmp_path / "out"
    with orphans() as left:
        process = start(*GSM8K, str(out))
        wait_until(lambda: (out / "generations.jsonl").is_file() and kept(out), process)
        status, said = send(process, number, group)
        assert status == 128 + number and said.endswith(SAID[number]) and "Traceback" not in said
        assert left() == []
    before = kept(out)
    assert 0 < len(before) < 300 and not (out / "score.json").exists()
    assert [json.loads(line)["completion"] for line in before[:-1]]
    if number == signal.SIGTERM:
        assert start(*GSM8K, str(out)).wait(LIMIT) == 0
        assert json.loads((out / "score.json").read_text())["resumed"] >= len(before) - 1 and len(kept(out)) == 300


@pytest.mark.slow
@SIGNALS
def test_an_evaluation_that_opens_its_model_or_writes_its_score_ends_with_one_line(tmp_path, number):
    environment, asleep = sleeping(tmp_path, "peft")
    process = start(*GSM8K, str(tmp_path / "first"), env=environment)
    wait_until(asleep, process)
    status, said = send(process, number)
    assert status == 128 + number and said.endswith(SAID[number]) and "Traceback" not in said
    out = tmp_path / "out"
    process = start(*GSM8K, str(out))
    wait_until(lambda: (out / "generations.jsonl").is_file() and len(kept(out)) == 300, process, pause=0.001)
    status, said = send(process, number)  # it is scoring and writing, or has just ended
    assert status in (0, 128 + number) and "Traceback" not in said
    assert len(kept(out)) == 300 and not list(out.glob(".*"))
    assert start(*GSM8K, str(out), *([] if status else ["--overwrite"])).wait(LIMIT) == 0


# A single training; tests/training/test_checkpoint_signals.py covers the moments within a step, and
# tests/experiments/test_matrix_signals.py the runs of a matrix

TRAIN = [sys.executable, "train.py", "--config", "configs/nlg/tiny.yaml", "--limit", "640", "--logging_steps", "1"]


@SIGNALS
def test_a_training_that_imports_its_libraries_ends_with_one_line(tmp_path, number):
    environment, asleep = sleeping(tmp_path, "accelerate")
    process = start(*TRAIN, "--output_dir", str(tmp_path / "run"), env=environment)
    wait_until(asleep, process)
    assert send(process, number) == (128 + number, SAID[number])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@SIGNALS
@GROUP
def test_a_training_writes_its_checkpoint_and_leaves_nothing(tmp_path, number, group):
    run = tmp_path / "run"
    with orphans() as left:
        process = start(*TRAIN, "--output_dir", str(run))
        wait_until(lambda: lines_of(run) > 1, process)
        status, said = send(process, number, group)
        assert status == 75 and f"stopped: {signal.Signals(number).name} after step" in said and "Traceback" not in said
        assert left() == []
    assert len(list(run.rglob("checkpoint-*/manifest.json"))) == 1
    process = start(*TRAIN, "--output_dir", str(run), "--resume")
    wait_until((run / "adapter" / "adapter_model.safetensors").exists, process)
    assert send(process, number, group)[0] == 0  # after the last step it ends by itself
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
