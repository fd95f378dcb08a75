"""Linear layers of a decoder: frozen ones with LoRA beside them, and full ones.

Several linear layers that read the same input (queries, keys and values; gate and up) are one
product with their weights stacked, and each has low-rank factors of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from arcd.decoder.dropout import Dropout


class Linear(Protocol):
    """What a decoder layer calls to multiply (tokens, in) to (tokens, out)."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Full:
    """A layer whose weight itself is trained; it computes in the number format of its input."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


@dataclass(frozen=True, slots=True)
class Factors:
    """LoRA's low-rank factors (arXiv 2106.09685) of some outputs of a layer."""

    begin: int
    end: int
    """The layer's outputs begin..end-1 are these factors'."""
    a: Tensor
    """(rank, in), fp32."""
    b: Tensor
    """(end - begin, rank), fp32."""
    name: str = ""
    """Of the place in the model; its dropout differs from that of other places."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """A frozen layer: x W + bias, plus scale * x A B for each of its factors."""

    weight: Tensor
    """(out, in)."""
    bias: Tensor | None
    factors: tuple[Factors, ...]
    scale: float
    dropout: Dropout | None = None
    """Of the factors' inputs."""

    def __call__(self, x: Tensor) -> Tensor:
        if not self.factors:
            return F.linear(x, self.weight, self.bias)
        if self.dropout is not None and self.dropout.probability:
            return self._with_dropout(x, self.dropout)
        spans = [(each.begin, each.end) for each in self.factors]
        pairs = [tensor for each in self.factors for tensor in (each.a, each.b)]
        product: Tensor = _Adapted.apply(x, self.weight, self.bias, self.scale, spans, *pairs)  # type: ignore[no-untyped-call]
        return product

    def _with_dropout(self, x: Tensor, dropout: Dropout) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        for each in self.factors:
            low = F.linear(dropout(x, each.name), each.a.to(x.dtype))
            more = self.scale * F.linear(low, each.b.to(x.dtype))
            y = y + F.pad(more, (each.begin, y.shape[-1] - each.end))
        return y


class _Adapted(torch.autograd.Function):
    """The products of `Adapted`, added up in place.

    As autograd would compose it, each addition reads and writes all outputs once more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        spans: Sequence[tuple[int, int]],
        *pairs: Tensor,
    ) -> Tensor:
        a = torch.cat(pairs[::2]).mul_(scale).to(x.dtype)  # (all ranks, in)
        bs = [b.to(x.dtype) for b in pairs[1::2]]
        low = x @ a.T  # (tokens, all ranks)
        y = F.linear(x, weight, bias)
        for (begin, end), part, b in zip(spans, torch.split(low, _ranks(bs), -1), bs, strict=True):
            y[:, begin:end].addmm_(part, b.T)
        ctx.save_for_backward(x, weight, low, a, *bs)
        ctx.scale, ctx.spans = scale, spans
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, low, a, *bs = ctx.saved_tensors
        ranks = _ranks(bs)
        dys = [dy[:, begin:end] for begin, end in ctx.spans]
        dlow = torch.cat([part @ b for part, b in zip(dys, bs, strict=True)], -1)
        das = torch.split((dlow.T @ x).float().mul_(ctx.scale), ranks)
        dbs = [
            (part.T @ kept).float()
            for part, kept in zip(dys, torch.split(low, ranks, -1), strict=True)
        ]
        dx = (dy @ weight).addmm_(dlow, a) if ctx.needs_input_grad[0] else None
        pairs = [gradient for both in zip(das, dbs, strict=True) for gradient in both]
        return dx, None, None, None, None, *pairs


def _ranks(bs: Sequence[Tensor]) -> list[int]:
    return [b.shape[1] for b in bs]
