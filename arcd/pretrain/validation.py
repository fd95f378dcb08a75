"""What a run is measured by: lessons that are not trained on, and their loss.

Two kinds: held-out examples of the training tasks, and the tests of tasks that the corpus does not
have. Knows nothing of optimizers or checkpoints.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from arcd.arc.tasks import Pair, TaskSet
from arcd.arc.views import identity
from arcd.decoder.row import in_a_row
from arcd.errors import BadTask
from arcd.model.encoding import PAD, CellEncoding
from arcd.model.prompts import IGNORED, Lesson, lesson
from arcd.pretrain.cell_model import CellModel
from arcd.pretrain.corpus import Corpus
from arcd.pretrain.decontamination import all_pairs, canonical
from arcd.pretrain.run import Recipe, Run
from arcd.system.seeds import generator

HELD_OUT_LESSONS = 64
"""Lessons of held-out examples that a run is measured by."""


class Validation:
    """The lessons that a run is measured by, the same each time."""

    def __init__(self, run: Run) -> None:
        self._device = run.device
        self._held_out = held_out_lessons(run.corpus, run.recipe)
        self._unseen = unseen_lessons(run.unseen, run.recipe) if run.unseen else []

    def losses(self, model: CellModel) -> tuple[float | None, float | None]:
        """(held out, unseen) in nats per target grid; None where there are no lessons."""
        return (
            _nats_per_grid(model, self._held_out, self._device),
            _nats_per_grid(model, self._unseen, self._device),
        )


def held_out_lessons(corpus: Corpus, recipe: Recipe) -> list[Lesson]:
    """Lessons of held-out generated examples; none where the corpus has no generated ones."""
    if not corpus.generated:
        return []
    rng = generator(recipe.seed, "held out")
    return [corpus.lesson(rng, recipe.max_seq_len, held_out=True) for _ in range(HELD_OUT_LESSONS)]


def unseen_lessons(tasks: TaskSet, recipe: Recipe) -> list[Lesson]:
    """A lesson for each test with a solution that fits: the test is the target after all pairs."""
    found = []
    for task in tasks.tasks:
        for query, output in zip(task.tests, tasks.solutions.get(task.id, ()), strict=False):
            whole = replace(task, train=(*task.train, Pair(query, output)))
            target, rng = len(task.train), generator(recipe.seed, "unseen", task.id)
            view = identity(whole)
            made = lesson(whole, target, view, CellEncoding(), recipe.max_seq_len, rng)
            if isinstance(made, Lesson):
                found.append(made)
    return found


def check_unseen(tasks: TaskSet, run: Run) -> None:
    """Raise BadTask where one of the tasks is trained on, or where no lesson comes of them."""
    own = run.corpus.own
    trained_on = {canonical(pair) for pool in own.values() for pair in pool}
    for task in tasks.tasks:
        if task.id in own or not trained_on.isdisjoint(map(canonical, all_pairs(task, tasks))):
            raise BadTask(f"{tasks.name}: task {task.id}: is trained on, so it is not unseen")
    if not unseen_lessons(tasks, run.recipe):
        raise BadTask(f"{tasks.name}: no test with a solution that fits a lesson")


@torch.no_grad()
def _nats_per_grid(model: CellModel, lessons: Sequence[Lesson], device: str) -> float | None:
    """Mean loss of the target grids: other outputs in a lesson's labels do not count."""
    total = 0.0
    for each in lessons:
        # The target is what follows the last ignored label.
        start = max(i for i, label in enumerate(each.labels, 1) if label == IGNORED)
        labels = (*[IGNORED] * start, *each.labels[start:])
        row = in_a_row([replace(each, labels=labels)], PAD, device)
        total += float(model(row).sum())
    return total / len(lessons) if lessons else None
