"""The adapters of Houlsby et al. (2019) and Pfeiffer et al. (2021): a small network after a sublayer, inside its residual.

    y = sublayer(x);  h = norm(x + y + up(gelu(down(y))))        the norm where the model has it

Houlsby: after the attention and after the feed-forward of every layer; the layer's norms are trained too, as in that paper.
Pfeiffer: after the feed-forward only, and nothing else is trained. The paper's figure shows a second norm around the
adapter, which is omitted here. `up` starts at zero, so that training starts at the pre-trained function. The projections
have no biases; this gives the parameter counts printed for DeBERTa-v3-base (1,216,512 at width 32 and 1,179,648 at width
64).

The network is attached to the linear layer that ends the sublayer (the model's own dropout comes after it); no name in the
model changes.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from .targets import is_within, linear_layers

NAME = "bottleneck"
# (last linear layer of the attention, of the feed-forward), by how their names end: BERT, RoBERTa, DeBERTa; GPT-2; Llama,
# Mistral, Gemma, Qwen; DistilBERT.
PLACES = (
    ("attention.output.dense", "output.dense"),
    ("attn.c_proj", "mlp.c_proj"),
    ("self_attn.o_proj", "mlp.down_proj"),
    ("attention.out_lin", "ffn.lin2"),
)


class Bottleneck(nn.Module):
    """y (..., width of the layer) → y + up(gelu(down(y))), `rank` wide in the middle."""

    def __init__(self, width: int, rank: int, **options):
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False, **options)
        self.up = nn.Linear(rank, width, bias=False, **options)
        nn.init.zeros_(self.up.weight)

    def forward(self, output: Tensor) -> Tensor:
        return output + self.up(gelu(self.down(output)))


def places_of(model: nn.Module, method: str, head: Sequence[str] = ()) -> list[str]:
    """Names of the linear layers after which `method` puts its bottlenecks. UserError for an architecture that PLACES lacks."""
    linears = linear_layers(model, head)
    for attention, feed_forward in PLACES:
        ends_attention = [name for name in linears if name.endswith(f".{attention}")]
        ends_layer = [n for n in linears if n.endswith(f".{feed_forward}") and n not in ends_attention]
        if ends_attention and ends_layer:
            return sorted(ends_attention + ends_layer) if method == "houlsby" else ends_layer
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    raise UserError(
        f"method '{method}' does not know where the sublayers of model type '{kind}' end; use lora, or add them to PLACES"
    )


def add_bottlenecks(model: nn.Module, method: str, rank: int, head: Sequence[str] = ()) -> None:
    """Freeze `model` and add the trainable bottlenecks (and norms) of `method`. Initial values come from torch's generator."""
    places = places_of(model, method, head)
    model.requires_grad_(False)
    for name in places:
        layer = model.get_submodule(name)
        width = layer.nf if isinstance(layer, Conv1D) else layer.out_features
        if rank > width:
            raise UserError(f"rank {rank} is larger than {name}, which is {width} wide; use at most {width}")
        layer.add_module(NAME, Bottleneck(width, rank, device=layer.weight.device, dtype=layer.weight.dtype))
        layer.register_forward_hook(_through)
    if method == "houlsby":
        for norm in _norms(model, places, head):
            norm.requires_grad_(True)


def _through(layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return layer.bottleneck(output)


def _norms(model: nn.Module, places: Sequence[str], head: Sequence[str]) -> list[nn.Module]:
    """The norms of the layers that hold `places`; norms of the embeddings and after the last layer are excluded."""
    layers = {name[: _end_of_number(name)] for name in places}
    return [
        module
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and is_within(name, tuple(layers)) and not is_within(name, head)
    ]


def _end_of_number(name: str) -> int:
    """The position at which the layer's number ends in "bert.encoder.layer.3.output.dense"."""
    parts = name.split(".")
    number = next(index for index, part in enumerate(parts) if part.isdigit())
    return len(".".join(parts[: number + 1]))
