"""What no base model may be trained on: the evaluation tasks of ARC-AGI-1 and 2, in any form.

A pair is known again however it is turned, flipped or painted. Knows nothing of training.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from arcd.arc.grids import Grid, shape
from arcd.arc.tasks import Pair, Task, TaskSet, load
from arcd.arc.views import DIHEDRAL, PLAIN_COLOURS, View

EVALUATION = ("arc1-eval", "arc2-eval")

_Look = tuple[tuple[int, ...], ...]


class EvaluationSet:
    """The ids and the pairs of tasks that are not to be trained on."""

    def __init__(self, sets: Iterable[TaskSet]) -> None:
        self.ids: set[str] = set()
        self.pairs: set[Pair] = set()
        for tasks in sets:
            self.ids |= {task.id for task in tasks.tasks}
            self.pairs |= {pair for task in tasks.tasks for pair in all_pairs(task, tasks)}

    @classmethod
    def evaluation(cls) -> "EvaluationSet":
        """Those of the two evaluation sets."""
        return cls(load(name) for name in EVALUATION)

    def has(self, pair: Pair) -> bool:
        """Whether this is one of the pairs, seen in any of the eight ways and in any colours."""
        return _look(pair) in self._looks and canonical(pair) in self._canonical

    @cached_property
    def _looks(self) -> set[_Look]:
        return {_look(pair) for pair in self.pairs}

    @cached_property
    def _canonical(self) -> set[tuple[Grid, Grid]]:
        return {canonical(pair) for pair in self.pairs}


def all_pairs(task: Task, tasks: TaskSet) -> tuple[Pair, ...]:
    """The demonstrations of a task, and its tests where the solutions are known."""
    outputs = tasks.solutions.get(task.id, ())
    return task.train + tuple(map(Pair, task.tests, outputs))


def canonical(pair: Pair) -> tuple[Grid, Grid]:
    """Input and output, the same for all pairs that are views of each other, and for no others."""
    return min(_named(view.pair(pair)) for view in _PLAIN_VIEWS)


_PLAIN_VIEWS = tuple(View(flip, turns, PLAIN_COLOURS, ()) for flip, turns in DIHEDRAL)


def _named(pair: Pair) -> tuple[Grid, Grid]:
    """With the colours numbered as they come, input first."""
    names: dict[int, int] = {}

    def named(grid: Grid) -> Grid:
        return tuple(tuple(names.setdefault(cell, len(names)) for cell in row) for row in grid)

    return named(pair.input), named(pair.output)


def _look(pair: Pair) -> _Look:
    """Cheap to know, and the same in all views: sides, and how often the colours come."""
    grids = (pair.input, pair.output)
    sides = tuple(tuple(sorted(shape(grid))) for grid in grids)
    counts = (Counter(cell for row in grid for cell in row) for grid in grids)
    return sides + tuple(tuple(sorted(count.values())) for count in counts)
