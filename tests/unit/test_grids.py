import pytest
from hypothesis import given
from support.strategies import grids

from arcd.arc.grids import Grid, shape, to_grid, to_lists
from arcd.errors import BadGrid


@given(grids())
def test_a_grid_survives_its_json_form(grid: Grid) -> None:
    assert to_grid(to_lists(grid)) == grid


@given(grids())
def test_a_grid_is_a_value_that_can_be_a_key(grid: Grid) -> None:
    assert {grid: 1}[to_grid(to_lists(grid))] == 1


def test_shape_is_rows_then_columns() -> None:
    assert shape(((1, 2, 3), (4, 5, 6))) == (2, 3)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not a non-empty list of rows: None"),
        ([], "not a non-empty list of rows: []"),
        ("12", "not a non-empty list of rows: '12'"),
        ({}, "not a non-empty list of rows: {}"),
        ([1, 2], "row 0 is not a non-empty list of colours: 1"),
        ([[]], "row 0 is not a non-empty list of colours: []"),
        ([[1], []], "row 1 is not a non-empty list of colours: []"),
        ([[1, 2], [1]], "row 1 has 1 cells, row 0 has 2"),
        ([[1], [1, 2]], "row 1 has 2 cells, row 0 has 1"),
        ([[1, 10]], "cell (0, 1) is not a colour 0..9: 10"),
        ([[-1]], "cell (0, 0) is not a colour 0..9: -1"),
        ([[1.0]], "cell (0, 0) is not a colour 0..9: 1.0"),
        ([["1"]], "cell (0, 0) is not a colour 0..9: '1'"),
        ([[None]], "cell (0, 0) is not a colour 0..9: None"),
        ([[0], [True]], "cell (1, 0) is not a colour 0..9: True"),
        ([[[1]]], "cell (0, 0) is not a colour 0..9: [1]"),
        ([[0]] * 31, "31 rows, at most 30 are allowed"),
        ([[0] * 31], "row 0 has 31 cells, at most 30 are allowed"),
    ],
)
def test_what_is_not_a_grid_is_refused_with_the_reason(value: object, reason: str) -> None:
    with pytest.raises(BadGrid) as caught:
        to_grid(value)
    assert str(caught.value) == reason


def test_a_long_value_is_named_in_short() -> None:
    with pytest.raises(BadGrid) as caught:
        to_grid([["x" * 1000]])
    assert len(str(caught.value)) < 100
    assert str(caught.value).endswith("...")
