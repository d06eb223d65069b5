"""The backends that make completions, by name.

Prompts are token ids from `encode_prompt`, so that no backend can add a second beginning-of-sequence token.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

from ..errors import choose
from .completions import Completion

BACKENDS = {"transformers": "transformers", "vllm": "vllm", "openai": "openai"}  # name → module that it needs


def get_backend(name: str) -> Callable[..., Iterator[tuple[int, Completion]]]:
    """The backend called `name`: (args, subject, jobs, sampling) → (number of the job, its completion), as they are finished.

    It opens what it needs before it returns, so that a failure is reported before old results are replaced. Raises UserError
    for an unknown name.
    """
    choose("backend", name, BACKENDS)
    if name == "vllm":
        from .vllm_engine import complete
    elif name == "openai":
        from .endpoint import complete
    else:
        from .local import complete
    return complete


def backend_version(name: str) -> str:
    """The installed version of the package behind a backend."""
    try:
        return version(name)
    except PackageNotFoundError:
        return version(f"{name}-cpu")  # vLLM's CPU build has another name
