"""Floating-point operations of a training run, counted from the model's shapes.

A product of a token with a matrix of W weights is 2·W operations. Per token of a sample of T tokens, with F weights in frozen
matrices and A in trained ones that a token meets (of a mixture of experts those of its own experts alone), and attention in L
layers of width w = heads × head size (the whole square, as if nothing were masked):

    forward          2·(F + A) + 4·L·T·w
    teacher          one more forward, where it runs beside the student
    backward         2·F + 4·A + 8·L·T·w: the input's gradient everywhere, the weights' for trained ones only
    recomputation    one more forward, with gradient checkpointing

and per trained token, with a frozen head of V×d (chunked.py):

    head             2·V·d for the logits, 2·V·d for the gradient, 2·V·d for the teacher's logits
    spectrum         4·d·min(V, d): the product with the head's factor, and its gradient

A head that is trained meets every token: 2·V·d forward, 4·V·d backward. Embeddings, norms, softmaxes and decompositions are
not in it; DoRA's and LoHa's own products neither.
"""

from typing import NamedTuple

from torch import nn

from .objective import Objective
from .teacher import initial_copy


class Work(NamedTuple):
    """What a token meets: numbers of weights, and the attention's layers times their width."""

    frozen: int
    trained: int
    attention: int
    vocabulary: int
    width: int
    trains_head: bool


def work_of(model: nn.Module) -> Work:
    """Count the matrices of `model`, a causal language model from `attach` on any device."""
    copies = {id(parameter) for parameter in (initial_copy(model) or nn.Module()).parameters()}
    head = model.get_output_embeddings().weight
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    aside = copies | tables | {id(head)}
    config = model.config.get_text_config()
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        if id(parameter) in aside or parameter.dim() < 2:
            continue
        stacked = parameter.dim() == 3  # the experts of a layer: a token meets num_experts_per_tok of them
        used = parameter.numel() * config.num_experts_per_tok // len(parameter) if stacked else parameter.numel()
        counts[parameter.requires_grad] += used
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Work(counts[False], counts[True], config.num_hidden_layers * heads * size, *head.shape, head.requires_grad)


def of_a_sample(
    work: Work, objective: Objective, length: int, counted: int, *, checkpointing: bool, cached: bool = False
) -> int:
    """Operations of one sample of `length` tokens of which `counted` are trained. cached: the teacher does not run."""
    attention = 4 * length * work.attention
    forward = 2 * (work.frozen + work.trained) + attention
    backward = 2 * work.frozen + 4 * work.trained + 2 * attention
    has_teacher = objective.lambda1 > 0 and not cached
    passes = forward * (1 + has_teacher + checkpointing) + backward
    logits = 2 * work.vocabulary * work.width
    if work.trains_head:
        return length * (passes + logits * (3 + has_teacher))
    spectrum = 4 * work.width * min(work.vocabulary, work.width) if objective.lambda3 > 0 else 0
    return length * passes + counted * (logits * (2 + has_teacher) + spectrum)
