"""Composed tasks: an extra step before or after what a task asks for makes a new task of it.

The re-arc generators know 400 rules. With all inputs, or all outputs, of a task flipped, turned,
painted, framed, enlarged or mirrored the rule is another one, so that a base model meets far more
rules than examples of each. Pure. Knows nothing of training.
"""

import random
from collections.abc import Callable, Sequence

from arcd.arc.grids import COLOURS, MAX_SIDE, Grid, shape
from arcd.arc.tasks import Pair
from arcd.arc.views import DIHEDRAL, PLAIN_COLOURS, View

Step = Callable[[Grid], Grid]


def compose(pairs: Sequence[Pair], rng: random.Random) -> tuple[Pair, ...]:
    """The pairs with one side of all of them changed in one way.

    As they are if that makes a grid too large.
    """
    step = rng.choice(STEPS)(rng)
    if rng.random() < 0.5:
        changed = tuple(Pair(step(pair.input), pair.output) for pair in pairs)
    else:
        changed = tuple(Pair(pair.input, step(pair.output)) for pair in pairs)
    fits = all(max(*shape(p.input), *shape(p.output)) <= MAX_SIDE for p in changed)
    return changed if fits else tuple(pairs)


def turned(rng: random.Random) -> Step:
    """One of the seven flips and turns that change something."""
    flip, turns = rng.choice([way for way in DIHEDRAL if way != (False, 0)])
    return View(flip, turns, PLAIN_COLOURS, ()).apply


def painted(rng: random.Random) -> Step:
    """Other colours, all different; the background stays."""
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
    """Each cell two or three times as high and wide, or one of both."""
    down, right = rng.choice(((2, 2), (2, 2), (3, 3), (1, 2), (2, 1)))

    def step(grid: Grid) -> Grid:
        rows = (tuple(cell for cell in row for _ in range(right)) for row in grid)
        return tuple(row for row in rows for _ in range(down))

    return step


def mirrored(rng: random.Random) -> Step:
    """The grid, repeated or mirrored, once more beside it, below it, or both."""
    beside, below = rng.choice(((True, False), (False, True), (True, True)))
    repeated = rng.random() < 0.5

    def step(grid: Grid) -> Grid:
        if beside:
            grid = tuple(row + (row if repeated else row[::-1]) for row in grid)
        return grid + (grid if repeated else grid[::-1]) if below else grid

    return step


STEPS = (turned, painted, framed, enlarged, mirrored)
