"""Floating-point operations of a training run, counted from the model's shapes.

Multiplying a token by a matrix of W weights is 2·W operations. Per token of a sample of T tokens, let F be the weights of frozen
matrices and A those of trained matrices that the token meets (in a mixture of experts only its own experts; for LoHa the whole
product of its factors), with attention in L layers of width w = heads × head size (the full square, as if nothing were masked;
R relative positions in addition to the T tokens, for DeBERTa only):

    forward          2·(F + A) + 4·L·(T + R)·w
        teacher          one more forward, if it runs beside the student, times --teacher_share; in the delta form without the adapter
        backward         2·F + 4·A + 8·L·(T + R)·w: the input gradient everywhere, the weight gradient for trained weights only
        recomputation    one more forward, with gradient checkpointing

For a language model, add per trained token, with a frozen head of V×d (chunked.py):

    head             2·V·d for the logits, 2·V·d for the gradient, 2·V·d for the teacher's logits, times --teacher_share
    spectrum         4·d·min(V, d): the product with the head's factor, and its gradient

A look at held-out rows is a forward pass of the student and of the teacher, which runs on every row, from a cache or a share of the
sequences or not. Per trained token it takes what the head takes above, and half of the spectrum's.

A trained head meets every token: 2·V·d forward, 4·V·d backward. The backward pass is counted down to the first layer, although
it ends at the first trained weight (with Houlsby's bottlenecks, above the first attention). The count leaves out embeddings,
norms, softmaxes, decompositions and a covariance over the vocabulary, and everything done once per micro-batch or sample: a
classifier's pooler and head, DeBERTa's projections of the relative positions, DoRA's norms, the product of LoHa's factors.
"""

from typing import NamedTuple

from peft import PeftModel
from peft.tuners.loha import LoHaLayer
from torch import nn
from transformers import PretrainedConfig

from ..methods.delta import change_tensors, start_tensors
from ..methods.teacher import initial_copy
from ..models import beside_body
from ..objective.chunked import needs_factor
from ..objective.settings import Objective


class Work(NamedTuple):
    """The work per token: numbers of weights, attention layers times their width, and the language model's head."""

    frozen: int
    trained: int
    attention: int
    vocabulary: int  # 0 for a classifier
    width: int
    trains_head: bool
    positions: int  # relative positions that each token is compared with
    left_out: int = 0  # weights that the teacher does not meet: the adapter in delta form


def work_of(model: nn.Module) -> Work:
    """Count the matrices of `model`, a causal language model or a classifier from `attach` on any device."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    head, config = base.get_output_embeddings(), base.config.get_text_config()
    aside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    aside |= {id(parameter) for parameter in (initial_copy(model) or nn.Module()).parameters()}
    if head is None:
        beside = beside_body(base)
        pooled = [each for name, each in base.named_modules() if name in beside or name.endswith("pooler")]
        aside |= {id(parameter) for module in pooled for parameter in module.parameters()}
    else:
        aside.add(id(head.weight))
    layers = [module.base_layer.weight for module in model.modules() if isinstance(module, LoHaLayer)]
    counts = {True: sum(weight.numel() for weight in layers if id(weight) not in aside), False: 0}
    for name, parameter in model.named_parameters():
        if id(parameter) in aside or parameter.dim() < 2 or ".hada_" in name:
            continue
        stacked = parameter.dim() == 3  # the experts of a layer; a token meets num_experts_per_tok of them
        used = parameter.numel() * config.num_experts_per_tok // len(parameter) if stacked else parameter.numel()
        counts[parameter.requires_grad] += used
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = (0, 0, False) if head is None else (*head.weight.shape, head.weight.requires_grad)
    off = sum(
        tensor.numel() for tensors in (change_tensors(model), start_tensors(model)) for tensor in tensors.values()
    )
    return Work(counts[False], counts[True], config.num_hidden_layers * heads * size, *shape, _positions(config), off)


def _positions(config: PretrainedConfig) -> int:
    """Relative positions that DeBERTa compares each token with: 2·span for each of pos_att_type, each with its own product."""
    if not getattr(config, "relative_attention", False):
        return 0
    span = config.position_buckets if config.position_buckets > 0 else config.max_relative_positions
    return len(config.pos_att_type) * span


def of_a_sample(
    work: Work,
    objective: Objective,
    length: int,
    counted: int,
    *,
    checkpointing: bool,
    cached: bool = False,
    teacher_share: float = 1,
) -> float:
    """Operations for one sample of `length` tokens of which `counted` are trained, on average. cached: the teacher does not run."""
    forward, attention = _forward(work, length)
    backward = 2 * work.frozen + 4 * work.trained + 2 * attention
    teacher = teacher_share if objective.uses_teacher() and not cached else 0
    passes = forward * (1 + teacher + checkpointing) + backward - 2 * work.left_out * teacher
    logits = 2 * work.vocabulary * work.width
    if work.trains_head:
        return length * (passes + logits * (3 + teacher))
    return length * passes + counted * (logits * (2 + teacher) + 2 * _spectrum(work, objective))


def of_a_look(work: Work, objective: Objective, length: int, counted: int) -> float:
    """Operations for one held-out sample of `length` tokens of which `counted` count, in one look."""
    teacher = objective.uses_teacher()
    passes = _forward(work, length)[0] * (1 + teacher) - 2 * work.left_out * teacher
    logits = 2 * work.vocabulary * work.width
    if work.trains_head:
        return length * (passes + logits * (1 + teacher))
    return length * passes + counted * (logits * (2 + teacher) + _spectrum(work, objective))


def _forward(work: Work, length: int) -> tuple[int, int]:
    """(operations for a token in a forward pass without the head, those of them for attention)."""
    attention = 4 * (length + work.positions) * work.attention
    return 2 * (work.frozen + work.trained) + attention, attention


def _spectrum(work: Work, objective: Objective) -> int:
    """Operations for a token's product with the head's factor; 0 if no term needs it."""
    return 2 * work.width * min(work.vocabulary, work.width) if needs_factor(objective.maxima()) else 0
