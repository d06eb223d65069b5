"""Split a causal language model into its body, which gives hidden states, and its frozen linear head, which is applied last.

Only the rows that count need to pass through the head, and the objective does not need their logits (chunked.py).
"""

import hashlib
import logging
from typing import NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import DamagedFile
from ..files import atomic_folder, cache_home
from ..folders.disk import cached
from ..folders.tensor_files import load_tensors, save_tensors
from ..modes import evaluating
from .chunked import factor_of
from .settings import Objective

logger = logging.getLogger(__name__)


class Split(NamedTuple):
    """The two parts of a model: head(body(input_ids, ...).last_hidden_state) gives its logits."""

    body: nn.Module
    head: nn.Linear


def split(model: nn.Module, input_ids: Tensor, objective: Objective | None = None) -> tuple[Split | None, str]:
    """(the parts, "") of a causal language model, adapted or not; (None, the reason) if the dense form is needed.

    This is the one rule of which form trains: the head's product alone must give the logits, nothing may train the head, and
    `objective` (None: any) may not need the logits. input_ids: (1, T), some tokens to run the model on: the operations reveal a soft
    cap or a scale of the logits, and the values, if there are any (not in planning), that the two ways agree.
    """
    if objective is not None and (needed := objective.logits_needed_by()):
        return None, f"required by {' and '.join(needed)}"
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
    with evaluating(model), torch.no_grad():
        is_product = _untouched(model, body, head, input_ids)
        if is_product and not _has_no_values(input_ids):
            is_product = _equal(model, body, head, input_ids)
        if not is_product:
            return None, "the logits are not the head's product alone (a soft cap or a scale)"
    return Split(body, head), ""


def _has_no_values(tensor: Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _equal(model: nn.Module, body: nn.Module, head: nn.Linear, input_ids: Tensor) -> bool:
    """Return True if the model's logits equal the head's product with the body's hidden states."""
    whole = model(input_ids=input_ids, use_cache=False).logits
    parts = head(body(input_ids=input_ids, use_cache=False).last_hidden_state)
    return whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-3, atol=1e-3)


def _untouched(model: nn.Module, body: nn.Module, head: nn.Linear, input_ids: Tensor) -> bool:
    """Return True if the head gets the body's hidden states as they are, and its output is the logits.

    A view keeps the storage and its version; any operation on the values makes a new storage or raises the version.
    """
    seen: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def note(name: str, tensor: Tensor) -> None:
        seen[name], versions[name] = tensor, tensor._version

    def note_head(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        note("input", args[0])
        note("output", output)

    hooks = [
        body.register_forward_hook(lambda module, args, output: note("hidden", output.last_hidden_state)),
        head.register_forward_hook(note_head),
    ]
    try:
        note("logits", model(input_ids=input_ids, use_cache=False).logits)
    finally:
        for hook in hooks:
            hook.remove()

    def is_same(first: str, second: str) -> bool:
        storages = {seen[name].untyped_storage()._cdata for name in (first, second)}
        return len(storages) == 1 and versions[first] == versions[second]

    return is_same("hidden", "input") and is_same("output", "logits")


def cached_factor(head: nn.Linear) -> Tensor:
    """`factor_of` the head's weight, read from the cache folder if it holds one for the same values; on the head's device."""
    weight = head.weight.detach()
    values = weight.cpu().contiguous().view(torch.uint8).numpy()
    name = hashlib.sha256(values.data).hexdigest()
    folder = cache_home() / "heads" / f"{name[:32]}-{weight.shape[0]}x{weight.shape[1]}"
    file = folder / "factor.safetensors"
    with cached(folder, "the cache of factors of heads"):  # one process computes it and the others wait
        if file.is_file():
            try:
                return load_tensors(file, folder.name)["factor"].to(weight.device)
            except (DamagedFile, KeyError) as error:
                logger.warning("%s; it is made again", error)
        factor = factor_of(weight)
        with atomic_folder(folder, (file.name,)) as place:
            save_tensors({"factor": factor.cpu()}, place / file.name, folder.name)
    return factor
