"""The device and the number of processes have one source, and a GPU that torch cannot use is named, with a simulated driver."""

import os
import resource
import runpy
import subprocess
import sys

import pytest
import torch

import eval.all
from ba_lora import hub, preflight
from ba_lora.errors import UserError
from ba_lora.experiments import single
from ba_lora.inference import backends
from ba_lora.inference.subject import open_subject
from ba_lora.machine import devices, driver
from ba_lora.training import launch, prepare, run
from ba_lora.training.command_line import parse
from ba_lora.training.first_checks import check_inputs
from ba_lora.training.model_numbers import parameters_of
from ba_lora.training.run import training_arguments
from tests.common import ROOT, small_llama
from tests.machine.drivers import EIGHT, answer

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPUs of this machine")
TINY = str(ROOT / "configs/nlg/tiny.yaml")
LIMIT = 5  # seconds of CPU for a refusal
CU126, CU130 = "https://download.pytorch.org/whl/cu126", "https://download.pytorch.org/whl/cu130"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that gives this machine a driver (see `drivers.answer`) and torch a CUDA version."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(driver, "DEVICES", str(tmp_path / "nvidia[0-9]*"))
    monkeypatch.setattr(driver, "KERNEL", str(tmp_path / "version"))

    def build(text="", status=0, cuda="13.0"):
        driver._ask.cache_clear()
        monkeypatch.setenv("PATH", answer(tmp_path / "bin", text, status))
        monkeypatch.setattr(torch.version, "cuda", cuda)
        return tmp_path

    yield build
    driver._ask.cache_clear()


@pytest.mark.parametrize(
    ("version", "cuda", "parts"),
    [
        ("550.54.15", "13.0", ["built for CUDA 13.0, which needs driver 580 or newer", CU126, "or update the driver"]),
        ("525.60.13", "13.2", ["needs driver 580", CU126]),
        ("525.60.12", "12.6", ["needs driver 525.60.13 or newer", "update the driver to 525.60.13 or newer"]),
        ("470.57.02", "13.0", ["needs driver 580", "update the driver to 525.60.13 or newer; no build of torch>=2.11"]),
        ("550.54.15", None, ["is a build without CUDA", f"{sys.executable} -m pip install --upgrade ", CU126]),
        ("580.65.06", None, ["is a build without CUDA", CU130]),
        ("590.10", "13.0", ["cannot use them (", "restart the machine or ask its administrator"]),
    ],
)
def test_a_driver_without_a_matching_torch_is_named_with_the_build_and_the_remedy(machine, version, cuda, parts):
    machine("\n".join([f"{version}, NVIDIA A40, 46068, 1"] * 8), cuda=cuda)
    with pytest.raises(UserError) as raised:
        devices.gpus()
    message = str(raised.value)
    for part in (f"driver {version} sees 8 GPUs (NVIDIA A40)", f"torch {torch.__version__}", "--use_cpu", *parts):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "status"),
    [("No devices were found", 0), ("No devices were found", 6), ("", 0), ("NVIDIA-SMI has failed", 9)],
)
def test_a_driver_that_sees_no_gpu_means_the_cpu(machine, text, status):
    machine(text, status)
    assert (devices.gpus(), devices.device()) == (0, "cpu")


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", " -1"])
def test_gpus_that_the_user_hides_are_not_missed(machine, monkeypatch, hidden):
    machine(EIGHT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert devices.gpus() == 0 and launch.processes() == (1, 1)


@pytest.mark.parametrize("shown", ["9", "0,1", "GPU-12"])
def test_a_wrong_choice_of_gpus_is_named(machine, monkeypatch, shown):
    machine(EIGHT.replace("550.54.15", "580.65.06"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    with pytest.raises(UserError, match=f"CUDA_VISIBLE_DEVICES is {shown}"):
        devices.gpus()


def test_without_an_answer_of_nvidia_smi_the_device_files_count(machine):
    place = machine("Failed to initialize NVML: Driver/library version mismatch", 18, cuda="12.6")
    for number in range(2):
        (place / f"nvidia{number}").touch()
    assert devices.gpus(check=False) == 0 and devices.gpus() == 0  # no kernel module
    (place / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.51.03  Release Build\n"
    )
    with pytest.raises(UserError, match=r"driver 575\.51\.03 sees 2 GPUs .* \(nvidia-smi fails: .*version mismatch\)"):
        devices.gpus()
    (place / "bin" / "nvidia-smi").unlink()
    with pytest.raises(UserError, match=r"driver 575\.51\.03 sees 2 GPUs and torch"):
        devices.gpus()


def test_an_nvidia_smi_that_does_not_answer_is_not_waited_for(machine, monkeypatch):
    place = machine()
    monkeypatch.setattr(driver, "SECONDS", 0.2)
    (place / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 30\n")
    assert devices.gpus() == 0
    (place / "nvidia0").touch()
    (place / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5\n")
    assert driver.seen() == driver.Driver("550.54.15", 1, trouble="nvidia-smi fails: no answer in 0.2 s")


def test_processes_trainer_and_evaluation_ask_the_same_function(machine, monkeypatch):
    """torch counts eight GPUs and can use none, as with a driver that is too old."""
    machine(EIGHT)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    arguments = parse(["--config", TINY, "--output_dir", "unused"])
    for ask in (
        launch.processes,
        devices.device,
        lambda: training_arguments(arguments, 1),
        lambda: check_inputs(arguments),
        lambda: open_subject("tiny"),
    ):
        with pytest.raises(UserError, match="the driver 550.54.15 sees 8 GPUs"):
            ask()
    assert launch.processes(use_cpu=True) == launch.processes(check=False) == (1, 1)
    chosen = parse(["--config", TINY, "--output_dir", "unused", "--use_cpu"])
    assert training_arguments(chosen, 1).use_cpu and launch.command(chosen, [])[1:] == ["-u", str(launch.TRAIN)]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("NPROC", "8")
    with pytest.raises(UserError, match="NPROC is 8 and 4 can be used of the GPUs here.*set it to 4"):
        launch.processes()
    assert launch.processes(use_cpu=True) == launch.processes(check=False) == (8, 1)
    monkeypatch.setenv("NPROC", "2")
    assert launch.processes() == (2, 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.device() == "cuda:1" and devices.device(use_cpu=True) == "cpu"


def test_a_large_model_on_the_cpu_has_to_be_asked_for(machine, tmp_path):
    machine("No devices were found", 6)
    words = ["--model", "meta-llama/Llama-2-7b-hf", "--template", "alpaca", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(
        UserError, match=r"Llama-2-7b-hf has 6\.7B parameters and there is no GPU here; .* add --use_cpu"
    ):
        check_inputs(parse(words))
    check_inputs(parse([*words, "--use_cpu"]))
    assert not (tmp_path / "run").exists()


def test_the_parameters_of_a_model_are_counted_before_it_is_adapted(tmp_path, monkeypatch):
    model = small_llama()
    model.save_pretrained(tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert parameters_of(str(tmp_path)) == count and parameters_of("someone/unknown") is None
    monkeypatch.setattr(devices, "ON_CPU", count - 1)
    arguments = parse(["--config", TINY, "--output_dir", "unused", "--model", "someone/unknown"])
    with pytest.raises(UserError, match="someone/unknown has 0.0B parameters and there is no GPU"):
        prepare.adapt(arguments, model, arguments.objective(), 10)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert parameters_of(str(tmp_path)) is None


@pytest.mark.parametrize(("processes", "place"), [("1", "meta"), ("2", "cpu")])
def test_the_model_stays_in_the_hosts_memory_where_zero_3_is_used(monkeypatch, processes, place):
    """One process has nothing to divide and leaves the config out."""
    monkeypatch.setattr(prepare, "device", lambda use_cpu: "meta")  # stands for the GPU
    monkeypatch.setenv("WORLD_SIZE", processes)
    model, zero3 = small_llama(), str(ROOT / "configs/deepspeed/zero3.json")
    prepare.to_device(model, parse(["--config", TINY, "--output_dir", "unused", "--deepspeed", zero3]))
    assert {each.device.type for each in model.parameters()} == {place}


@pytest.fixture
def two_gpus(monkeypatch):
    """torch finds two GPUs, unless CUDA_VISIBLE_DEVICES hides them; what `hide_gpus` sets is undone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.delenv("NPROC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ["CUDA_VISIBLE_DEVICES"] == "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(("more", "visible", "there", "count"), [([], "0,1", 2, 2), (["--use_cpu"], "-1", 0, 1)])
def test_the_evaluation_after_a_training_with_use_cpu_sees_no_gpu(
    two_gpus, monkeypatch, tmp_path, more, visible, there, count
):
    """In this process, and with the Python of BA_LORA_VLLM, which is a script here."""
    seen, home = [], tmp_path / "vllm"
    monkeypatch.setattr(preflight, "check", lambda arguments: seen.append(devices.gpus()))
    monkeypatch.setattr(launch, "start", lambda command, use_cpu: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setattr(eval.all, "main", lambda words: seen.append(backends.copies("transformers", None, None)))
    for name in ("push_after", "write_card"):
        monkeypatch.setattr(single, name, lambda *given, **options: None)
    monkeypatch.setattr(single, "closing", lambda *given: [])
    words = ["--output_dir", str(tmp_path / "run"), *more]
    single.train_and_evaluate(TINY, ["--eval_backend", "transformers", *words])
    assert seen == [there, visible, count]

    (home / "bin").mkdir(parents=True)
    said = tmp_path / "said"
    (home / "bin" / "python").write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" > {said}\n')
    (home / "bin" / "python").chmod(0o755)
    find = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "vllm" else find(name))
    monkeypatch.setenv("BA_LORA_VLLM", str(home))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    single.train_and_evaluate(TINY, ["--eval_backend", "auto", *words])
    shown, *asked = said.read_text().split()
    assert shown == visible and asked[asked.index("--backend") + 1] == "auto"


@pytest.mark.parametrize("start", [("train.py", "--config", TINY), ("-m", "ba_lora.experiments", "one", TINY)])
def test_the_refusal_takes_less_than_five_seconds_and_writes_nothing(tmp_path, start, environment_of):
    output = tmp_path / "run"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, *start, "--output_dir", str(output)]
    environment = environment_of(tmp_path / "bin", EIGHT)
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: the driver 550.54.15 sees 8 GPUs (NVIDIA A40) and torch ")
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < LIMIT
    assert not output.exists()


def test_a_training_with_use_cpu_hides_the_gpus_from_every_library(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(run, "train", lambda arguments: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setattr(hub, "push_after", lambda folder, arguments: None)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", TINY, "--output_dir", str(tmp_path / "run"), "--use_cpu"])
    runpy.run_path(str(launch.TRAIN))["main"]()
    assert seen == ["-1"]
