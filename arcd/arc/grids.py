"""The grid: a rectangle of 1..30 x 1..30 colours 0..9, an immutable and hashable value.

Knows nothing of tasks, views or tokens.
"""

from arcd.errors import BadGrid

Grid = tuple[tuple[int, ...], ...]
"""Rows of colours; `grid[row][column]`."""

GridText = str
"""A grid as a text: its rows of digits, e.g. 012/345."""

COLOURS = 10
"""Colours of a cell: 0..9."""

MAX_SIDE = 30
"""Rows, and columns, of a grid at most."""


def to_grid(value: object) -> Grid:
    """The grid of a JSON value, a list of lists of ints.

    Raises BadGrid with the reason, e.g. "row 2 has 3 cells, row 0 has 4".
    """
    if not isinstance(value, list | tuple) or not value:
        raise BadGrid(f"not a non-empty list of rows: {_brief(value)}")
    if len(value) > MAX_SIDE:
        raise BadGrid(f"{len(value)} rows, at most {MAX_SIDE} are allowed")
    return tuple(_to_row(i, row, value[0]) for i, row in enumerate(value))


def _to_row(i: int, row: object, first: object) -> tuple[int, ...]:
    if not isinstance(row, list | tuple) or not row:
        raise BadGrid(f"row {i} is not a non-empty list of colours: {_brief(row)}")
    if len(row) > MAX_SIDE:
        raise BadGrid(f"row {i} has {len(row)} cells, at most {MAX_SIDE} are allowed")
    if isinstance(first, list | tuple) and len(row) != len(first):
        raise BadGrid(f"row {i} has {len(row)} cells, row 0 has {len(first)}")
    # A row at a time: a large order has a hundred million cells.
    if set(map(type, row)) != _INTEGERS or min(row) < 0 or max(row) >= COLOURS:
        j = next(j for j, cell in enumerate(row) if not _is_colour(cell))
        raise BadGrid(f"cell ({i}, {j}) is not a colour 0..9: {_brief(row[j])}")
    return tuple(row)


_INTEGERS = {int}
"""Not isinstance: bool is an int in Python, but `true` in a task file is a mistake."""


def _is_colour(cell: object) -> bool:
    return type(cell) is int and 0 <= cell < COLOURS


def _brief(value: object) -> str:
    """Its repr in at most 40 characters, for an error of one line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def shape(grid: Grid) -> tuple[int, int]:
    """(rows, columns)."""
    return len(grid), len(grid[0])


def to_text(grid: Grid) -> GridText:
    """Its rows as digits."""
    return "/".join("".join(map(str, row)) for row in grid)


def to_lists(grid: Grid) -> list[list[int]]:
    """The JSON form of a grid."""
    return [list(row) for row in grid]
