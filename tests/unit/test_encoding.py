from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import CHARACTERS, LAYERINGS, WORDS, FakeTokenizer, grids, text_encoding

from arcd.arc.grids import Grid
from arcd.errors import BadBase, BadConfig
from arcd.model.encoding import (
    BEGIN,
    END,
    INPUT,
    NEWLINE,
    OUTPUT,
    PAD,
    CellEncoding,
    Encoding,
    GridText,
    TextEncoding,
    cell_token,
)

CELLS = CellEncoding()
TEXTS = {
    f"{layering} {name}{' chat' if chat else ''}": text_encoding(layering, chat=chat, cut=cut)
    for layering in LAYERINGS
    for name, cut in (("words", WORDS), ("characters", CHARACTERS))
    for chat in (False, True)
}
ALL: dict[str, Encoding] = {"cells": CELLS, **TEXTS}
GRID = ((1, 2, 3), (4, 5, 6))

every_encoding = pytest.mark.parametrize("encoding", ALL.values(), ids=ALL.keys())
any_encoding = st.sampled_from(list(ALL.values()))


@every_encoding
def test_an_answer_is_read_back_as_the_grid_it_was(encoding: Encoding) -> None:
    largest = tuple(tuple((r + c) % 10 for c in range(30)) for r in range(30))
    for grid in (GRID, ((0,),), ((7,) * 30,), ((7,),) * 30, largest):
        assert encoding.parse(encoding.answer(grid)) == grid


@given(any_encoding, grids())
def test_any_grid_is_read_back_in_any_encoding(encoding: Encoding, grid: Grid) -> None:
    assert encoding.parse(encoding.answer(grid)) == grid


@given(any_encoding, grids())
def test_an_answer_has_answer_tokens_only_and_one_end(encoding: Encoding, grid: Grid) -> None:
    answer = encoding.answer(grid)
    assert set(answer) <= set(encoding.answer_tokens)
    assert answer.count(encoding.end) == 1
    assert answer[-1] == encoding.end


@given(any_encoding, grids(max_side=5))
def test_a_truncated_answer_is_not_a_grid(encoding: Encoding, grid: Grid) -> None:
    answer = encoding.answer(grid)
    assert all(encoding.parse(answer[:n]) is None for n in range(len(answer)))


@given(any_encoding, grids(max_side=5))
def test_anything_behind_the_end_is_not_part_of_an_answer(encoding: Encoding, grid: Grid) -> None:
    answer = encoding.answer(grid)
    assert encoding.parse([*answer, encoding.end]) is None
    assert encoding.parse([*answer, *answer]) is None


@given(any_encoding, st.lists(st.integers(-5, 10_000), max_size=40))
def test_arbitrary_tokens_never_raise(encoding: Encoding, tokens: list[int]) -> None:
    found = encoding.parse(tokens)
    assert found is None or encoding.answer(found) == tokens


@given(any_encoding, grids(max_side=6), st.data())
def test_a_damaged_answer_is_none_or_exactly_another_grid(
    encoding: Encoding, grid: Grid, data: st.DataObject
) -> None:
    tokens = encoding.answer(grid)
    place = data.draw(st.integers(0, len(tokens) - 1))
    token = data.draw(st.sampled_from(encoding.answer_tokens))
    damage = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    tokens[place : place + (damage != "insert")] = [] if damage == "delete" else [token]
    found = encoding.parse(tokens)
    assert found is None or encoding.answer(found) == tokens


@given(any_encoding, st.data())
def test_arbitrary_answer_tokens_never_raise(encoding: Encoding, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.sampled_from(encoding.answer_tokens), max_size=40))
    found = encoding.parse(tokens)
    assert found is None or encoding.answer(found) == tokens


@given(any_encoding, grids(max_side=6), st.booleans())
def test_padding_stands_nowhere_in_a_conversation_but_where_it_is_the_end(
    encoding: Encoding, grid: Grid, first: bool
) -> None:
    spoken = encoding.question(grid, first=first) + encoding.answer(grid)
    assert encoding.pad == encoding.end or encoding.pad not in spoken


def test_a_conversation_in_cells() -> None:
    one, two = cell_token(1, 0, 0), cell_token(2, 0, 1)
    assert CELLS.question(((1, 2),), first=True) == [BEGIN, INPUT, one, two, NEWLINE, OUTPUT]
    assert CELLS.question(((1, 2),), first=False) == [INPUT, one, two, NEWLINE, OUTPUT]
    assert CELLS.answer(((1, 2),)) == [one, two, NEWLINE, END]


def test_cell_tokens_fill_the_vocabulary_without_gap() -> None:
    every = {cell_token(c, i, j) for c in range(10) for i in range(30) for j in range(30)}
    assert every == set(range(16, CELLS.vocabulary))
    assert CELLS.vocabulary == 9016


@given(grids())
def test_the_length_of_an_answer_in_cells_is_known(grid: Grid) -> None:
    assert len(CELLS.answer(grid)) == len(grid) * (len(grid[0]) + 1) + 1 <= 931


@pytest.mark.parametrize(
    "tokens",
    [
        [cell_token(1, 1, 0), NEWLINE, END],
        [cell_token(1, 0, 1), NEWLINE, END],
        [cell_token(1, 0, 0), cell_token(2, 0, 0), NEWLINE, END],
        [cell_token(1, 0, 0), NEWLINE, cell_token(2, 0, 0), NEWLINE, END],
        [cell_token(1, 0, 0), NEWLINE, NEWLINE, END],
        [cell_token(1, 0, 0), END],
        [NEWLINE, END],
        [END],
        [],
        [cell_token(1, 0, 0), END, NEWLINE],
        [INPUT, cell_token(1, 0, 0), NEWLINE, END],
        [cell_token(1, 0, 0), PAD, NEWLINE, END],
        [cell_token(1, 0, 0), NEWLINE, OUTPUT],
        [9016, NEWLINE, END],
    ],
)
def test_cells_that_do_not_add_up_are_not_a_grid(tokens: list[int]) -> None:
    assert CELLS.parse(tokens) is None


@pytest.mark.parametrize(
    ("layering", "text"),
    [
        ("digits", "123\n456"),
        ("rows+digits", "1 123\n2 456"),
        ("shape+digits", "shape 2x3\n123\n456"),
        ("code+digits", "```grid\n123\n456\n```"),
        ("code+shape+rows+digits", "```grid\nshape 2x3\n1 123\n2 456\n```"),
        ("rows+shape+digits", "1 shape 2x3\n2 123\n3 456"),
    ],
)
def test_layers_are_written_from_the_outside_in(layering: str, text: str) -> None:
    assert GridText.named(layering).write(GRID) == text


@pytest.mark.parametrize(
    "name", ["", "rows", "digits+rows", "rows+rows+digits", "+digits", "spam+digits", "cells"]
)
def test_an_encoding_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(BadConfig) as caught:
        GridText.named(name)
    assert str(caught.value).startswith(f"unknown encoding {name!r}: expected 'digits' behind")


CONTRADICTIONS = {
    "other rows announced": ("shape+digits", "shape 3x3\n123\n456"),
    "other columns announced": ("shape+digits", "shape 2x2\n123\n456"),
    "nothing announced": ("shape+digits", "123\n456"),
    "rows from 0": ("rows+digits", "0 123\n1 456"),
    "a row left out": ("rows+digits", "1 123\n3 456"),
    "rows not numbered": ("rows+digits", "123\n456"),
    "ragged": ("digits", "123\n45"),
    "an empty row": ("digits", "123\n\n456"),
    "a break too many": ("digits", "123\n456\n"),
    "fence left open": ("code+digits", "```grid\n123\n456"),
    "words": ("digits", "shape"),
    "31 rows": ("digits", "\n".join(["1"] * 31)),
    "31 columns": ("digits", "1" * 31),
}


@pytest.mark.parametrize(("layering", "text"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
@pytest.mark.parametrize("chat", [False, True])
def test_text_that_contradicts_itself_is_not_a_grid(layering: str, text: str, chat: bool) -> None:
    tokenizer = FakeTokenizer(CHARACTERS, chat=chat)
    encoding = TextEncoding(tokenizer, GridText.named(layering))
    assert encoding.parse([*tokenizer.encode(text), encoding.end]) is None


def spoken(tokenizer: FakeTokenizer) -> str:
    """A conversation of a pair and a query, as text."""
    encoding = TextEncoding(tokenizer, GridText.named("rows+digits"))
    shown = encoding.question(((1, 2),), first=True) + encoding.answer(((3,),))
    return tokenizer.decode(shown + encoding.question(((4,),), first=False))


def test_a_conversation_without_a_chat_template() -> None:
    assert spoken(FakeTokenizer()) == (
        "Each input grid becomes its output grid by the same rule. Continue.\n\n"
        "Input:\n1 12\nOutput:\n1 3<|eos|>\n\nInput:\n1 4\nOutput:\n"
    )


def test_a_conversation_in_the_turns_of_a_chat_template() -> None:
    assert spoken(FakeTokenizer(chat=True)) == (
        "<|start|>user\nEach input grid becomes its output grid by the same rule. Continue.\n\n"
        "1 12<|end|>\n<|start|>assistant\n1 3<|end|>\n"
        "<|start|>user\n1 4<|end|>\n<|start|>assistant\n"
    )


def test_digits_are_tokens_of_their_own_even_where_the_tokenizer_merges_them() -> None:
    tokenizer = FakeTokenizer(WORDS)
    encoding = TextEncoding(tokenizer, GridText.named("digits"))
    assert len(tokenizer.encode("123")) == 1
    assert len(encoding.answer(((1, 2, 3),))) == 4


def test_the_end_is_what_closes_a_turn_or_else_a_text() -> None:
    plain, chat = FakeTokenizer(), FakeTokenizer(chat=True)
    digits = GridText.named("digits")
    assert TextEncoding(plain, digits).end == plain.eos_token_id
    assert [TextEncoding(chat, digits).end] == chat.encode("<|end|>")


def test_padding_is_the_tokenizers_own_or_else_the_end() -> None:
    tokenizer = FakeTokenizer()
    assert TextEncoding(tokenizer, GridText.named("digits")).pad == tokenizer.eos_token_id
    (tokenizer.pad_token_id,) = tokenizer.encode("<|pad|>")
    encoding = TextEncoding(tokenizer, GridText.named("digits"))
    assert encoding.pad == tokenizer.pad_token_id != encoding.end


def test_a_tokenizer_that_cannot_end_an_answer_is_refused() -> None:
    tokenizer = FakeTokenizer()
    tokenizer.eos_token_id = None
    with pytest.raises(BadBase, match="neither a chat template nor an end-of-text token"):
        TextEncoding(tokenizer, GridText.named("digits"))


class NoDigits(FakeTokenizer):
    """Splits each character in two."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [half for c in text for half in (1 + ord(c) // 256, 1000 + ord(c) % 256)]


def test_a_tokenizer_without_digits_is_refused() -> None:
    with pytest.raises(BadBase, match="no single token for '0'"):
        TextEncoding(NoDigits(), GridText.named("digits"))


class Forgetful(FakeTokenizer):
    """Its chat template shows the last turn only."""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, str]], *, tokenize: bool = True
    ) -> str:
        return super().apply_chat_template(conversation[-1:])


def test_a_chat_template_that_leaves_out_turns_is_refused() -> None:
    with pytest.raises(BadBase, match="does not show each turn once"):
        TextEncoding(Forgetful(chat=True), GridText.named("digits"))
