"""Model and tokenizer by name: the embedded model ("tiny"), a folder, a hub id, "package:NAME" from the registry, or a twin."""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers import logging as transformers_logging

from .. import packages
from ..errors import RunFailure, UserError, choose, one_line
from ..files import read_json
from ..folders import checksums
from ..folders.places import check_model_folder, is_named
from ..laboratory.names import parse
from ..tiny import CHECKSUMS, MODEL_DIR
from .labels import check_names, in_order_of, output_layer, reorder_outputs, saved_names
from .pooling import pool_by_mask

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
ATTENTIONS = ("eager", "sdpa", "flash_attention_2")
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
# Raised by transformers, besides ValueError, for invalid values in a config or a generation config.
MALFORMED = (StrictDataclassError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)


def locate(name: str) -> str:
    """The path or id that transformers should open for `name`: the embedded folder, a package's, an existing folder, or the
    hub id.

    Raises UserError for a path without a model in it, and for a package that cannot be fetched; DamagedFile for files that
    do not match the folder's checksums.json, if it has one.
    """
    if name == "tiny":
        checksums.verify(MODEL_DIR, "install the project again", listing=CHECKSUMS)
        return str(MODEL_DIR)
    if name.startswith(packages.PREFIX):
        return str(packages.open_model(name))
    if twin := parse(name):
        from ..laboratory.twins import open_twin  # a trainer, which no other model needs

        return str(open_twin(twin))
    folder = Path(name)
    check_model_folder(name)
    if os.path.isdir(folder):
        checksums.verify_model(folder)
    return name


def stock_name(name: str | None) -> str | None:
    """The name by which transformers itself opens `name` on this machine: the path of a local model, else the hub id."""
    if name and is_named(name):
        return locate(name)
    return str(Path(name).resolve()) if name and os.path.isdir(name) else name


def load_model(
    name: str, dtype: str = "float32", *, attn_implementation: str | None = None, trust_remote_code: bool = False
):
    """A causal language model in evaluation mode.

    dtype: float32, bfloat16, float16, or auto (as saved). attn_implementation: one of ATTENTIONS; None = transformers'
    choice, except eager for Gemma-2. trust_remote_code: run Python code that comes with the model. Raises UserError if it
    cannot be opened like this, or if the files lack some of its weights.
    """
    choose("dtype", dtype, DTYPES)
    check_attention(attn_implementation, dtype)
    place = locate(name)
    sizes = f"model {name}: its weights have other sizes than its config.json says; give a model folder as it was saved"
    with errors_named(name, place, sizes):
        model, report = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=DTYPES[dtype],
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"model {name} has no weights for {missing[0]} ({len(missing)} tensors are missing), so it is not a complete "
            f"{type(model).__name__}; give a causal language model"
        )
    if is_named(name):
        # so that an exported adapter names its base like this, not by a folder of this machine
        model.name_or_path = model.config._name_or_path = name
    keep_soft_cap(model, attn_implementation)
    return model.eval()


def load_classifier(
    name: str,
    labels: Sequence[str] | None,
    *,
    seed: int = 0,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    head_follows: bool = False,
) -> tuple[nn.Module, list[str]]:
    """(a sequence classifier in evaluation mode, the names of its head's modules).

    labels: names of the classes; None = a regression with one output. The outputs of a saved classifier are reordered to
    match by name (labels.py). head_follows: a saved head will replace this one, so its outputs need no names. The head: the
    modules that the checkpoint lacks, each the topmost one that is missing as a whole (DeBERTa: pooler, classifier); for a
    complete classifier, the modules outside its body. Missing weights are drawn from `seed` alone, so that every method
    starts with the same head. A decoder's score is that of the last token according to the attention mask (pooling.py).
    Raises UserError if it cannot be opened, is a classifier of other classes, or if the files lack weights of the body.
    """
    choose("dtype", dtype, DTYPES)
    check_attention(attn_implementation, dtype)
    place, outputs = locate(name), 1 if labels is None else len(labels)
    outside = f"model {name} is a classifier, but not one with {outputs} outputs; give its pre-trained body"
    with errors_named(name, place, outside):
        saved = PreTrainedConfig.get_config_dict(place)[0]  # as written: transformers drops some names
        check_names(saved, name)
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
        config.num_labels = outputs  # sets placeholder names for the classes
        config.use_cache = False  # a decoder would keep keys and values for tokens that never come
        config.problem_type = "regression" if labels is None else "single_label_classification"
        if labels is not None:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: number for number, label in enumerate(labels)}
        with torch.random.fork_rng(), _quiet():
            torch.manual_seed(seed)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                place,
                config=config,
                dtype=DTYPES[dtype],
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    head = topmost(model, report["missing_keys"]) or beside_body(model)
    body = model.base_model_prefix
    lacking = [
        module for module in head if module == body or (module.startswith(f"{body}.") and "pooler" not in module)
    ]
    if lacking:
        raise UserError(
            f"model {name} has no weights for {lacking[0]}, which is not part of a head; give a complete model"
        )
    if not head_follows:
        _name_outputs(model, labels, saved, report["missing_keys"], name)
    if is_named(name):
        model.name_or_path = model.config._name_or_path = name
    keep_soft_cap(model, attn_implementation)
    pool_by_mask(model)
    return model.eval(), head


def _name_outputs(
    model: nn.Module, labels: Sequence[str] | None, saved: dict, missing: Sequence[str], name: str
) -> None:
    """Reorder the outputs of a saved classifier to match `labels`. saved: its config.json; missing: tensors it lacks.

    Raises UserError if it is a classifier of other classes, or if one is a regression and the other is not.
    """
    if f"{output_layer(model)[0]}.weight" in missing:
        return  # a new head has no meaning yet
    was_regression = saved.get("problem_type") == "regression"
    if saved.get("problem_type") and was_regression != (labels is None):
        kinds = ("classes", "regression")
        raise UserError(
            f"model {name} was trained for {kinds[was_regression]}, not for {kinds[labels is None]}; give its pre-trained body"
        )
    names = saved_names(saved, name)
    if labels is None or names is None:
        return
    order = in_order_of(labels, names, name)
    if order != sorted(order):
        logger.warning("%s gives %s: its outputs are put in the order %s", name, ", ".join(names), ", ".join(labels))
        reorder_outputs(model, order)


def keep_soft_cap(model: nn.Module, attn_implementation: str | None) -> None:
    """Gemma-2 caps its attention scores, which transformers' sdpa silently omits: use eager instead. UserError if sdpa was
    requested."""
    if not getattr(model.config, "attn_logit_softcapping", None) or model.config._attn_implementation != "sdpa":
        return
    if attn_implementation == "sdpa":
        raise UserError(
            f"--attn_implementation sdpa leaves out the soft cap on the attention of this {type(model).__name__}; use eager"
        )
    model.set_attn_implementation("eager")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' table of missing weights, which for a classifier lists the head, as expected."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def topmost(model: nn.Module, missing: Sequence[str]) -> list[str]:
    """The fewest names of modules (else of tensors) that hold every missing parameter and no other, in the model's order."""
    missing = set(missing)
    names = [name for name, _ in model.named_parameters()]
    found = []
    for name in (name for name in names if name in missing):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            top = ".".join(parts[:length])
            if all(each in missing for each in names if each == top or each.startswith(f"{top}.")):
                break
        if top not in found:
            found.append(top)
    return found


def beside_body(model: nn.Module) -> list[str]:
    """The modules with parameters outside a classifier's body."""
    children = [(name, child) for name, child in model.named_children() if name != model.base_model_prefix]
    return [name for name, child in children if next(child.parameters(), None) is not None]


def is_classifier(model: nn.Module) -> bool:
    """Return True if `model` is one of transformers' sequence classifiers."""
    return type(model).__name__.endswith("ForSequenceClassification")


def load_tokenizer(name: str, *, trust_remote_code: bool = False):
    """The tokenizer of the model `name`."""
    place = locate(name)
    with errors_named(name, place, what="tokenizer"):
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)


def check_attention(attn_implementation: str | None, dtype: str) -> None:
    """UserError if an attention implementation is unknown or cannot run here."""
    if attn_implementation is None:
        return
    if choose("attn_implementation", attn_implementation, ATTENTIONS) != "flash_attention_2":
        return
    remedy = "use sdpa"
    if not torch.cuda.is_available():
        raise UserError(f"--attn_implementation flash_attention_2 needs a GPU and there is none here; {remedy}")
    if importlib.util.find_spec("flash_attn") is None:
        raise UserError(
            f"--attn_implementation flash_attention_2 needs the package flash-attn, which is not installed; install it or {remedy}"
        )
    if dtype == "float32":
        raise UserError(
            f"--attn_implementation flash_attention_2 works in bfloat16 and float16, not float32; change --dtype or {remedy}"
        )


def _unreadable(name: str, place: str, error: SafetensorError) -> RunFailure:
    """An error that names the unreadable file among a model's weights."""
    for file in sorted(Path(place).glob("*.safetensors")) if Path(place).is_dir() else ():
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as of_file:
            return RunFailure(f"{file}, a part of model {name}, cannot be read ({of_file}); copy or download it again")
    return RunFailure(f"a file of model {name} cannot be read ({error}); download it again")


@contextmanager
def errors_named(name: str, place: str | Path, mismatch: str = "", what: str = "model") -> Iterator[None]:
    """Turn transformers' errors in the block into one line that names the model, and the file if it is one.

    mismatch: the message for tensors of another size. what: what is opened, "model" or "tokenizer".
    """
    try:
        yield
    except (OSError, ValueError, *MALFORMED) as error:
        raise _cannot_open(what, name, place, error) from error
    except SafetensorError as error:
        raise _unreadable(name, place, error) from None
    except RuntimeError as error:
        if "negative dimension" in str(error) or isinstance(error, RecursionError):
            raise _cannot_open(what, name, place, ValueError(str(error))) from error
        if "mismatch" not in str(error):
            raise
        raise UserError(mismatch) from None
    except Exception as error:
        if type(error) is Exception:  # of tokenizers, which has no class of its own
            raise _cannot_open(what, name, place, error) from error
        raise


def _cannot_open(what: str, name: str, place: str | Path, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(
            f"the {what} of {name} needs Python code that its author ships with it, which would run on this machine; "
            "read it, and if you trust it, add --trust_remote_code"
        )
    for file in filter(Path.is_file, (Path(place) / each for each in JSON_FILES)):
        try:
            read_json(file, remedy="give a folder written by save_pretrained, or download the file again")
        except UserError as damaged:
            return damaged
    reason = one_line(" ".join(str(error).split())[:300])
    if isinstance(error, MALFORMED):
        files = f"config.json or {'generation_config.json' if what == 'model' else 'the tokenizer files'}"
        return UserError(f"the {files} of {name} cannot be used ({type(error).__name__}: {reason}); correct it")
    if os.path.isdir(name) or is_named(name):
        return UserError(f"the {what} in {name} cannot be opened: {reason}")
    return UserError(
        f"{what} '{name}' is neither a folder nor 'tiny', and the hub did not give it (offline, or no such id); "
        "download it on a connected machine and give its folder"
    )
