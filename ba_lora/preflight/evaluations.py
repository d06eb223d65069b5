"""The requirements of the evaluations after a run: the sandbox, vLLM, an endpoint, MT-Bench's judge."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator

from ..errors import UserError
from ..files import CHECKOUT
from ..inference.backends import resolve_anywhere
from ..training.arguments import TrainArguments

PROGRAMS = ("humaneval", "mbpp")  # benchmarks that run what the model wrote
SECONDS = 3  # for an answer of an endpoint
OPENAI = "https://api.openai.com/v1"


def findings(arguments: TrainArguments) -> Iterator[str]:
    """Yield each requirement of the run's benchmarks that this machine lacks."""
    benchmarks = arguments.benchmarks or ()
    if not CHECKOUT:  # eval/ is not in the installed package, whose training ends without an evaluation
        return
    for name in PROGRAMS:
        if name in benchmarks:
            from eval.execution.sandbox import find_box  # not in the installed package

            try:
                find_box()
            except UserError as error:  # its last remedy, --unsafe_execution, is an option of the evaluation alone
                yield f"{name} runs programs in a sandbox: {str(error).partition('; or add --unsafe')[0]}"
            break
    if benchmarks and not arguments.task:
        try:
            resolve_anywhere(arguments.eval_backend, arguments.method)
        except UserError as error:
            yield str(error).replace("--backend", "--eval_backend")
    if "mt_bench" in benchmarks or (benchmarks and arguments.eval_backend == "openai"):
        yield from _endpoint("mt_bench" in benchmarks)


def _endpoint(judges: bool) -> Iterator[str]:
    """The endpoint that the environment names, if it does not answer. Without one, MT-Bench's answers are judged later."""
    url, key = os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not url and not key:
        return
    url = (url or OPENAI).rstrip("/")
    what = "MT-Bench's judge" if judges else "the endpoint of --eval_backend openai"
    later = "; or unset it, and the answers are written to be judged later (docs/evaluation.md)" if judges else ""
    name = "OPENAI_BASE_URL" if os.environ.get("OPENAI_BASE_URL") else "OPENAI_API_KEY"
    if not url.startswith(("http://", "https://")):
        yield f"{what}: OPENAI_BASE_URL {url} does not begin with http:// or https://; write it as http://host:8000/v1{later}"
        return
    request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            yield f"{what} at {url} does not accept the key (HTTP {error.code}); correct OPENAI_API_KEY{later}"
        elif error.code >= 500:
            yield f"{what} at {url} answers with HTTP {error.code}; restart it or correct {name}{later}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        yield f"{what} at {url} gives no answer ({reason}); start it or correct {name}{later}"
