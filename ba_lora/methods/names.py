"""The values that options take, and which of them go together. Imports no library, so that --help and --list are fast."""

import re
from typing import NamedTuple

from ..errors import UserError, choose


class Method(NamedTuple):
    """A way to train, as the rest of the program has to know it."""

    label: str  # in tables and figures, as the papers write it
    files: str  # "model": the whole model is saved; "peft": an adapter in PEFT's format; "own": in ours, because PEFT has no such method
    start: str | None = None  # of the factors: "lora" (their product is 0) or "pissa" (leading singular triplets)
    is_lora: bool = False  # its factors are LoRA's: it is exported as LoRA, and can train beside a base in 4 bits
    is_bottleneck: bool = False  # it adds layers, so it cannot be folded into the base
    dropout: bool = False  # on the input of the adapter
    regularizers: bool = False  # on unless --regularizers off

    @property
    def saved(self) -> str:
        """The folder of a run in which what was trained is saved."""
        return "model" if self.files == "model" else "adapter"


# To add one that PEFT has: its row here, and its configuration in `_peft_config` of attach.py.
METHODS = {
    "full": Method("Full FT", "model"),
    "bitfit": Method("BitFit", "own"),
    "houlsby": Method("HAdapter", "own", is_bottleneck=True),
    "pfeiffer": Method("PAdapter", "own", is_bottleneck=True),
    "lora": Method("LoRA", "peft", start="lora", is_lora=True, dropout=True),
    "loha": Method("LoHA", "peft", start="lora"),
    "dora": Method("DoRA", "peft", start="lora", dropout=True),
    "adalora": Method("AdaLoRA", "peft", start="lora", dropout=True),
    "pissa": Method("PiSSA", "peft", start="pissa", is_lora=True, dropout=True),
    "ba-lora": Method("BA-LoRA", "peft", start="pissa", is_lora=True, dropout=True, regularizers=True),
}
FORMS = (
    "residual",
    "delta",
)  # of a PiSSA start: its part is taken out of the base, or the base stays and changes are trained
INITS = ("lora", "pissa")  # also pissa_niter_N, which is a method as well
NITER = re.compile(r"pissa_niter_(\d+)")

PRECISIONS = ("float32", "bfloat16", "float16", "auto")  # precisions of the weights; auto: as saved
QUANTISED = ("nf4",)
PLACES = ("logits", "features")  # possible inputs of a classifier's regularizers


def check_method(method: str) -> str:
    """Return `method` if it is one of METHODS or pissa_niter_N. UserError otherwise."""
    return method if NITER.fullmatch(method) else choose("method", method, METHODS)


def method_of(method: str) -> Method:
    """The row of `method`; pissa_niter_N is pissa with another decomposition."""
    return METHODS["pissa" if NITER.fullmatch(method) else method]


def start_of(method: str, init: str | None) -> str:
    """The start of the factors of `method`: "lora" (their product is 0), "pissa" or "pissa_niter_N" (the leading singular
    triplets); the method's name if it has no factors."""
    own = method if NITER.fullmatch(method) else METHODS[method].start or method
    if init is None or init == own:
        return own
    if method == "ba-lora":
        return init if NITER.fullmatch(init) else choose("init", init, INITS)
    if method == "pissa" and NITER.fullmatch(init):
        return init
    raise UserError(f"init '{init}' does not go with method '{method}', which starts as '{own}'; leave init out")


def default_form(dtype: str) -> str:
    """The form of a PiSSA start on a base of `dtype` (one of PRECISIONS), unless one is given."""
    return FORMS[0]  # the published one, whatever the precision


def check_form(form: str, start: str, method: str) -> str:
    """Return `form` if it is one of FORMS and goes with `start`. UserError otherwise."""
    if choose("start_form", form, FORMS) == "delta" and not start.startswith("pissa"):
        raise UserError(
            f"start_form 'delta' is a form of the PiSSA start and method '{method}' starts as '{start}'; leave it out"
        )
    return form


def check_scaling(method: str, rslora: bool) -> None:
    """UserError for --rslora with a method that PEFT scales in its own way."""
    if rslora and method != "dora" and not method_of(method).is_lora:
        names = ", ".join(name for name, each in METHODS.items() if each.is_lora)
        raise UserError(f"--rslora does not go with method {method}; use {names} or dora, or leave --rslora out")


def check_quantised(method: str) -> None:
    """UserError for a method that does not train LoRA factors on a frozen base."""
    if not method_of(method).is_lora:
        names = ", ".join(name for name, each in METHODS.items() if each.is_lora)
        raise UserError(f"--quantize does not go with method {method}; use {names}, or leave --quantize out")
