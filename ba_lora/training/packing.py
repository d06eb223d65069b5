"""The check behind --packing: does this model, with its attention, keep the samples of a row apart?"""

import torch
from torch import Tensor, nn

from ..data.collator import PadRight, trained_rows
from ..data.packing import PackRows
from ..errors import UserError
from ..modes import evaluating

LENGTHS = (10, 5, 4, 3)  # of the samples that are tried: in rows of 10, two share one
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # of the logits' norm; a leak moves them by a large part of it
COARSE = 0.05  # in 16 bits


def width_of_rows(model: nn.Module, most: int) -> int | None:
    """Tokens of a packed row: `most`, or None for flash attention, which finds samples in a single row alone and pays for no width."""
    return None if "flash" in str(getattr(model.config, "_attn_implementation", "")) else most


def check_packing(model: nn.Module, tokenizer) -> None:
    """Raise UserError unless packed samples have the logits that they have alone. model: a causal language model, in any mode.

    Four short samples of random tokens are run both ways; the rule is a number, so that any model and attention can be tried.
    """
    named = f"{type(model).__name__} with {getattr(model.config, '_attn_implementation', 'its')} attention"
    pack = PackRows(tokenizer, width=width_of_rows(model, max(LENGTHS)))
    try:
        difference = _difference(model, PadRight(tokenizer), pack)
    except (TypeError, ValueError) as error:  # of a forward without position_ids, or one that needs a mask
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"--packing: {named} does not take packed rows ({reason}); leave it out") from error
    most = TOLERANCE.get(model.dtype, COARSE)
    if not difference <= most:
        raise UserError(
            f"--packing: in a packed row of {named} the samples see each other (their logits differ by {difference:.2g} of the norm "
            f"from those of each alone, at most {most:g} is rounding); use another --attn_implementation, or leave it out"
        )


@torch.no_grad()
def _difference(model: nn.Module, pad: PadRight, pack: PackRows) -> float:
    """‖packed − padded‖ / ‖padded‖ of the logits of all samples."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    samples = []
    for length in LENGTHS:
        ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
        samples.append({"input_ids": ids, "labels": ids})
    in_order = [samples[number] for numbers in pack.place(samples) for number in numbers]
    with evaluating(model):
        padded, packed = _logits(model, pad(in_order)), _logits(model, pack(samples))
    return float((packed - padded).norm() / padded.norm())


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """(N, V) logits of the trained rows, sample by sample."""
    device = next(model.parameters()).device
    labels = batch.pop("labels")
    inputs = {name: value.to(device) for name, value in batch.items()}
    logits = model(**inputs, use_cache=False).logits.double().flatten(0, 1)
    return logits[trained_rows(labels).to(device)]
