"""A batch as one row: its lessons stand one after another. Knows nothing of models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from arcd.decoder.attention import Span
from arcd.model.collate import uploaded
from arcd.model.prompts import IGNORED, Lesson

LENGTH_STEP_TOKENS = 32
"""A lesson in a row is padded to a multiple of this. A CPU's kernels are made and kept for each
shape."""


@dataclass(frozen=True, slots=True)
class Row:
    """A batch of lessons; all its tensors are int64."""

    tokens: Tensor
    """(tokens,)."""
    places: Tensor
    """(tokens,): the place of each token in its lesson."""
    wanted: Tensor
    """(wanted,): the places whose next token has a loss."""
    targets: Tensor
    """(wanted,): these next tokens."""
    spans: tuple[Span, ...]
    """Where each lesson stands."""


def in_a_row(lessons: Sequence[Lesson], pad: int, device: str) -> Row:
    """The lessons, each padded at its end: no token sees what stands behind it."""
    tokens: list[int] = []
    places: list[int] = []
    wanted: list[int] = []
    targets: list[int] = []
    spans: list[Span] = []
    for lesson in lessons:
        begin, length = len(tokens), _padded(len(lesson.tokens))
        tokens += lesson.tokens
        tokens += [pad] * (length - len(lesson.tokens))
        places += range(length)
        # Nothing stands before the first token, so that one is never a target.
        for place, label in enumerate(lesson.labels[1:]):
            if label != IGNORED:
                wanted.append(begin + place)
                targets.append(label)
        spans.append((begin, begin + length))
    on_device = uploaded(tokens, places, wanted, targets, device=device)
    return Row(on_device[0], on_device[1], on_device[2], on_device[3], tuple(spans))


def padded(lengths: Sequence[int]) -> int:
    """The tokens of a row with lessons of these lengths."""
    return sum(map(_padded, lengths))


def _padded(length: int) -> int:
    return math.ceil(length / LENGTH_STEP_TOKENS) * LENGTH_STEP_TOKENS
