"""The evaluation tasks of ARC-AGI-1 and 2, known again in any form, so that none is trained on.

A pair counts as the same however it is flipped, turned or painted in other colours. Knows nothing
of training.
"""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from arcd.arc.grids import Grid, shape
from arcd.arc.tasks import Pair, Task, TaskSet, load
from arcd.arc.views import DIHEDRAL, PLAIN_COLOURS, View

EVALUATION_SETS = ("arc1-eval", "arc2-eval")
"""Names of the bundled sets that no base model may be trained on."""

_Features = tuple[tuple[int, ...], ...]
"""Numbers of a pair that are the same in all its views; see `_features`."""


class EvaluationSet:
    """Ids and pairs of the tasks that a model is evaluated on."""

    def __init__(self, sets: Iterable[TaskSet]) -> None:
        self.ids: set[str] = set()
        self.pairs: set[Pair] = set()
        for tasks in sets:
            self.ids |= {task.id for task in tasks.tasks}
            self.pairs |= {pair for task in tasks.tasks for pair in all_pairs(task, tasks)}

    @classmethod
    def bundled(cls) -> "EvaluationSet":
        """The 514 evaluation tasks of ARC-AGI-1 and 2, tests and their solutions included."""
        return cls(load(name) for name in EVALUATION_SETS)

    def has(self, pair: Pair) -> bool:
        """Whether a view of this pair is one of the pairs."""
        # The features take a twentieth of the time, and almost all other pairs differ in them.
        return _features(pair) in self._all_features and canonical(pair) in self._canonical

    @cached_property
    def _all_features(self) -> set[_Features]:
        return {_features(pair) for pair in self.pairs}

    @cached_property
    def _canonical(self) -> set[tuple[Grid, Grid]]:
        return {canonical(pair) for pair in self.pairs}


def all_pairs(task: Task, tasks: TaskSet) -> tuple[Pair, ...]:
    """The demonstrations of a task, and its tests where the solutions are known."""
    outputs = tasks.solutions.get(task.id, ())
    return task.train + tuple(map(Pair, task.tests, outputs))


def canonical(pair: Pair) -> tuple[Grid, Grid]:
    """(input, output), the same for two pairs exactly if one is a view of the other.

    It is the smallest of the eight flipped and turned pairs, their colours renumbered.
    """
    return min(_renumbered(view.pair(pair)) for view in _SYMMETRIES)


_SYMMETRIES = tuple(View(flip, turns, PLAIN_COLOURS, ()) for flip, turns in DIHEDRAL)


def _renumbered(pair: Pair) -> tuple[Grid, Grid]:
    """Colours numbered 0, 1, ... in the order in which they first appear, the input first."""
    numbers: dict[int, int] = {}

    def renumber(grid: Grid) -> Grid:
        return tuple(tuple(numbers.setdefault(cell, len(numbers)) for cell in row) for row in grid)

    return renumber(pair.input), renumber(pair.output)


def _features(pair: Pair) -> _Features:
    """Both grids' side lengths and both grids' counts of each colour, each sorted."""
    grids = (pair.input, pair.output)
    sides = tuple(tuple(sorted(shape(grid))) for grid in grids)
    counts = (Counter(cell for row in grid for cell in row) for grid in grids)
    return sides + tuple(tuple(sorted(count.values())) for count in counts)
