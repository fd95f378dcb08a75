"""Views: a task flipped, turned, with its colours permuted and its pairs in another order.

A view maps grids to grids and has an exact inverse, so an output predicted in the view is mapped
back to the task's own. Knows nothing of tokens or models.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from arcd.arc.grids import COLOURS, Grid
from arcd.arc.tasks import Pair, Task

DIHEDRAL = tuple((flip, turns) for flip in (False, True) for turns in range(4))
"""The symmetries of the square: (horizontal flip first?, quarter turns counter-clockwise)."""

PLAIN_COLOURS = tuple(range(COLOURS))
"""The permutation that changes no colour."""


@dataclass(frozen=True, slots=True)
class View:
    """One way to show a task: colours are permuted first, then flip, then turns."""

    flip: bool
    """Whether left and right are exchanged."""
    turns: int
    """Quarter turns counter-clockwise, 0..3."""
    colours: tuple[int, ...]
    """colours[c] is the colour shown for c."""
    order: tuple[int, ...]
    """Indices of the demonstration pairs in the order in which they are shown."""

    def apply(self, grid: Grid) -> Grid:
        """The grid as this view shows it."""
        return _turn(_flip(_paint(grid, self.colours), self.flip), self.turns)

    def undo(self, grid: Grid) -> Grid:
        """The inverse of `apply`."""
        return _paint(_flip(_turn(grid, -self.turns), self.flip), _inverse(self.colours))

    def pair(self, pair: Pair) -> Pair:
        """A demonstration pair as this view shows it."""
        return Pair(self.apply(pair.input), self.apply(pair.output))


def identity(task: Task) -> View:
    """The view that changes nothing."""
    return View(False, 0, PLAIN_COLOURS, tuple(range(len(task.train))))


def spread(
    n: int, pairs: int, rng: random.Random, *, keep_black: float, colours: bool = True
) -> list[View]:
    """n random views of `pairs` demonstration pairs, spread evenly over the eight symmetries.

    The counts of any two symmetries differ by at most one, for every n. `keep_black` is the
    probability that colour 0, the usual background, stays in place; `colours=False` leaves all
    colours as they are.
    """
    views: list[View] = []
    while len(views) < n:
        for flip, turns in rng.sample(DIHEDRAL, len(DIHEDRAL)):
            palette = _palette(rng, keep_black) if colours else PLAIN_COLOURS
            views.append(View(flip, turns, palette, tuple(rng.sample(range(pairs), pairs))))
    return views[:n]


def _palette(rng: random.Random, keep_black: float) -> tuple[int, ...]:
    if rng.random() < keep_black:
        return (0, *rng.sample(range(1, COLOURS), COLOURS - 1))
    return tuple(rng.sample(range(COLOURS), COLOURS))


def _paint(grid: Grid, colours: Sequence[int]) -> Grid:
    return tuple(tuple(colours[cell] for cell in row) for row in grid)


def _inverse(colours: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(colours)), key=colours.__getitem__))


def _flip(grid: Grid, flip: bool) -> Grid:
    return tuple(row[::-1] for row in grid) if flip else grid


def _turn(grid: Grid, turns: int) -> Grid:
    for _ in range(turns % 4):
        grid = tuple(zip(*grid, strict=True))[::-1]
    return grid
