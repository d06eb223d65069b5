"""--compile: what it refuses, and compiled trainings beside uncompiled ones."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.objective.settings import Objective
from ba_lora.training.command_line import parse
from ba_lora.training.compiled import check_machine, compile_layers
from ba_lora.training.run import train
from ba_lora.training.trainer import BALoRATrainer
from tests.common import SIZES, collate, command, ragged_samples, small_llama
from tests.training.lives import life, on_call, steps_in, weights
from tests.training.resuming import GENERATION, SHORT

REFUSED = [
    (["--quantize", "nf4"], "--compile with --quantize nf4: 4-bit layers were not tried; leave one of them out"),
    (
        ["--deepspeed", "configs/deepspeed/zero2.json"],
        "--compile with --deepspeed configs/deepspeed/zero2.json: it moves",
    ),
    (["--gradient_checkpointing"], "--compile with --gradient_checkpointing: "),
    (["--log_gradient_norms"], "--compile with --log_gradient_norms: torch runs backward"),
    (
        ["--modules_to_save", "norm"],
        "--compile with --modules_to_save norm: modules trained whole were not tried; leave",
    ),
    (["--packing"], "--compile with --packing: "),
    (["--teacher_share", "0.5"], "--compile with --teacher_share 0.5: "),
    (["--dropout", "0.1", "--method", "lora"], "--compile with --dropout 0.1: a compiled layer draws other random"),
    (["--method", "loha"], "--compile with --method loha: every adapted layer draws a random number"),
    (["--method", "dora"], "--compile with --method dora: torch cannot compile its layers whole"),
    (["--task", "sst2", "--model", "encoder"], "--compile is an option of generation; leave it out with --task sst2"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_was_not_compared_is_refused_by_both_names(words, message):
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        parse(["--output_dir", "run", "--compile", *words])
    assert "\n" not in str(refused.value)
    assert not parse(["--output_dir", "run"]).compile


def test_a_dry_run_says_that_its_predictions_are_for_uncompiled_layers():
    said = command("train.py", "--dry_run", "--use_cpu", "--compile")
    assert said.returncode == 0
    assert re.search(r"^compiled +each layer by itself; memory and time are predicted without that$", said.stdout, re.M)
    assert "compiled" not in command("train.py", "--dry_run", "--use_cpu").stdout


def test_several_processes_and_a_missing_compiler_are_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match="needs a C\\+\\+ compiler on a CPU and 'no-such-compiler' is not there; install"
    ):
        check_machine(use_cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--compile was not tried with several processes and this run has 2; leave it"):
        check_machine(use_cpu=True)


def with_dropout():
    return GPT2LMHeadModel(GPT2Config(vocab_size=768, n_embd=32, n_layer=1, n_head=2, n_positions=128))


def with_experts():
    return MixtralForCausalLM(MixtralConfig(**SIZES | {"vocab_size": 768, "num_local_experts": 2}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            with_dropout,
            "this model draws random numbers in training (its own dropout), and a compiled layer draws others; leave",
        ),
        (with_experts, "this model has experts, which were not tried; leave it out"),
    ],
)
def test_models_that_were_not_compared_are_refused_before_anything_is_written(here, make, message):
    home = here("generation")
    make().save_pretrained(home / "M")
    with pytest.raises(UserError, match=f"^--compile: {re.escape(message)}"):
        train(parse([*GENERATION, *SHORT, "--method", "lora", "--compile", "--output_dir", "new"]))
    assert not (home / "new/run.json").exists()


def test_a_run_is_not_resumed_with_another_compile(here):
    here("generation")
    run = json.loads(Path("run/run.json").read_text())
    assert run["config"]["compile"] is False
    with pytest.raises(UserError, match="--resume: compile is True and was False in run; give the first run's options"):
        train(parse([*GENERATION, *SHORT, "--resume", "--compile"]))


FOUR_STEPS = [*GENERATION, *SHORT[2:], "--max_steps", "4", "--logging_steps", "1", "--save_steps", "2"]
FOUR_STEPS += ["--lambda1", "0.5"]
KINDS = {
    "lora": ["--method", "lora", "--regularizers", "on"],
    "pissa": ["--method", "pissa", "--regularizers", "on"],
    "ba-lora": ["--method", "ba-lora", "--validation_share", "0.25"],
    "full": ["--method", "full", "--regularizers", "on"],
}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory, one_thread):
    """A cache of kernels that the tests share, compiled by the process that needs them."""
    import torch._inductor.config as inductor

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setattr(inductor, "compile_threads", 1)
        yield
    torch.compiler.reset()


def logged(folder):
    """The lines of metrics.jsonl without times and memory."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    measured = ("second", "memory")
    return [{n: v for n, v in json.loads(line).items() if not any(part in n for part in measured)} for line in lines]


def update(folder):
    """(names of the trained tensors, what four steps changed in them)."""
    trained = load_file(folder / "checkpoints/checkpoint-4/trained.safetensors")
    start = folder / "checkpoints/start.safetensors"
    first = load_file(start if start.is_file() else folder.parent / "M/model.safetensors")
    changes = [tensor - first[name.removeprefix("trained.")] for name, tensor in trained.items()]
    return [*trained], torch.cat([change.flatten() for change in changes])


def names_in(folder):
    return [sorted(load_file(file)) for file in sorted(folder.glob("*/*.safetensors"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_run_is_the_uncompiled_one_within_rounding(here, compiler, kind, capsys):
    home, words = here("generation"), [*FOUR_STEPS, *KINDS[kind]]
    train(parse([*words, "--output_dir", "plain"]))
    torch._dynamo.utils.counters.clear()
    train(parse([*words, "--output_dir", "compiled", "--compile"]))
    assert "2 layers compiled in" in capsys.readouterr().out
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 2 and not counters["graph_break"]  # student and teacher, each whole

    plain, compiled = logged(home / "plain"), logged(home / "compiled")
    for before, after in zip(plain, compiled, strict=True):
        consistency = before.pop("consistency", 0), after.pop("consistency", 0)
        assert after == pytest.approx(before, rel=1e-5)
        assert consistency[1] == pytest.approx(consistency[0], rel=1e-3, abs=1e-8)
    first = json.loads((home / "compiled/metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1 and first["consistency"] == 0
    (names, moved), (same, expected) = update(home / "compiled"), update(home / "plain")
    assert names == same and (moved - expected).norm() <= 1e-4 * expected.norm()
    assert names_in(home / "compiled") == names_in(home / "plain") != []


@pytest.mark.slow
def test_a_killed_compiled_run_continues_to_the_same_bits(here, compiler, tmp_path, monkeypatch):
    home, words = here("generation"), [*FOUR_STEPS, *KINDS["ba-lora"], "--compile"]
    assert life(home / "whole", *words)[0] == 0
    kill = on_call(BALoRATrainer, "_save_checkpoint", 2)  # after step 4
    assert life(home / "killed", *words, before=kill)[0] == -signal.SIGKILL
    assert steps_in(home / "killed") == [2]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # without the kernels of the first life
    assert life(home / "killed", *words)[0] == 0
    assert logged(home / "killed") == logged(home / "whole")
    assert weights(home / "killed") == weights(home / "whole")


class Untrue(LlamaDecoderLayer):
    """A layer with another function when it is compiled."""

    factor, only_with_gradients = 1.0, False

    def forward(self, *inputs, **options):
        output = super().forward(*inputs, **options)
        is_met = torch.is_grad_enabled() or not self.only_with_gradients
        return output * self.factor if torch.compiler.is_compiling() and is_met else output


def small_trainer(folder, student):
    options = {"per_device_train_batch_size": 4, "use_cpu": True, "report_to": "none", "remove_unused_columns": False}
    return BALoRATrainer(
        student,
        Objective(0.5, 0.1, 0.1, top_k=5, svd_k=3),
        TrainingArguments(str(folder), **options),
        train_dataset=ragged_samples(8),
        data_collator=collate,
    )


@pytest.mark.slow  # torch.compile takes seconds to import
def test_what_torch_cannot_compile_is_refused_in_one_line(tmp_path, compiler, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "false"))
    trainer = small_trainer(tmp_path, attach(small_llama(), "lora", rank=4, alpha=4))
    with pytest.raises(UserError, match=r"^--compile: torch cannot compile LlamaDecoderLayer \(.+\); leave it out$"):
        compile_layers(trainer)


@pytest.mark.slow  # torch.compile takes seconds to import
@pytest.mark.parametrize(
    ("factor", "only_with_gradients", "message"),
    [
        (1.0, False, None),
        (1.5, False, "the first micro-batch has another loss or gradient when compiled"),
        (
            1.0 + 1e-5,
            True,
            r"compiled teacher and student round differently \(consistency .*e-.* at the start, 0 without",
        ),
    ],
)
def test_a_model_that_compiled_code_changes_is_refused(tmp_path, factor, only_with_gradients, message):
    student = attach(small_llama(), "ba-lora", rank=4, alpha=4)
    for layer in student.get_base_model().model.layers:
        layer.__class__, layer.factor, layer.only_with_gradients = Untrue, factor, only_with_gradients
    trainer = small_trainer(tmp_path, student)
    random = torch.get_rng_state()
    if message is None:
        compile_layers(trainer, backend="eager")
    else:
        with pytest.raises(UserError, match=message):
            compile_layers(trainer, backend="eager")
    assert torch.equal(random, torch.get_rng_state())  # and nothing of the training has changed
    assert trainer.objective_callback.model.sums == {}
    assert all(parameter.grad is None for parameter in student.parameters())
