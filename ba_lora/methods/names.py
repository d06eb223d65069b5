"""The values that options take, and which of them go together. Imports no library, so that --help and --list are fast."""

import re

from ..errors import UserError, choose

METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "loha", "dora", "adalora", "pissa", "ba-lora")
INITS = ("lora", "pissa")  # also pissa_niter_N, which is a method as well
NITER = re.compile(r"pissa_niter_(\d+)")
BOTTLENECKS = ("houlsby", "pfeiffer")
OWN = ("bitfit", *BOTTLENECKS)  # not in PEFT
NO_DROPOUT = (*OWN, "loha")

PRECISIONS = ("float32", "bfloat16", "float16", "auto")  # precisions of the weights; auto: as saved
QUANTISED = ("nf4",)
QUANTISED_METHODS = ("lora", "pissa", "ba-lora")  # also pissa_niter_N
PLACES = ("logits", "features")  # possible inputs of a classifier's regularizers


def check_method(method: str) -> str:
    """Return `method` if it is one of METHODS or pissa_niter_N. UserError otherwise."""
    return method if NITER.fullmatch(method) else choose("method", method, METHODS)


def start_of(method: str, init: str | None) -> str:
    """The start of the factors of `method`: "lora" (their product is 0), "pissa" or "pissa_niter_N" (the leading singular
    triplets); the method's name if it has no factors."""
    own = {"ba-lora": "pissa", **dict.fromkeys(("loha", "dora", "adalora"), "lora")}.get(method, method)
    if init is None or init == own:
        return own
    if method == "ba-lora":
        return init if NITER.fullmatch(init) else choose("init", init, INITS)
    if method == "pissa" and NITER.fullmatch(init):
        return init
    raise UserError(f"init '{init}' does not go with method '{method}', which starts as '{own}'; leave init out")


def check_quantised(method: str) -> None:
    """UserError for a method that does not train LoRA factors on a frozen base."""
    if method not in QUANTISED_METHODS and not NITER.fullmatch(method):
        raise UserError(
            f"--quantize does not go with method {method}; use {', '.join(QUANTISED_METHODS)}, or leave --quantize out"
        )
