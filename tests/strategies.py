"""What the tests draw from: grids, tasks, views and encodings, and a tokenizer without a model."""

import re
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from arcd.encoding import LAYERS, CellEncoding, Encoding, GridText, TextEncoding
from arcd.grids import COLOURS, MAX_SIDE, Grid
from arcd.tasks import Pair, Task
from arcd.views import View

# A busy machine is no failure.
settings.register_profile("arcd", deadline=None, max_examples=40)
settings.load_profile("arcd")

LAYERINGS = tuple(
    "+".join((*layers, "digits"))
    for layers in (
        (),
        *((a,) for a in LAYERS),
        *((a, b) for a in LAYERS for b in LAYERS if a != b),
        *((a, b, c) for a in LAYERS for b in LAYERS for c in LAYERS if len({a, b, c}) == 3),
    )
)
"""Every text encoding there is, by name."""

WORDS = r"<\|\w+\|>|\w+|\s|[^\w\s]+"
"""Cut for a tokenizer that merges whatever letters and digits stand together."""

CHARACTERS = r"<\|\w+\|>|(?s:.)"
"""Cut for a tokenizer with one token for each character."""


class FakeTokenizer:
    """Learns a token for each new piece it sees; `<|...|>` are specials of one token.

    The pieces are what the pattern `cut` finds. With `chat` it has a template of turns that
    `<|end|>` closes; without, `<|eos|>` ends a text.
    """

    def __init__(self, cut: str = WORDS, *, chat: bool = False) -> None:
        self.chat_template = "turns" if chat else None
        self.eos_token_id: int | None = 0
        self.pad_token_id: int | None = None
        self._cut = cut
        self._ids = {"<|eos|>": 0}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        pieces = re.findall(self._cut, text)
        return [self._ids.setdefault(piece, len(self._ids)) for piece in pieces]

    def decode(self, token_ids: list[int]) -> str:
        pieces = list(self._ids)
        return "".join(pieces[token] for token in token_ids)

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = True) -> str:
        return "".join(
            f"<|start|>{turn['role']}\n{turn['content']}<|end|>\n" for turn in conversation
        )


def text_encoding(
    layering: str = "rows+digits", *, chat: bool = False, cut: str = WORDS
) -> TextEncoding:
    """A text encoding on a fake tokenizer."""
    return TextEncoding(FakeTokenizer(cut, chat=chat), GridText.named(layering))


def colours() -> st.SearchStrategy[int]:
    return st.integers(0, COLOURS - 1)


@st.composite
def grids(draw: st.DrawFn, max_side: int = MAX_SIDE) -> Grid:
    """Grids of every size; large ones are painted with few free cells, which is as good."""
    rows, columns = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    free = draw(st.lists(colours(), min_size=1, max_size=40))
    # A step that is prime to the length of most patterns moves them from row to row.
    return tuple(
        tuple(free[(r * columns + c) % len(free)] for c in range(columns)) for r in range(rows)
    )


def pairs(max_side: int = MAX_SIDE) -> st.SearchStrategy[Pair]:
    return st.builds(Pair, grids(max_side), grids(max_side))


def tasks(max_pairs: int = 5, max_side: int = 6) -> st.SearchStrategy[Task]:
    """Small tasks with 1 to `max_pairs` pairs and one or two tests."""
    return st.builds(
        Task,
        st.text("0123456789abcdef", min_size=8, max_size=8),
        st.lists(pairs(max_side), min_size=1, max_size=max_pairs).map(tuple),
        st.lists(grids(max_side), min_size=1, max_size=2).map(tuple),
    )


def views(pairs: int = 3) -> st.SearchStrategy[View]:
    """Any view of a task with this many pairs."""
    return st.builds(
        View,
        st.booleans(),
        st.integers(0, 3),
        st.permutations(range(COLOURS)).map(tuple),
        st.permutations(range(pairs)).map(tuple),
    )


ENCODINGS: dict[str, Encoding] = {
    "cells": CellEncoding(),
    "text": text_encoding(),
    "chat": text_encoding("code+shape+rows+digits", chat=True),
}
"""One of each kind."""


def encodings() -> st.SearchStrategy[Encoding]:
    return st.sampled_from(list(ENCODINGS.values()))
