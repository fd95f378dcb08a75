"""Small tasks with known answers, for the tests of everything that solves or keeps them."""

from collections.abc import Iterable

from arcd.arc.grids import Grid
from arcd.arc.selection import Candidate
from arcd.arc.tasks import Pair, Solutions, Task, TaskSet
from arcd.arc.views import identity


def grid(rows: int, columns: int, colour: int = 1) -> Grid:
    return tuple(tuple((colour + r + c) % 10 for c in range(columns)) for r in range(rows))


def task(name: str = "t", side: int = 3, pairs: int = 3, tests: int = 1) -> Task:
    shown = tuple(Pair(grid(side, side, i), grid(side, side, i + 1)) for i in range(pairs))
    return Task(name, shown, tuple(grid(side, side, 7 + i) for i in range(tests)))


def solutions(tasks: Iterable[Task]) -> Solutions:
    """As large as the outputs shown, and square: answers are of one length in all views."""
    sides = {t.id: len(t.train[0].output) for t in tasks}
    return {
        t.id: tuple(grid(sides[t.id], sides[t.id], 5 + i) for i in range(len(t.tests)))
        for t in tasks
    }


def task_set(*tasks: Task, name: str = "small") -> TaskSet:
    """A set whose solutions are known."""
    return TaskSet(name, tasks, solutions(tasks))


def candidate(
    of: Task, test: int = 0, sample: int = 0, grid: Grid | None = ((1,),), adapter: int | None = 3
) -> Candidate:
    return Candidate(of.id, test, identity(of), (0,), sample, adapter, grid, -0.5, 4)
