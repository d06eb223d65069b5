"""An incomplete adapter, or one that does not fit its base, is rejected by name; complete ones of every kind open."""

import json
import pickle
import warnings

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, TaskType, VBLoRAConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig

from ba_lora.card import write_card
from ba_lora.errors import RunFailure, UserError
from ba_lora.files import read_json, write_json
from ba_lora.inference.subject import open_subject
from ba_lora.methods.adapter_files import check_files, check_for_base
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, export_merged, load
from ba_lora.models import load_classifier, load_model
from tests.common import SMALL, classifier_batch, collate, move, ragged_samples, small_llama

PEFT_METHODS = ["lora", "pissa", "dora", "loha", "adalora"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    small_llama().save_pretrained(folder)
    return str(folder)


def made(base, folder, method="lora", **options):
    """An exported adapter without the checksums that would detect each change first; the model that was trained."""
    model = attach(load_model(base), method, **{"rank": 4, "alpha": 4, "total_steps": 9} | options)
    move(model)
    export(model, folder)
    (folder / "checksums.json").unlink()
    return model.eval()


def rewrite(folder, change, file="adapter_model.safetensors"):
    """Replace the tensors of an adapter by `change` of them."""
    tensors = load_file(folder / file)
    save_file(change(dict(tensors)), folder / file)


def without(number):
    return lambda tensors: {name: t for n, (name, t) in enumerate(sorted(tensors.items())) if n != number}


def renamed(tensors):
    name = sorted(tensors)[3]
    return {name + "x" if each == name else each: t for each, t in tensors.items()}


def filled(value):
    def change(tensors):
        tensors[sorted(tensors)[1]].view(-1)[5] = value
        return tensors

    return change


def refused(opens, message, status=2):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing ends in a mere warning
        with pytest.raises(UserError, match=message) as error:
            opens()
    assert "\n" not in str(error.value) and error.value.status == status


DAMAGE = {
    "the first tensor": (without(0), "lacks"),
    "another tensor": (without(7), "lacks"),
    "another name": (renamed, "lacks|belongs"),
    "a tensor too many": (
        lambda t: t | {"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 32)},
        "layers.9",
    ),
    "a stranger's tensor": (lambda t: t | {"classifier.weight": torch.ones(2, 2)}, "belongs to no layer"),
    "no tensors": (lambda t: {}, "holds no tensors"),
    "NaN": (filled(float("nan")), "not finite"),
    "infinity": (filled(float("inf")), "not finite"),
    "integers": (lambda t: {name: value.to(torch.int8) for name, value in t.items()}, "int8 and not real numbers"),
    "a row less": (
        lambda t: {n: (v[:-1].clone() if n == sorted(t)[0] else v) for n, v in t.items()},
        "size mismatch|ranks",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("method", ["lora", *[pytest.param(name, marks=pytest.mark.slow) for name in ("dora", "loha")]])
def test_an_adapter_that_is_not_whole_is_refused_by_the_tensor(damage, method, base, tmp_path):
    made(base, tmp_path, method)
    change, message = DAMAGE[damage]
    rewrite(tmp_path, change)
    refused(lambda: load(tmp_path, base), message)


@pytest.mark.parametrize(
    "method", ["dora", *[pytest.param(name, marks=pytest.mark.slow) for name in ("pissa", "loha", "adalora")]]
)
def test_every_single_tensor_is_needed(method, base, tmp_path):
    made(base, tmp_path, method, target_modules=["q_proj"])
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    names = sorted(load_file(tmp_path / "adapter_model.safetensors"))
    for number, name in enumerate(names):
        rewrite(tmp_path, without(number))
        refused(lambda: load(tmp_path, base), name.rpartition("layers.")[2].partition(".lora")[0].partition(".hada")[0])
        (tmp_path / "adapter_model.safetensors").write_bytes(whole)
    load(tmp_path, base)


@pytest.mark.parametrize(
    "change",
    [
        {"r": 2},
        {"r": 8, "lora_alpha": 8},
        {"r": 0},
        {"r": "x"},
        {"r": True},
        {"lora_alpha": None},
        {"lora_alpha": float("nan")},
        {"lora_alpha": "4"},
        {"target_modules": []},
        {"target_modules": ["zzz"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": 5},
        {"use_dora": True},
        {"peft_type": "EVIL"},
        {"peft_type": None},
        {"peft_type": ["LORA"]},
        {"peft_type": "LOHA"},
        {"rank_pattern": "x"},
        {"rank_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"layers_to_transform": [0]},
    ],
)
def test_a_config_that_says_otherwise_than_the_tensors_is_refused(change, tmp_path):
    small_llama(attention_bias=True).save_pretrained(tmp_path / "base")
    base, folder = str(tmp_path / "base"), tmp_path / "adapter"
    made(base, folder)
    write_json(folder / "adapter_config.json", read_json(folder / "adapter_config.json") | change)
    refused(lambda: load(folder, base), "adapter_(config|model)")


@pytest.mark.parametrize("text", ["", '{"peft_type": "LO', "[]", "5"])
def test_a_config_that_is_none_is_named(text, base, tmp_path):
    made(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    refused(lambda: load(tmp_path, base), "adapter_config.json")


def test_a_base_of_another_kind_in_the_config_is_named(base, tmp_path):
    made(base, tmp_path)
    config = read_json(tmp_path / "adapter_config.json")
    for value in (5, ["a"], {}):
        write_json(tmp_path / "adapter_config.json", config | {"base_model_name_or_path": value})
        refused(lambda: load(tmp_path), "base_model_name_or_path")


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_weights_that_are_cut_off_are_named(keep, base, tmp_path):
    made(base, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    refused(lambda: load(tmp_path, base), "adapter_model.safetensors cannot be read", RunFailure.status)
    file.unlink()
    refused(lambda: load(tmp_path, base), "adapter_model.safetensors is missing")


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": 48}, {"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"intermediate_size": 40}],
    ids=["wider", "deeper", "shallower", "narrower inside"],
)
def test_an_adapter_of_another_base_is_refused(changes, base, tmp_path):
    made(base, tmp_path / "adapter")
    small_llama(**changes).save_pretrained(tmp_path / "other")
    other = str(tmp_path / "other")
    message = "adapter_model.safetensors does not fit the base .*other"
    refused(lambda: load(tmp_path / "adapter", other), message)
    refused(lambda: export_merged(tmp_path / "adapter", other, tmp_path / "merged"), message)
    refused(lambda: check_for_base(tmp_path / "adapter", other), message)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("damage", ["another tensor", "a stranger's tensor", "NaN", "a row less"])
def test_an_engine_that_opens_the_folder_itself_gets_no_adapter_that_does_not_fit(damage, base, tmp_path):
    made(base, tmp_path, "pissa")
    check_for_base(tmp_path, base)
    rewrite(tmp_path, DAMAGE[damage][0])
    refused(lambda: check_for_base(tmp_path, base), "adapter_model.safetensors")


@pytest.mark.parametrize("change", [{"lora_alpha": 400}, {"use_rslora": True}, {"lora_alpha": 4.5}])
def test_a_scale_that_is_not_the_runs_is_refused(change, base, tmp_path):
    made(base, tmp_path / "run/adapter", "pissa")
    write_json(
        tmp_path / "run/run.json",
        {"status": "finished", "model": base, "config": {"method": "pissa", "rank": 4, "alpha": 4}},
    )
    load(tmp_path / "run")
    file = tmp_path / "run/adapter/adapter_config.json"
    write_json(file, read_json(file) | change)
    refused(lambda: load(tmp_path / "run"), "adapter_config.json: rank and alpha scale the update by")


@pytest.mark.parametrize("method", ["bitfit", "houlsby", "pfeiffer"])
def test_the_forms_that_peft_has_not_are_checked_alike(method, tmp_path):
    small_llama(attention_bias=True, mlp_bias=True).save_pretrained(tmp_path / "base")
    base, folder = str(tmp_path / "base"), tmp_path / "adapter"
    made(base, folder, method)
    whole = (folder / "adapter.safetensors").read_bytes()
    for change, message in (
        (without(0), "does not fit the base model"),
        (renamed, "does not fit the base model"),
        (filled(float("nan")), "not finite"),
        (lambda t: {name: value.to(torch.int32) for name, value in t.items()}, "int32"),
        (lambda t: {}, "does not fit the base model"),
    ):
        rewrite(folder, change, "adapter.safetensors")
        refused(lambda: load(folder, base), message)
        (folder / "adapter.safetensors").write_bytes(whole)
    (folder / "adapter.safetensors").write_bytes(whole[:-9])
    refused(lambda: load(folder, base), "adapter.safetensors cannot be read", RunFailure.status)
    (folder / "adapter.safetensors").write_bytes(whole)
    own = read_json(folder / "ba_lora.json")
    for change in ({"method": "magic"}, {"method": 3}, {"rank": "4"}, {"head": "x"}, {"head": [1]}, {"head": ["zzz"]}):
        write_json(folder / "ba_lora.json", own | change)
        refused(lambda: load(folder, base), "ba_lora.json|head module|adapter.safetensors")


def classifier(folder, method="lora"):
    torch.manual_seed(0)
    config = BertConfig(**SMALL, max_position_embeddings=64)
    AutoModelForSequenceClassification.from_config(config).bert.save_pretrained(folder / "base")
    model, head = load_classifier(str(folder / "base"), ["a", "b", "c"])
    model = attach(model, method, rank=2, alpha=2, head=head)
    move(model)
    export(model, folder / "adapter")
    (folder / "adapter/checksums.json").unlink()
    return model.eval()


@pytest.mark.parametrize("part", ["weight", "bias", ""])
def test_a_classifiers_adapter_without_its_head_is_refused(part, tmp_path):
    model = classifier(tmp_path)
    batch = classifier_batch(3, 8)
    batch.pop("labels")
    torch.testing.assert_close(load(tmp_path / "adapter")(**batch).logits, model(**batch).logits, **CLOSE)
    rewrite(tmp_path / "adapter", lambda t: {n: v for n, v in t.items() if f"classifier.{part}" not in n})
    refused(lambda: load(tmp_path / "adapter"), "lacks .*classifier")


def test_every_way_in_refuses_it_and_writes_nothing(base, tmp_path):
    run = tmp_path / "run"
    made("tiny", run / "adapter", "lora")
    config = {"method": "lora", "rank": 4, "alpha": 4}
    record = {"status": "finished", "model": "tiny", "config": config, "objective": {"lambda1": 0.0}}
    write_json(run / "run.json", record)
    rewrite(run / "adapter", without(5))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    message = "adapter_model.safetensors.* lacks"
    refused(lambda: load(run), message)
    refused(lambda: open_subject("tiny", adapter=str(run), template="alpaca"), message)
    refused(lambda: open_subject(str(run), template="alpaca"), message)
    refused(lambda: export_merged(run, "tiny", tmp_path / "merged"), message)
    refused(lambda: write_card(run), message)
    refused(lambda: check_files(run / "adapter"), message)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


# adapters written by stock PEFT still open


def stock(model, config, folder, **options):
    """An adapter that stock PEFT made and saved; the model."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    move(adapted)
    adapted.save_pretrained(folder, **options)
    return adapted.eval()


LORA = {"r": 4, "task_type": TaskType.CAUSAL_LM}
KINDS = {
    "plain": LoraConfig(**LORA),
    "all linear": LoraConfig(target_modules="all-linear", **LORA),
    "a pattern": LoraConfig(target_modules=r".*\.(q|v)_proj", **LORA),
    "rslora": LoraConfig(use_rslora=True, **LORA),
    "DoRA": LoraConfig(use_dora=True, **LORA),
    "saved modules": LoraConfig(modules_to_save=["lm_head"], **LORA),
    "saved norms": LoraConfig(modules_to_save=["norm"], **LORA),
    "embeddings": LoraConfig(target_modules=["embed_tokens", "q_proj"], **LORA),
    "all biases": LoraConfig(bias="all", **LORA),
    "biases of its layers": LoraConfig(bias="lora_only", **LORA),
    "ranks and alphas": LoraConfig(rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}, **LORA),
    "one layer": LoraConfig(layers_to_transform=[1], **LORA),
    "tokens": LoraConfig(trainable_token_indices=[3, 5], **LORA),
    "a parameter": LoraConfig(target_parameters=["up_proj.weight"], target_modules=[], **LORA),
    "lora bias": LoraConfig(lora_bias=True, **LORA),
    "places of its values": VBLoRAConfig(  # integers
        r=4,
        target_modules=["q_proj"],
        num_vectors=8,
        vector_length=16,
        save_only_topk_weights=True,
        task_type="CAUSAL_LM",
    ),
    "LoHa": LoHaConfig(r=4, target_modules=["q_proj"], task_type=TaskType.CAUSAL_LM),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_by_stock_peft_opens_with_the_same_logits(kind, tmp_path):
    options = {"attention_bias": True}
    model = stock(small_llama(**options), KINDS[kind], tmp_path)
    batch = collate(ragged_samples(4))
    opened = load(tmp_path, small_llama(**options))
    torch.testing.assert_close(opened(**batch).logits, model(**batch).logits, **CLOSE)
    assert (model(**batch).logits - small_llama(**options)(**batch).logits).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_a_stock_adapter_loses_no_bias_and_no_saved_module_unseen(tmp_path):
    for kind, missing in (
        ("all biases", "bias"),
        ("saved norms", "norm.weight"),
        ("DoRA", "magnitude"),
        ("tokens", "token"),
    ):
        stock(small_llama(attention_bias=True), KINDS[kind], tmp_path / kind)
        names = [name for name in sorted(load_file(tmp_path / kind / "adapter_model.safetensors")) if missing in name]
        rewrite(tmp_path / kind, lambda t, name=names[-1]: {n: v for n, v in t.items() if n != name})
        with pytest.raises(UserError, match="lacks"):
            load(tmp_path / kind, small_llama(attention_bias=True))


def test_a_stock_adapter_in_16_bits_and_with_its_embeddings_beside_it_opens(base, tmp_path):
    config = LoraConfig(target_modules=["q_proj"], **LORA)
    model = stock(load_model(base), config, tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    batch = collate(ragged_samples(4))
    torch.testing.assert_close(load(tmp_path, base)(**batch).logits, model(**batch).logits, **CLOSE)
    rewrite(tmp_path, lambda t: {name: value.to(torch.bfloat16) for name, value in t.items()})
    torch.testing.assert_close(load(tmp_path, base)(**batch).logits, model(**batch).logits, rtol=0.05, atol=0.05)


def test_a_pickled_adapter_opens_where_it_holds_tensors_alone_and_runs_no_code(base, tmp_path):
    model = made(base, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    batch = collate(ragged_samples(4))
    torch.testing.assert_close(load(tmp_path, base)(**batch).logits, model(**batch).logits, **CLOSE)
    torch.save({name: tensors[name] for name in sorted(tensors)[1:]}, tmp_path / "adapter_model.bin")
    refused(lambda: load(tmp_path, base), "adapter_model.bin does not fit .* lacks")

    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps({"x": Code()}))
    refused(lambda: load(tmp_path, base), "adapter_model.bin")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_what_is_exported_passes_its_own_check(method, base, tmp_path):
    model = made(base, tmp_path / "adapter", method)
    assert check_files(tmp_path / "adapter").keys() == load_file(tmp_path / "adapter/adapter_model.safetensors").keys()
    batch = collate(ragged_samples(4))
    batch.pop("labels")
    torch.testing.assert_close(load(tmp_path / "adapter", base)(**batch).logits, model(**batch).logits, **CLOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock_opened = PeftModel.from_pretrained(load_model(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(stock_opened(**batch).logits, model(**batch).logits, **CLOSE)


# base models


def test_a_base_model_of_other_sizes_than_its_config_is_refused(base, tmp_path):
    for change in ({"hidden_size": 48}, {"num_hidden_layers": 3}, {"vocab_size": 50}, {"attention_bias": True}):
        model = small_llama()
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config.pop("layer_types", None)
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        refused(lambda: load_model(str(tmp_path)), "model ")
