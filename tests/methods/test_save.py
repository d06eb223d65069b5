"""Every method starts at the right point, saves the right tensors, and opens again as the same model."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors import safe_open

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.names import start_of
from ba_lora.methods.save import export, export_merged, find_run, load
from ba_lora.models import load_model
from ba_lora.objective.settings import Objective
from ba_lora.tiny import MODEL_DIR
from ba_lora.training.objective_model import ObjectiveModel
from tests.common import collate, ragged_samples, small_llama

LOW_RANK = ["lora", "pissa", "pissa_niter_4", "ba-lora"]


@pytest.fixture
def base(tmp_path):
    """A model folder, as a user has it."""
    small_llama().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def train_a_little(model, steps=3):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = collate(ragged_samples(4))
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return batch


@pytest.mark.parametrize("method", [*LOW_RANK, "full"])
def test_output_is_unchanged_at_the_start_and_changed_after_training(method):
    model = attach(small_llama(), method, rank=4, alpha=4)
    batch = collate(ragged_samples(4))
    original = small_llama()(**batch).logits
    torch.testing.assert_close(model(**batch).logits, original, rtol=1e-4, atol=1e-4)
    train_a_little(model)
    assert (model(**batch).logits - original).abs().max() > 0.05


@pytest.mark.parametrize("method", ["pissa", "ba-lora", "pissa_niter_16"])
@pytest.mark.parametrize("alpha", [4, 6])
def test_residual_plus_factors_is_the_original_weight_and_the_factors_lead(method, alpha):
    original = small_llama().model.layers[0].self_attn.q_proj.weight.detach().double()
    layer = attach(small_llama(), method, rank=4, alpha=alpha).base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()
    residual = layer.base_layer.weight.detach().double()
    torch.testing.assert_close(residual + alpha / 4 * b @ a, original, rtol=1e-5, atol=1e-6)
    singular = torch.linalg.svdvals(original)
    torch.testing.assert_close(torch.linalg.svdvals(alpha / 4 * b @ a)[:4], singular[:4], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("method", LOW_RANK)
def test_exported_adapter_on_the_original_base_is_the_trained_model(method, base, tmp_path):
    model = attach(load(base), method, rank=4, alpha=6)
    batch = train_a_little(model)
    export(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == ((4, 6) if method == "lora" else (8, 12))
    assert config["init_lora_weights"] is True
    trained = model.eval()(**batch).logits
    stock = PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    torch.testing.assert_close(stock(**batch).logits, trained, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(load(tmp_path / "adapter")(**batch).logits, trained, rtol=1e-3, atol=1e-4)


def test_ba_lora_from_a_lora_start_exports_at_its_own_rank(base, tmp_path):
    model = attach(load(base), "ba-lora", init="lora", rank=4, alpha=4)
    batch = train_a_little(model)
    export(model, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    torch.testing.assert_close(load(tmp_path / "adapter")(**batch).logits, model(**batch).logits, rtol=1e-3, atol=1e-4)


def test_full_fine_tuning_exports_a_whole_model_without_the_teacher(base, tmp_path):
    model = attach(load(base), "full", rank=1, alpha=1, keep_initial=True)
    batch = train_a_little(model)
    export(model, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "initial_copy" in name]  # noqa: SIM118
    torch.testing.assert_close(load(tmp_path / "model")(**batch).logits, model(**batch).logits)


def test_merged_export_is_the_trained_model(tmp_path):
    model = attach(load(MODEL_DIR), "pissa", rank=4, alpha=4)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.mul_(1.1)
    export(model, tmp_path / "adapter")
    export_merged(tmp_path / "adapter", "tiny", tmp_path / "merged")
    torch.testing.assert_close(load(tmp_path / "merged")(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)


def test_export_takes_the_wrapped_model_too_and_writes_no_pickle(base, tmp_path):
    wrapped = ObjectiveModel(attach(load(base), "ba-lora", rank=2, alpha=2), Objective(0.1, 0.1, 0.1))
    export(wrapped, tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "checksums.json",
    ]


@pytest.mark.parametrize("name", ["tiny", "./models/base"])
def test_stock_peft_opens_an_adapter_alone_from_anywhere_and_ours_keeps_the_given_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_llama(vocab_size=768).save_pretrained("models/base")
    model = attach(load_model(name), "lora", rank=2, alpha=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * parameter.requires_grad
    export(model, tmp_path / "adapter")
    assert find_run(tmp_path / "adapter")[1] == name
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    ids = torch.arange(3, 40)[None]
    stock = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(stock(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(load(tmp_path / "adapter")(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    (tmp_path / "adapter/checksums.json").unlink()  # as other software leaves an adapter
    assert find_run(tmp_path / "adapter")[1] == str(MODEL_DIR if name == "tiny" else tmp_path / "models/base")


def test_export_replaces_a_folder_whole_and_leaves_the_old_one_when_it_fails(base, tmp_path, monkeypatch):
    model = attach(load(base), "lora", rank=2, alpha=2)
    export(model, tmp_path / "adapter")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("ba_lora.methods.save.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        export(model, tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_random_starts_follow_the_seed_alone():
    def factor(method, seed, noise):
        torch.manual_seed(noise)
        layer = attach(small_llama(), method, rank=4, alpha=4, seed=seed).base_model.model.model.layers[0].mlp.up_proj
        return layer.lora_A["default"].weight

    for method in ("lora", "pissa_niter_2"):
        assert torch.equal(factor(method, 1, noise=5), factor(method, 1, noise=6))
        assert not torch.equal(factor(method, 1, noise=5), factor(method, 2, noise=5))


def test_only_the_named_layers_are_adapted_and_never_the_head():
    every = attach(small_llama(), "pissa", rank=2, alpha=2)
    assert {name.split(".")[-4] for name, p in every.named_parameters() if p.requires_grad} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    two = attach(small_llama(), "pissa", rank=2, alpha=2, target_modules=["q_proj", "v_proj"])
    assert {name.split(".")[-4] for name, p in two.named_parameters() if p.requires_grad} == {"q_proj", "v_proj"}


def test_illegal_combinations_are_refused_in_one_line():
    for options, message in [
        ({"method": "pisa"}, "method 'pisa' is not known, did you mean 'pissa'"),
        ({"method": "pissa", "dropout": 0.1}, "dropout 0.1 does not go with a PiSSA start"),
        ({"method": "lora", "rank": 17}, "rank 17 is larger than the target matrix model.layers.0.self_attn.k_proj"),
        ({"method": "lora", "rank": 0}, "rank must be at least 1, got 0"),
        ({"method": "lora", "target_modules": ["q_prj"]}, "'q_prj' matches no linear layer, did you mean 'q_proj'"),
        ({"method": "ba-lora", "init": "random"}, "init 'random' is not known"),
        ({"method": "pissa", "init": "lora"}, "init 'lora' does not go with method 'pissa'"),
        ({"method": "lora", "init": "pissa"}, "init 'pissa' does not go with method 'lora'"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            attach(small_llama(), **{"rank": 2, "alpha": 2} | options)
        assert "\n" not in str(error.value)


def test_start_of_each_method():
    assert [start_of(method, None) for method in LOW_RANK] == ["lora", "pissa", "pissa_niter_4", "pissa"]
    assert start_of("ba-lora", "lora") == "lora" and start_of("ba-lora", "pissa_niter_8") == "pissa_niter_8"


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no safetensors weights"):
        load(tmp_path)
