import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import grids, tasks, views

from arcd.arc.grids import Grid
from arcd.arc.tasks import Pair, Task
from arcd.arc.views import DIHEDRAL, PLAIN_COLOURS, View, identity, spread

SIX: Grid = ((1, 2, 3), (4, 5, 6))


def symmetry(flip: bool, turns: int) -> View:
    return View(flip, turns, PLAIN_COLOURS, ())


@given(grids(), views())
def test_what_a_view_shows_can_be_carried_back(grid: Grid, view: View) -> None:
    assert view.undo(view.apply(grid)) == grid


@given(grids(), views())
def test_what_is_carried_back_can_be_shown_again(grid: Grid, view: View) -> None:
    assert view.apply(view.undo(grid)) == grid


@pytest.mark.parametrize(
    ("flip", "turns", "shown"),
    [
        (False, 0, SIX),
        (False, 1, ((3, 6), (2, 5), (1, 4))),
        (False, 2, ((6, 5, 4), (3, 2, 1))),
        (True, 0, ((3, 2, 1), (6, 5, 4))),
        (True, 1, ((1, 4), (2, 5), (3, 6))),
        (True, 3, ((6, 3), (5, 2), (4, 1))),
    ],
)
def test_the_flip_comes_first_and_turns_go_counter_clockwise(
    flip: bool, turns: int, shown: Grid
) -> None:
    assert symmetry(flip, turns).apply(SIX) == shown


def test_a_colour_is_shown_as_the_one_at_its_place() -> None:
    view = View(False, 0, (9, 8, 7, 6, 5, 4, 3, 2, 1, 0), ())
    assert view.apply(((0, 1), (2, 9))) == ((9, 8), (7, 0))


def test_the_eight_symmetries_are_distinct() -> None:
    assert len({symmetry(flip, turns).apply(SIX) for flip, turns in DIHEDRAL}) == 8


@given(tasks())
def test_the_identity_changes_nothing(task: Task) -> None:
    view = identity(task)
    assert [view.pair(task.train[i]) for i in view.order] == list(task.train)


@given(grids(), grids(), views())
def test_both_grids_of_a_pair_are_shown_alike(first: Grid, second: Grid, view: View) -> None:
    assert view.pair(Pair(first, second)) == Pair(view.apply(first), view.apply(second))


@given(st.integers(0, 60), st.integers(1, 6), st.integers(), st.booleans())
def test_views_are_spread_evenly_for_any_number_of_them(
    n: int, pairs: int, seed: int, colours: bool
) -> None:
    found = spread(n, pairs, random.Random(seed), keep_black=0.5, colours=colours)
    counts = Counter((view.flip, view.turns) for view in found)
    every = [counts[symmetry] for symmetry in DIHEDRAL]
    assert len(found) == sum(every) == n
    assert max(every) - min(every) <= 1
    assert all(sorted(view.order) == list(range(pairs)) for view in found)
    assert all(sorted(view.colours) == list(PLAIN_COLOURS) for view in found)


def test_the_same_seed_gives_the_same_views() -> None:
    first, second = (spread(20, 3, random.Random(7), keep_black=0.5) for _ in range(2))
    assert first == second
    assert first != spread(20, 3, random.Random(8), keep_black=0.5)


@given(st.integers())
def test_black_stays_black_where_it_is_asked_to(seed: int) -> None:
    found = spread(8, 2, random.Random(seed), keep_black=1.0)
    assert all(view.colours[0] == 0 for view in found)
    assert any(view.colours != PLAIN_COLOURS for view in found)


def test_black_is_a_colour_like_others_where_it_is_not() -> None:
    found = spread(200, 2, random.Random(0), keep_black=0.0)
    assert {view.colours[0] for view in found} == set(PLAIN_COLOURS)


@given(st.integers())
def test_colours_can_be_left_alone(seed: int) -> None:
    found = spread(8, 2, random.Random(seed), keep_black=0.0, colours=False)
    assert all(view.colours == PLAIN_COLOURS for view in found)
