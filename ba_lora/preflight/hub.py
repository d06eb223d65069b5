"""Access to the weights and data that a run takes from the hub, or their local copies."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..data.glue import HUB as GLUE
from ..data.glue_sizes import ROWS
from ..data.sources import check_source
from ..errors import UserError
from ..folders.places import check_model_folder, is_named
from ..training import launch
from ..training.arguments import TrainArguments
from ..training.model_numbers import HUB_ID, cached_folder

SECONDS = 3  # for an answer of the hub
# The hub ids of the benchmarks' own data; HumanEval and MT-Bench come from the package registry.
BENCHMARKS = {"gsm8k": "openai/gsm8k", "math": "EleutherAI/hendrycks_math", "mbpp": "google-research-datasets/mbpp"}


class Source(NamedTuple):
    """A repository of the hub that a run needs. kind: model or dataset; named: how the user names it; instead: a local copy."""

    repo: str
    kind: str
    named: str
    instead: str


def findings(arguments: TrainArguments) -> Iterator[str]:
    """Yield the reasons why the hub does not give the weights and data of the run."""
    wanted = [source for source in sources(arguments) if not is_cached(source)]
    if not wanted:
        return
    with ThreadPoolExecutor(len(wanted)) as pool:
        yield from filter(None, pool.map(_trouble, wanted))


def sources(arguments: TrainArguments) -> list[Source]:
    """The repositories that the run needs and that no option replaces by a local copy."""
    found = []
    model, repo = arguments.model, (arguments.data or "").partition(":")[0]
    is_here = is_named(model) or os.path.exists(model)
    if not is_here and _may_be_of_hub(check_model_folder, model):
        found.append(Source(model, "model", f"--model {model}", "--model FOLDER"))
    if arguments.task in ROWS and not arguments.data and not arguments.data_path:
        found.append(Source(GLUE, "dataset", f"the data of --task {arguments.task}", "--data_path FOLDER"))
    is_here = arguments.data_path or os.path.exists(arguments.data or "") or os.path.exists(repo)
    if not is_here and repo.count("/") == 1 and _may_be_of_hub(check_source, arguments.data):
        found.append(Source(repo, "dataset", f"--data {arguments.data}", "--data_path FILE"))
    if launch.is_first_machine() and not arguments.task:
        replaced = {text.partition("=")[0] for text in arguments.eval_data or ()}
        alone = len(arguments.benchmarks or ()) == 1 and arguments.eval_data
        for name in arguments.benchmarks or ():
            own = name in BENCHMARKS and name not in replaced and not alone
            if own and not (name == "gsm8k" and arguments.data_path and repo == BENCHMARKS[name]):
                found.append(Source(BENCHMARKS[name], "dataset", f"the data of {name}", f"--eval_data {name}=FILE"))
    return found


def _may_be_of_hub(check: Callable[[str], None], name: str) -> bool:
    """Return True if the first checks do not refuse `name` as a wrong path."""
    try:
        check(name)
    except UserError:
        return False
    return bool(HUB_ID.fullmatch(name.partition(":")[0]))


def is_cached(source: Source) -> bool:
    """Return True if the hub's cache holds something of a data set, or the weights of a model."""
    if source.kind == "model":
        folder = cached_folder(source.repo)
        return folder is not None and any(folder.glob("*.safetensors"))
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE) / f"datasets--{source.repo.replace('/', '--')}" / "snapshots"
    return place.is_dir() and any(place.iterdir())


def _trouble(source: Source) -> str | None:
    """Why the hub does not give `source` to this machine, with the remedy; None if it does."""
    from huggingface_hub import constants, get_token

    copy = f"give a local copy ({source.instead})"
    if constants.is_offline_mode():
        return (
            f"{source.named} is not in the hub's cache, and the hub is not asked in offline mode (HF_HUB_OFFLINE); unset "
            f"HF_HUB_OFFLINE, or {copy}"
        )
    answer = _ask(source)
    page = f"{constants.ENDPOINT}/{'datasets/' if source.kind == 'dataset' else ''}{source.repo}"
    if answer == "gated" and get_token() is None:
        return (
            f"{source.named} is gated and there is no token of the hub here; ask for access at {page} and run 'hf auth login' or set "
            f"HF_TOKEN, or {copy}"
        )
    if answer == "gated":
        return f"{source.named} is gated and your token has no access; ask for it at {page}, or {copy}"
    if answer == "missing":
        return f"{source.named} is not on the hub, or private; correct the name, set HF_TOKEN to a token that may read it, or {copy}"
    if answer:
        return (
            f"{source.named} is not in the hub's cache, and the hub ({constants.ENDPOINT}) cannot be reached ({answer}), so access to "
            f"it was not checked; connect this machine, or {copy}"
        )
    return None


def _ask(source: Source) -> str:
    """ "" if this machine may read `source`, "gated", "missing", or why the hub cannot be asked."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import get_session, hf_raise_for_status

    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}  # build_hf_headers may write into HF_HOME
    url = f"{constants.ENDPOINT}/api/{source.kind}s/{source.repo}/auth-check"
    try:
        hf_raise_for_status(get_session().get(url, headers=headers, timeout=SECONDS))
    except GatedRepoError:
        return "gated"
    except RepositoryNotFoundError:
        return "missing"
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        return "missing" if status in (401, 403) else f"HTTP {status}"
    except Exception as error:  # the client's own kinds: no connection, no answer in time, a broken certificate
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:100] or type(error).__name__
    return ""
