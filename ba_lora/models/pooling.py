"""Padding in a classifier's batch follows the attention mask alone, whatever ids are at the padded positions.

A decoder's score comes from its last real token. transformers' heads look for the last id that is not the config's
pad_token_id. If the tokenizer pads with another id, they find padding; if that id ends a text (pad == eos), they miss the
text's last token. XLNet's head takes the last position. Here the body is made to give the last real token's state at every
position, so the head gets that token's state whichever position it picks.

Some other bodies look for the config's pad_token_id too: MobileBERT reads the embedding next to a token, MBart and PLBart
start the decoder with the last id that is not padding. They get that id wherever the mask is 0.
"""

import inspect

import torch
from torch import nn

from ..data.padding import last_real, padding_id
from ..errors import UserError


def takes_last_token(model: nn.Module) -> bool:
    """Return True if this classifier's head takes its score from the last token of a text: it looks for padding by id, or
    takes the last position."""
    # all inherited ones: one may call the next
    forwards = [vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind)]
    by_id = any("pad_token_id" in inspect.unwrap(forward).__code__.co_names for forward in forwards)
    last_position = hasattr(model, "sequence_summary") and getattr(model.config, "summary_type", "") == "last"
    return by_id or last_position


def pool_by_mask(model: nn.Module) -> None:
    """Make the attention mask alone define padding in the batches of a classifier.

    If mask and padding ids agree, no bit of output or gradient changes; without a mask the ids decide as before. A second
    call changes nothing. Raises UserError for an encoder-decoder whose head looks for padding by id: its decoder's positions
    do not match the mask's.
    """
    body = model.base_model
    if not takes_last_token(model):
        if _pad_by_mask not in body._forward_pre_hooks.values():
            body.register_forward_pre_hook(_pad_by_mask, with_kwargs=True)
        return
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"the score of a {type(model).__name__} depends on padding, which its decoder reads; use an encoder or a decoder"
        )
    if _last_state_everywhere not in body._forward_hooks.values():
        body.register_forward_hook(_last_state_everywhere, with_kwargs=True)
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:  # transformers needs an id for a batch; any will do
        ends = getattr(config, "eos_token_id", None)
        config.pad_token_id = (ends[0] if isinstance(ends, list) else ends) or 0


def agree_on_padding(model: nn.Module, tokenizer) -> None:
    """Write the tokenizer's padding id into the config of a classifier that takes the last token, so that other software
    finds that token too. Nothing that is computed here changes. Raises UserError for an encoder-decoder, whose head counts
    the ends of sequence, if its texts are padded with them."""
    if getattr(model.config, "is_encoder_decoder", False) and padding_id(tokenizer) == model.config.eos_token_id:
        raise UserError(
            f"the tokenizer pads with its end of sequence, which a {type(model).__name__} takes its score from; give its "
            "tokenizer a separate pad_token"
        )
    has_one = any(getattr(tokenizer, name, None) is not None for name in ("pad_token_id", "eos_token_id"))
    if has_one and takes_last_token(model):
        model.config.get_text_config().pad_token_id = padding_id(tokenizer)


def _pad_by_mask(body: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward pre-hook: put the config's pad_token_id wherever the mask is 0."""
    inputs = dict(zip(inspect.signature(body.forward).parameters, args, strict=False)) | kwargs
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    pad = getattr(body.config.get_text_config(), "pad_token_id", None)
    if ids is None or mask is None or pad is None or mask.shape != ids.shape:
        return args, kwargs
    return (), inputs | {"input_ids": ids.masked_fill(mask == 0, pad)}


def _last_state_everywhere(body: nn.Module, args: tuple, kwargs: dict, output):
    """A forward hook: hidden (N, T, d) → the state of each row's last real token, T times."""
    mask = kwargs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return output
    hidden = output[0]
    last = last_real(mask[:, -hidden.shape[1] :]).to(hidden.device)
    state = hidden[torch.arange(len(hidden), device=hidden.device), last]  # (N, d)
    everywhere = state[:, None].expand(hidden.shape).contiguous()  # same shape, so the head computes the same way
    if isinstance(output, tuple):
        return (everywhere, *output[1:])
    output.last_hidden_state = everywhere
    return output
