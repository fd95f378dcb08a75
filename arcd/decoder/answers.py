"""The loss over the tokens that an answer can have: the softmax is over these, as in sampling.

A base in cells has 9002 of them, but its table of outputs is a sum of small tables, so the sum of
exponentials factorises. A text model has some twenty, out of 150 000 rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from arcd.arc.grids import COLOURS, MAX_SIDE
from arcd.model.encoding import SPECIALS, CellEncoding

ROUNDING = 2**-7
"""How far a table of outputs in bf16 may be from the sum of its factors, as a fraction of its
largest entry: two roundings."""


class Head(Protocol):
    """Log-probabilities of answer tokens."""

    @property
    def columns(self) -> int:
        """Logits that it computes for each hidden state."""
        ...

    def __call__(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """log p(token), (n,), in fp32, for hidden states (n, width) and answer tokens (n,)."""
        ...


def head(table: Tensor, answer_tokens: Sequence[int]) -> Head:
    """The head of a frozen table of outputs (vocabulary, width)."""
    if tuple(answer_tokens) == CellEncoding.answer_tokens and len(table) == CellEncoding.vocabulary:
        factors = Cells.of(table, [token for token in answer_tokens if token < SPECIALS])
        if factors is not None:
            return factors
    return Rows(table, answer_tokens)


class Rows:
    """The rows of the table that belong to answer tokens."""

    def __init__(self, table: Tensor, answer_tokens: Sequence[int]) -> None:
        wanted = torch.tensor(answer_tokens, device=table.device)
        self._rows = table[wanted]
        self._row_of = row_of(wanted, len(table))

    @property
    def columns(self) -> int:
        """See `Head`."""
        return len(self._rows)

    def __call__(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """See `Head`."""
        logits = F.linear(hidden, self._rows).float()
        return -F.cross_entropy(logits, self._row_of[tokens], reduction="none")


@dataclass(frozen=True, slots=True)
class Cells:
    """A head whose rows for cells are sums: of a vector for the colour, the row and the column."""

    special: Tensor
    """(special tokens that an answer can have, width)."""
    colour: Tensor
    row: Tensor
    column: Tensor
    """(10, width), (30, width), (30, width)."""
    special_row: Tensor
    """(16,): where each special token is in `special`."""

    @classmethod
    def of(cls, table: Tensor, specials: Sequence[int]) -> "Cells | None":
        """The factors of a table (9016, width), with these special tokens; None if it has none."""
        cells = table[SPECIALS:].float().view(COLOURS, MAX_SIDE, MAX_SIDE, -1)
        mean = cells.mean((0, 1, 2))
        # The means are the least-squares solution: each cell occurs once.
        colour, row, column = (
            cells.mean((1, 2)),
            cells.mean((0, 2)) - mean,
            cells.mean((0, 1)) - mean,
        )
        found = colour[:, None, None] + row[None, :, None] + column[None, None]
        if (found - cells).abs().max() > ROUNDING * cells.abs().max():
            return None
        colour, row, column = (x.to(table.dtype) for x in (colour, row, column))
        wanted = torch.tensor(specials, device=table.device)
        return cls(table[wanted], colour, row, column, row_of(wanted, SPECIALS))

    @property
    def columns(self) -> int:
        """See `Head`."""
        return sum(map(len, (self.special, self.colour, self.row, self.column)))

    def __call__(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """See `Head`. Equal to the log-softmax over the summed rows.

        A cell's logit is the sum of three logits, so the log-sum-exp over all cells is the sum of
        those over colours, rows and columns.
        """
        special, colour, row, column = (
            F.linear(hidden, table.to(hidden.dtype)).float()
            for table in (self.special, self.colour, self.row, self.column)
        )
        cells = colour.logsumexp(-1) + row.logsumexp(-1) + column.logsumexp(-1)
        total = torch.logaddexp(special.logsumexp(-1), cells)
        place = (tokens - SPECIALS).clamp(min=0)
        cell = (
            _pick(colour, place // (MAX_SIDE * MAX_SIDE))
            + _pick(row, place // MAX_SIDE % MAX_SIDE)
            + _pick(column, place % MAX_SIDE)
        )
        # A cell has no row here, and may look up any.
        alone = _pick(special, self.special_row[tokens.clamp(max=SPECIALS - 1)].clamp(min=0))
        return torch.where(tokens < SPECIALS, alone, cell) - total


def row_of(wanted: Tensor, vocabulary: int) -> Tensor:
    """The place of each token in `wanted`, (vocabulary,).

    It is -1 for other tokens: the loss of one is an error, as of any class out of range.
    """
    rows = torch.full((vocabulary,), -1, device=wanted.device)
    rows[wanted] = torch.arange(len(wanted), device=wanted.device)
    return rows


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    """logits[i, index[i]] for logits (n, choices) and an index (n,)."""
    return logits.gather(-1, index[:, None])[:, 0]
