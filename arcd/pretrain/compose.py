"""Composed tasks: an extra step before or after a task's rule makes a new task with a new rule.

All inputs, or all outputs, of a task are flipped, turned, painted, framed, enlarged or mirrored in
the same way. The re-arc generators have 400 rules; with composed tasks a base model learns from
many more. Pure. Knows nothing of training.
"""

import random
from collections.abc import Callable, Sequence

from arcd.arc.grids import COLOURS, MAX_SIDE, Grid, shape
from arcd.arc.tasks import Pair
from arcd.arc.views import DIHEDRAL, PLAIN_COLOURS, View

Step = Callable[[Grid], Grid]
"""A change of one grid that loses nothing: different grids stay different."""


def compose(pairs: Sequence[Pair], rng: random.Random) -> tuple[Pair, ...]:
    """The pairs with all inputs, or all outputs, changed by the same random step.

    Returned as they are if the step makes a grid larger than 30x30.
    """
    step = rng.choice(STEPS)(rng)
    if rng.random() < 0.5:
        changed = tuple(Pair(step(pair.input), pair.output) for pair in pairs)
    else:
        changed = tuple(Pair(pair.input, step(pair.output)) for pair in pairs)
    fits = all(max(*shape(p.input), *shape(p.output)) <= MAX_SIDE for p in changed)
    return changed if fits else tuple(pairs)


def turned(rng: random.Random) -> Step:
    """One of the seven symmetries of the square other than the identity."""
    flip, turns = rng.choice([way for way in DIHEDRAL if way != (False, 0)])
    return View(flip, turns, PLAIN_COLOURS, ()).apply


def painted(rng: random.Random) -> Step:
    """Colours 1..9 permuted; colour 0, the usual background, stays."""
    colours = (0, *rng.sample(range(1, COLOURS), COLOURS - 1))
    return View(False, 0, colours, ()).apply


def framed(rng: random.Random) -> Step:
    """A border of one colour, one or two cells wide."""
    colour, width = rng.randrange(COLOURS), rng.choice((1, 1, 2))

    def step(grid: Grid) -> Grid:
        sides = (colour,) * width
        whole = ((colour,) * (len(grid[0]) + 2 * width),) * width
        return (*whole, *(sides + row + sides for row in grid), *whole)

    return step


def enlarged(rng: random.Random) -> Step:
    """Each cell two or three times as high and wide, or twice as high or wide."""
    down, right = rng.choice(((2, 2), (2, 2), (3, 3), (1, 2), (2, 1)))

    def step(grid: Grid) -> Grid:
        rows = (tuple(cell for cell in row for _ in range(right)) for row in grid)
        return tuple(row for row in rows for _ in range(down))

    return step


def mirrored(rng: random.Random) -> Step:
    """The grid, repeated or mirrored, added beside it, below it, or both."""
    beside, below = rng.choice(((True, False), (False, True), (True, True)))
    repeated = rng.random() < 0.5

    def step(grid: Grid) -> Grid:
        if beside:
            grid = tuple(row + (row if repeated else row[::-1]) for row in grid)
        return grid + (grid if repeated else grid[::-1]) if below else grid

    return step


STEPS = (turned, painted, framed, enlarged, mirrored)
"""The kinds of step, drawn equally often; each makes a `Step` with random details."""
