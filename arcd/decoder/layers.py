"""A decoder of the Llama family: Llama, Qwen2 (biases), Qwen3 (norms of queries and keys).

A batch is one row: its lessons stand one after another. The weights may be frozen with LoRA beside
them or trained themselves; the layers do not know which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from arcd.decoder.attention import Span, attend
from arcd.decoder.elementwise import EAGER, Elementwise
from arcd.decoder.lora import Linear
from arcd.decoder.row import Row


@dataclass(frozen=True, slots=True)
class Shape:
    """What the layers of a decoder have in common."""

    heads: int
    key_heads: int
    """Heads of keys and of values; `heads` is a multiple of it."""
    head_size: int
    epsilon: float
    """Added to the mean square in a norm."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of one decoder layer."""

    attention_norm: Tensor
    qkv: Linear
    """Queries, keys and values, stacked in this order."""
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    """Gate and up, stacked in this order."""
    down: Linear
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


def run(
    hidden: Tensor,
    row: Row,
    layers: Sequence[Layer],
    shape: Shape,
    cosine: Tensor,
    sine: Tensor,
    final_norm: Tensor,
    elementwise: Elementwise = EAGER,
    *,
    recompute: bool = False,
) -> Tensor:
    """Hidden states (wanted, width) at the row's wanted places, from embeddings (tokens, width).

    `cosine` and `sine` are (tokens, head size / 2). With `recompute` a layer keeps its input
    alone, and computes the rest again in the backward pass.
    """
    more = torch.zeros_like(hidden)
    for layer in layers:
        # Behind its attention the last layer works at the wanted places alone.
        wanted = row.wanted if layer is layers[-1] else None
        arguments = (hidden, more, layer, shape, cosine, sine, row.spans, wanted, elementwise)
        if recompute:
            # Nothing in a layer draws from the generator of the process: see `dropout`.
            hidden, more = checkpoint(
                _layer, *arguments, use_reentrant=False, preserve_rng_state=False
            )
        else:
            hidden, more = _layer(*arguments)
    _, states = elementwise.add_norm(hidden, more, final_norm, shape.epsilon)
    return states


def _layer(
    hidden: Tensor,
    more: Tensor,
    layer: Layer,
    shape: Shape,
    cosine: Tensor,
    sine: Tensor,
    spans: Sequence[Span],
    wanted: Tensor | None,
    elementwise: Elementwise,
) -> tuple[Tensor, Tensor]:
    """One layer on the residual stream `hidden` and what is still to be added to it."""
    epsilon = shape.epsilon
    hidden, normed = elementwise.add_norm(hidden, more, layer.attention_norm, epsilon)
    heads = layer.qkv(normed).view(len(normed), -1, shape.head_size)
    q, k, v = torch.split(heads, [shape.heads, shape.key_heads, shape.key_heads], 1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q = elementwise.norm(q, layer.q_norm, epsilon)
        k = elementwise.norm(k, layer.k_norm, epsilon)
    q, k = (elementwise.rotate(x, cosine, sine) for x in (q, k))
    attended = attend(q, k, v.transpose(0, 1), spans)
    if wanted is not None:
        hidden, attended = hidden[wanted], attended[wanted]
    hidden, normed = elementwise.add_norm(hidden, layer.output(attended), layer.mlp_norm, epsilon)
    return hidden, layer.down(elementwise.gate(layer.gate_up(normed)))
