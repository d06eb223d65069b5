"""Upload the result of a run, with its model card, to the Hugging Face hub.

    python -m ba_lora.hub RUN USER/NAME [--hub_public]

`reserve` checks before training that the upload can work; `push` uploads afterwards. A failed upload loses nothing: the
run folder is complete, and the command above uploads it later.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .card import hub_id, public_name, saved_in, write_card
from .errors import Parser, UserError, run_cli
from .files import read_json
from .folders import checksums
from .folders.adapter_names import check_header
from .machine.processes import is_first

logger = logging.getLogger(__name__)

# The key under which an adapter names its base model, or a classifier its data.
NAMING = (("adapter_config.json", "base_model_name_or_path"), ("ba_lora.json", "base_model"), ("task.json", "data"))


def reserve(repo: str, public: bool = False) -> None:
    """Create the model repository `repo` (USER/NAME; private unless `public`) if needed, and check that it is writable.

    Raises UserError in offline mode, without a token, or if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, constants, get_token

    later = " (you can also upload after training: python -m ba_lora.hub RUN USER/NAME)"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"'{repo}' does not name a repository of the hub; give it as USER/NAME")
    if constants.is_offline_mode():
        raise UserError(
            f"{repo} cannot be reached in offline mode; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE{later}"
        )
    if get_token() is None:
        raise UserError(f"{repo} needs a write token of the hub; run 'hf auth login' or set HF_TOKEN{later}")
    api = HfApi()
    with _one_line(f"{repo} cannot be written on {api.endpoint}", later):
        api.create_repo(repo, private=not public, exist_ok=True)
        api.auth_check(repo, write=True)


def push(run: str | Path, repo: str) -> str:
    """Upload adapter/ or model/ of a finished run folder to the repository `repo`; return its URL.

    Raises UserError with the command that uploads later, or for a damaged adapter. Writes the card first if there is none.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    run, saved = Path(run), saved_in(run)
    check_header(saved)
    if not (saved / "README.md").is_file():
        write_card(run)
    files = {path.relative_to(saved).as_posix(): path for path in sorted(saved.rglob("*")) if path.is_file()}
    contents: dict[str, Path | bytes] = {**files}
    model = read_json(run / "run.json")["model"]
    for name, key in NAMING:
        if name in files:
            contents[name] = _public_config(files[name], key, model)
    if checksums.FILE in files:  # checksums of the uploaded content
        listed = {"files": {}} | read_json(files[checksums.FILE])
        for name, content in contents.items():
            if isinstance(content, bytes):
                listed["files"][name] = hashlib.sha256(content).hexdigest()
        if listed.get("base_model") and not hub_id(model):
            listed["base_model"] = public_name(model)
        contents[checksums.FILE] = json.dumps(listed, indent=2).encode()
    api = HfApi()
    additions = [CommitOperationAdd(name, content) for name, content in contents.items()]
    with _one_line(
        f"{saved} was not uploaded to {repo}", f"; it is complete, upload it with python -m ba_lora.hub {run} {repo}"
    ):
        api.create_commit(repo, additions, commit_message=f"Upload {saved.name} of {run.resolve().name}")
    return f"{api.endpoint}/{repo}"


def push_after(run: Path, arguments, last: bool = True) -> None:
    """Call `push` if the run's options ask for it, on rank 0 only.

    A failure raises as in `push`, or is only logged if another upload follows (not `last`).
    """
    if not arguments.push_to_hub or not is_first():
        return
    try:
        print(f"{run}: uploaded to {push(run, arguments.push_to_hub)}")
    except UserError as error:
        if last:
            raise
        logger.warning("%s", error)


def _public_config(file: Path, key: str, model: str) -> bytes:
    """A config for the upload: its `key`, a base model or data, holds the name and no path of this machine."""
    config = read_json(file)
    if key == "data":
        config[key] = config.get(key) and public_name(config[key])
    elif not hub_id(model):
        config[key] = public_name(model)
        logger.warning(
            "the base model '%s' is not from the hub; the upload names it and holds no path", public_name(model)
        )
    return json.dumps(config, indent=2).encode()


@contextmanager
def _one_line(what: str, remedy: str) -> Iterator[None]:
    """Turn an error of the hub or the network into a one-line UserError."""
    try:
        yield
    except (
        Exception
    ) as error:  # the base class of network errors belongs to a package that varies with the hub's client
        raise UserError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:200]}){remedy}") from None


def main() -> None:
    parser = Parser(
        prog="python -m ba_lora.hub",
        description="Upload the result of a run, with its model card, to the Hugging Face hub.",
        epilog="Example: python -m ba_lora.hub runs/v5 someone/v5-adapter",
    )
    parser.add_argument("run", metavar="RUN", help="the --output_dir of a training run")
    parser.add_argument("repo", metavar="USER/NAME", help="the repository on the hub; created if it does not exist")
    parser.add_argument(
        *("--hub_public", "--public"), action="store_true", help="make the repository public instead of private"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args()
    saved_in(options.run)
    reserve(options.repo, options.hub_public)
    print(push(options.run, options.repo))


if __name__ == "__main__":
    run_cli(main)
