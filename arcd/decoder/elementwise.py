"""What a decoder layer computes between its products: norm, rotary positions, gate.

Each function reads and writes its tensors several times when torch runs it operator by operator;
compiled, once. They are all that is compiled: products and attention take as long either way, and
functions this small compile in a quarter of the time of a whole layer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm (arXiv 1910.07467) over the last dimension, computed in fp32."""
    wide = x.float()
    mean_square = wide.square().mean(-1, keepdim=True)
    return (wide * torch.rsqrt(mean_square + epsilon) * weight).to(x.dtype)


def add_norm(x: Tensor, more: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The sum of two tensors (tokens, width), and the norm of the sum."""
    total = x + more
    return total, norm(total, weight, epsilon)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads with their rotary positions (arXiv 2104.09864): (tokens, heads, size) to heads first.

    `cosine` and `sine` are (tokens, size / 2); entry i of a head turns with entry i + size / 2.
    """
    first, second = x.transpose(0, 1).chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)


def gate(gate_up: Tensor) -> Tensor:
    """SwiGLU (arXiv 2002.05202): silu(gate) * up, the halves of (tokens, 2 * width)."""
    first, second = gate_up.chunk(2, -1)
    return F.silu(first) * second


P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Elementwise:
    """The four functions, as they are or compiled."""

    norm: Callable[[Tensor, Tensor, float], Tensor] = norm
    add_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_norm
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate
    gate: Callable[[Tensor], Tensor] = gate


EAGER = Elementwise()


def compiled() -> Elementwise:
    """The functions compiled for any number of tokens and threads, when they are first called."""
    return Elementwise(_compiled(norm), _compiled(add_norm), _compiled(rotate), _compiled(gate))


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    options: dict[str, str | int | bool | Callable[..., object]] = {
        # Otherwise it would be compiled anew for each number of threads, ...
        "cpp.dynamic_threads": True,
        # ... and traced anew: the number is a part of the state that torch compares.
        "guard_filter_fn": lambda guards: [each.guard_type != "GLOBAL_STATE" for each in guards],
    }
    return torch.compile(function, dynamic=True, options=options)
