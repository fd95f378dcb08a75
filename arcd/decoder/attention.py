"""Causal attention of lessons that stand one after another in a row, without padding between them.

On a CPU torch's attention kernel reaches a third of the speed of its matrix products. Here each
lesson's queries are taken in blocks, and a block's scores against all keys up to its end are one
product. Elsewhere it is torch's kernel, lesson by lesson.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256
"""Queries in a block. Smaller blocks compute fewer scores above the diagonal, larger ones are
faster products: 128, 256 and 512 differ by less than 5 % from 600 to 2200 tokens."""

Span = tuple[int, int]
"""Where a lesson stands: its first token, and the one after its last."""


def attend(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span]) -> Tensor:
    """The values that each token sees in its lesson: (tokens, heads * size).

    `q` is (heads, tokens, size), `k` and `v` (key heads, tokens, size) with `heads` a multiple of
    `key heads`.
    """
    if q.device.type == "cpu":
        attended: Tensor = _Blockwise.apply(q, k, v, spans)  # type: ignore[no-untyped-call]
        return attended
    repeats = len(q) // len(k)
    if repeats > 1:
        # With enable_gqa a GPU before Ampere has only the kernel that keeps all scores.
        k, v = (x.repeat_interleave(repeats, 0) for x in (k, v))
    seen = [
        F.scaled_dot_product_attention(
            q[None, :, begin:end], k[None, :, begin:end], v[None, :, begin:end], is_causal=True
        )[0]
        for begin, end in spans
    ]
    return torch.cat(seen, 1).transpose(0, 1).flatten(1)


class _Blockwise(torch.autograd.Function):
    """`attend` on a CPU. The queries of all heads that share a key head stand in one product."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span]) -> Tensor:
        out = q.new_empty(q.shape[1], len(q), q.shape[2])
        kept = []
        for start, end in spans:
            keys = k[:, start:end].transpose(1, 2).contiguous()  # products are faster with it
            for first, last in _blocks(end - start):
                block = slice(start + first, start + last)
                scores = torch.bmm(_queries(q, block, len(k)), keys[..., :last])
                _hide_later(scores, last - first)
                shares = scores.softmax(-1)
                seen = torch.bmm(shares, v[:, start : start + last])
                out[block] = seen.view(len(q), last - first, -1).transpose(0, 1)
                kept.append(shares)
        # Saved as autograd's own, so that checkpointing can drop them.
        ctx.save_for_backward(q, k, v, *kept)
        ctx.spans = spans
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        heads, _, size = q.shape
        gradient = gradient.view(-1, heads, size).transpose(0, 1)
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        shares_of = iter(kept)
        for start, end in ctx.spans:
            values = v[:, start:end].transpose(1, 2).contiguous()
            for first, last in _blocks(end - start):
                block, seen = slice(start + first, start + last), slice(start, start + last)
                shares = next(shares_of)
                given = _grouped(gradient, block, len(k))
                dshares = torch.bmm(given, values[..., :last])
                dscores = torch.ops.aten._softmax_backward_data(dshares, shares, -1, q.dtype)
                dqueries = torch.bmm(dscores, k[:, seen]) / math.sqrt(size)
                dq[:, block] = dqueries.view(heads, last - first, size)
                dk[:, seen] += torch.bmm(dscores.transpose(1, 2), _queries(q, block, len(k)))
                dv[:, seen] += torch.bmm(shares.transpose(1, 2), given)
        return dq, dk.to(k.dtype), dv.to(v.dtype), None


def _blocks(length: int) -> Iterator[Span]:
    """A lesson's blocks of queries."""
    for first in range(0, length, BLOCK):
        yield first, min(first + BLOCK, length)


def _grouped(x: Tensor, block: slice, groups: int) -> Tensor:
    """(heads, tokens, size) at a block: (key heads, heads / key heads * block, size)."""
    return x[:, block].reshape(groups, -1, x.shape[-1])


def _queries(q: Tensor, block: slice, groups: int) -> Tensor:
    """The queries of a block, scaled (arXiv 1706.03762) and grouped by key head."""
    return _grouped(q, block, groups) / math.sqrt(q.shape[-1])


def _hide_later(scores: Tensor, block: int) -> None:
    """Hide from each query of a block the keys after it, in place; the block's keys come last."""
    by_query = scores.view(len(scores), -1, block, scores.shape[-1])
    by_query[..., -block:] += _later(block, scores.dtype)


@cache
def _later(block: int, dtype: torch.dtype) -> Tensor:
    """(block, block): minus infinity above the diagonal, zero elsewhere."""
    return torch.full((block, block), -math.inf, dtype=dtype).triu(1)
