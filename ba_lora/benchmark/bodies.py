"""Random causal language models of given sizes, made on the device that is measured: no copy of them is ever on the host."""

import math

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, LlamaConfig, PreTrainedConfig

from ..errors import UserError
from ..methods.attach import attach
from ..methods.delta import install
from ..methods.teacher import keep_initial_copy
from ..models import DTYPES
from ..planning.shapes import keep_layers
from ..training.model_numbers import read_numbers
from .cases import RANDOM


def random_llama(vocabulary: int, hidden: int, layers: int, length: int) -> LlamaConfig:
    """The sizes of a Llama with heads of 64 numbers. Raises UserError for a width without such heads."""
    heads = max(hidden // 64, 1)
    if hidden % (2 * heads):
        raise UserError(f"--hidden {hidden} must be a multiple of 64, or an even number below 128")
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=16 * round(hidden / 6),  # about 8/3 of the width, as in Llama
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length,
        tie_word_embeddings=False,
    )


def body_config(name: str, layers: int | None = None) -> PreTrainedConfig:
    """The sizes of the model `name` (a file of configs/models, 'tiny' or a folder), with its first `layers` layers if given.

    Raises UserError for an unknown name, and for an encoder.
    """
    numbers, source = read_numbers(name)
    kind = numbers.get("model_type")
    numbers = {key: value for key, value in numbers.items() if key not in ("model_type", "dtype", "architectures")}
    config = AutoConfig.for_model(kind, **numbers)
    maps = AutoModelForCausalLM._model_mapping, AutoModelForMaskedLM._model_mapping
    if type(config) not in maps[0] or type(config) in maps[1]:  # an encoder is in both
        raise UserError(
            f"--body {name}: {source} is a {kind}, not a causal language model; name a decoder, as llama-2-7b"
        )
    if layers:
        keep_layers(config, layers)
    return config


def make(config: PreTrainedConfig, dtype: str, device: str, *, decaying: bool = False) -> nn.Module:
    """An untrained model on `device`. decaying: hidden states whose spectrum falls like 1/i, near that of trained models."""
    config.initializer_range = 1.5 * config.hidden_size**-0.5  # spreads the logits like those of a trained model
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    norm = getattr(model.base_model, "norm", None)
    if decaying and norm is not None:
        scale = 1 / torch.arange(1, config.hidden_size + 1, device=device)
        scale *= math.sqrt(config.hidden_size) / torch.linalg.vector_norm(scale)
        norm.weight.data.mul_(scale.to(norm.weight.dtype))
    return model.eval()


def adapt(model: nn.Module, rank: int, start: str, device: str, form: str = "residual") -> nn.Module:
    """The model with BA-LoRA's factors. start: RANDOM (factors near 0, no decomposition), "pissa" or "pissa_niter_N". form: one of
    FORMS."""
    options = {"rank": rank, "alpha": rank}
    if start != RANDOM:
        return attach(model, "ba-lora", init=start, start_form=form, **options)
    with torch.device(device):
        student = attach(model, "ba-lora", init="lora", **options)
    for name, parameter in student.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data.normal_(
                std=1e-3
            )  # zeros would spare the student's arithmetic nothing, but give no gradient for A
    if form == "delta":
        _turn_to_delta(student)
    return student


def _turn_to_delta(student: nn.Module) -> None:
    """Take the factors of `student` for A0 and B0."""
    for layer in student.modules():
        if isinstance(layer, LoraLayer):
            factors = layer.lora_A["default"], layer.lora_B["default"]
            install(layer, "default", *(factor.weight.detach() for factor in factors))
    keep_initial_copy(student)  # in place of that of the factors
