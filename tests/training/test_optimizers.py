"""--optimizer: the one that transformers makes, its memory in the plan, a resume to the same bits, and its refusals."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from ba_lora.errors import Stopped, UserError
from ba_lora.methods.attach import attach
from ba_lora.planning.memory import held
from ba_lora.planning.plan import plan
from ba_lora.planning.standing import standing, state_of
from ba_lora.training import optimizers
from ba_lora.training.command_line import parse
from ba_lora.training.optimizers import OPTIMIZERS, check_installed, check_optimizer, optimizer_of
from ba_lora.training.run import train, training_arguments
from tests.common import small_llama
from tests.training.resuming import StopAfterTheFirstStep

ZERO2 = "configs/deepspeed/zero2.json"
OFFLOAD = "configs/deepspeed/zero2-offload.json"
RUN = ["--rank", "4", "--limit", "12", "--max_length", "96", "--max_steps", "3", "--save_steps", "10", "--use_cpu"]
RUN += ["--effective_batch_size", "4", "--micro_batch_size", "2", "--progress", "false", "--weight_decay", "0.01"]
CHOICE = ["--target_modules", "all-linear", "--layers", "0,2", "--rslora", "--modules_to_save", "model.norm"]


def made(name, folder):
    """The optimizer that a run makes of `name`."""
    arguments = parse(["--output_dir", str(folder), "--optimizer", name, "--use_cpu"])
    kind, options = Trainer.get_optimizer_cls_and_kwargs(training_arguments(arguments, 1))
    return lambda parameters: kind(parameters, **options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_planned_state_is_that_of_the_real_optimizer(name, tmp_path):
    wide = small_llama(
        hidden_size=1024, num_attention_heads=8, num_hidden_layers=1
    )  # with tensors of 64 and 8,192 numbers
    model = attach(wide, "lora", rank=8, alpha=8)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = made(name, tmp_path / "run")(trained)
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    real = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim() and not key.startswith("qmap")
    ]
    predicted = held(model)._replace(optimizer=name)
    assert state_of(predicted) == standing(predicted)["optimiser"]
    assert state_of(predicted) == pytest.approx(sum(value.nbytes for value in real), rel=1e-3)


def test_the_plan_follows_the_choice():
    words = ["--model", "tiny", "--output_dir", "x", "--dry_run", "--save_steps", "5"]
    plans = {name: plan(parse([*words, *name]), memory=False) for name in ((), ("--optimizer", "sgd"))}
    adamw, sgd = plans.values()
    assert adamw["memory"]["optimiser"] == 2 * adamw["memory"]["adapter"] and sgd["memory"]["optimiser"] == 0
    assert adamw["disk"]["checkpoints"] == 3 * sgd["disk"]["checkpoints"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_same_bits(name, tmp_path):
    words = [*RUN, *CHOICE, "--optimizer", name]
    whole = train(parse([*words, "--output_dir", str(tmp_path / "whole")]))
    stopped = ["--output_dir", str(tmp_path / "stopped")]
    with pytest.raises(Stopped):
        train(parse([*words, *stopped]), callbacks=[StopAfterTheFirstStep()])
    resumed = train(parse([*words, *stopped, "--resume"]))
    one, two = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert {key.split(".")[4] for key in one} == {"0", "2", "weight"}  # of the layers, and of model.norm
    assert json.loads((whole / "run.json").read_text())["config"]["optimizer"] == name
    for changed in (["--optimizer", "adamw_torch" if name != "adamw_torch" else "sgd"], ["--layers", "0"]):
        with pytest.raises(UserError, match=changed[0].removeprefix("--")):
            train(parse([*words, *stopped, "--resume", *changed]))


def test_the_default_is_adamw():
    assert optimizer_of(None, on_gpu=True, deepspeed=False) == "adamw_torch_fused"
    assert optimizer_of(None, on_gpu=True, deepspeed=True) == optimizer_of(None, on_gpu=False, deepspeed=False)
    assert optimizer_of("sgd", on_gpu=True, deepspeed=False) == "sgd"


def test_what_cannot_work_ends_in_one_line(monkeypatch):
    def refused(message, call):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)

    refused("did you mean 'adafactor'", lambda: parse(["--output_dir", "x", "--optimizer", "adafacto"]))
    own = f"--optimizer sgd: --deepspeed {OFFLOAD} has an optimizer of its own (AdamW); leave one of them out"
    refused(own, lambda: check_optimizer("sgd", OFFLOAD))
    cut = f"--optimizer adafactor does not go with --deepspeed {ZERO2}, which cuts the tensors that it works on; use adamw_torch, sgd"
    refused(cut, lambda: check_optimizer("adafactor", ZERO2))
    check_optimizer("sgd", ZERO2), check_optimizer("adafactor", None), check_optimizer(None, OFFLOAD)
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    refused("--optimizer adamw_8bit needs the package bitsandbytes", lambda: check_installed("adamw_8bit"))
    check_installed("adafactor")
