"""Split a causal language model into its body, which gives hidden states, and its frozen linear head, which is applied last.

Only the rows that count need to pass through the head, and the objective does not need their logits (chunked.py).
"""

import hashlib
import logging
from typing import NamedTuple

import torch
from filelock import FileLock
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import DamagedFile
from ..files import atomic_folder, cache_home
from ..folders.tensor_files import load_tensors, save_tensors
from .chunked import factor_of

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """The two parts of a model: head(body(input_ids, ...).last_hidden_state) gives its logits."""

    body: nn.Module
    head: nn.Linear


def split(model: nn.Module, input_ids: Tensor) -> tuple[Split | None, str]:
    """(the parts, "") of a causal language model, adapted or not; (None, the reason) if its logits are computed in another
    way.

    input_ids: (1, T), some tokens on which the two ways are compared: they reveal a soft cap or a scale of the logits.
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    body, head = getattr(causal, "base_model", causal), causal.get_output_embeddings()
    if body is causal:
        return None, f"{type(causal).__name__} has no body apart from its head"
    if isinstance(head, BaseTunerLayer):
        return None, "the head is adapted"
    if not isinstance(head, nn.Linear):
        return None, f"the head is a {type(head).__name__}"
    if any(parameter.requires_grad for parameter in head.parameters()):
        return None, "the head is trained"
    if head.bias is not None:
        return None, "the head has a bias"
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            whole = model(input_ids=input_ids, use_cache=False).logits
            parts = head(body(input_ids=input_ids, use_cache=False).last_hidden_state)
    finally:
        for module, training in modes:
            module.training = training
    if whole.shape != parts.shape or not torch.allclose(whole, parts, rtol=1e-3, atol=1e-3):
        return None, "the logits are not the head's product alone (a soft cap or a scale)"
    return Split(body, head), ""


def cached_factor(head: nn.Linear) -> Tensor:
    """`factor_of` the head's weight, read from the cache folder if it holds one for the same values; on the head's device."""
    weight = head.weight.detach()
    values = weight.cpu().contiguous().view(torch.uint8).numpy()
    name = hashlib.sha256(values.data).hexdigest()
    folder = cache_home() / "heads" / f"{name[:32]}-{weight.shape[0]}x{weight.shape[1]}"
    file = folder / "factor.safetensors"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # one process computes it and the others wait
        if file.is_file():
            try:
                return load_tensors(file, folder.name)["factor"].to(weight.device)
            except (DamagedFile, KeyError) as error:
                logger.warning("%s; it is made again", error)
        factor = factor_of(weight)
        with atomic_folder(folder, (file.name,)) as place:
            save_tensors({"factor": factor.cpu()}, place / file.name, folder.name)
    return factor
