"""The evaluated model: a base, an adapter on it, or a training run, opened with its tokenizer and its template.

torch is imported only when a model is opened, because the import takes seconds.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..data.templates import Template, check_template, default_template, make_template, template_of
from ..errors import UserError
from ..files import digest, hash_of
from ..folders.places import ADAPTERS, refuse_classifier
from ..machine.devices import device
from .copies import Copies

# Small files that affect completions.
SETTINGS = (
    *(
        *ADAPTERS,
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
    ),
    *("added_tokens.json", "vocab.json", "merges.txt", "spiece.model"),
)


class Subject(NamedTuple):
    """The evaluated model. `base`: the name of the model without its adapter; `template`: the format of its prompts.

    `weights`: the name of the model to open, the base or a fine-tuned one; `adapter`: the folder of its adapter, or None.
    `model`: the opened model if the backend is transformers (its `Copies`, if several processes have it open), else None.
    """

    model: object
    tokenizer: object
    template: Template
    base: str
    weights: str
    adapter: str | None


def find_base(model: str, adapter: str | None = None) -> str:
    """The name of the base model for --model and --adapter, without opening any weights."""
    from ..methods.save import find_run

    trained = trained_folder(model)
    return model if adapter or not trained else find_run(trained)[1] or model


def open_subject(
    model: str,
    *,
    adapter: str | None = None,
    template: str | None = None,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    with_model: bool = True,
    processes: int = 1,
) -> Subject:
    """Open `model` (a name, a model folder or a run folder) with `adapter` on it, its tokenizer and its template.

    The template is the requested one, else the one the run recorded, else "plain" for the embedded model, else "alpaca".
    with_model: False leaves the weights to another backend. processes: with several, each opens the model, and this one does not.
    Raises UserError if something cannot be opened.
    """
    from ..methods.rounding import round_factors
    from ..methods.save import find_run, load
    from ..models import load_model, load_tokenizer

    if template:
        check_template(template)
    base, trained = find_base(model, adapter), adapter or trained_folder(model)
    saved = str(find_run(trained)[0]) if trained else None
    if saved:
        refuse_classifier(saved, trained)
    is_adapter = saved is not None and any((Path(saved) / name).is_file() for name in ADAPTERS)
    weights, placed = (base, saved) if is_adapter else (saved or model, None)
    code, opened = {"trust_remote_code": trust_remote_code}, None
    if with_model and processes > 1:
        opened = Copies(processes, {"model": model, "adapter": adapter, "dtype": dtype, **code})
    elif with_model and trained:
        opened = load(trained, base=model if adapter else None, dtype=dtype, **code).to(device())
        round_factors(opened)
    elif with_model:
        opened = load_model(model, dtype, **code).to(device())
    own = saved is not None and (Path(saved) / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(saved if own else base, **code)
    recorded = template_of(trained) if trained else None
    if template or not recorded:
        in_text = recorded.special_tokens_in_text if recorded else "text"
        recorded = make_template(template or default_template(base), tokenizer, in_text)
    return Subject(opened, tokenizer, recorded, base, weights, placed)


def trained_folder(name: str) -> str | None:
    """`name` if a training run saved it: a run folder or an adapter folder. The run folder of its model folder. Else None."""
    folder = Path(name)
    if folder.name == "model" and (folder / "config.json").is_file() and (folder.parent / "run.json").is_file():
        return str(folder.parent)
    return name if any((folder / file).is_file() for file in ("run.json", *ADAPTERS)) else None


def weights_hash(name: str) -> str | None:
    """SHA-256 of a model's safetensors file; for several files, of their names and hashes; None if none is on this machine."""
    # in the hub's cache a large file is a link to a file named by its hash
    files = sorted(_place(name).glob("*.safetensors"))
    names = {file.name: file.resolve().name for file in files}
    hashes = {file.name: names[file.name] if len(names[file.name]) == 64 else hash_of(file) for file in files}
    return next(iter(hashes.values())) if len(hashes) == 1 else digest(hashes) if hashes else None


def settings_hash(subject: Subject) -> str:
    """Hash of the other files that affect completions: configs and tokenizer files of base, model and adapter."""
    places: dict[Path, None] = {}
    for name in filter(None, (subject.base, subject.weights, subject.adapter)):
        with suppress(UserError):  # the base of a whole model may no longer exist
            places[Path(name) if name == subject.adapter else _place(name)] = None
    files = [place / name for place in places for name in SETTINGS if (place / name).is_file()]
    return digest([[file.name, hash_of(file)] for file in files])


def _place(name: str) -> Path:
    """The folder with a model's files; for a hub id, in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    from ..models import locate

    place = locate(name)
    if not Path(place).is_dir():
        found = try_to_load_from_cache(place, "config.json")
        place = Path(found).parent if isinstance(found, str) else place
    return Path(place)
