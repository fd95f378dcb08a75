"""What a base model may be pretrained on: pools of pairs by task, and never an evaluation task.

Made from the training tasks of ARC-AGI-1 and 2 and, where given, a re-arc file with many more
examples of those of ARC-AGI-1. Refuses anything that is, or contains a pair of, an evaluation task
of ARC-AGI-1 or 2: most of the first's are among the training tasks of the second.
"""

import gzip
import json
import random
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from arcd.arc.grids import to_grid
from arcd.arc.tasks import Pair, Task, load
from arcd.arc.views import spread
from arcd.errors import BadGrid, BadTask
from arcd.model.encoding import CellEncoding
from arcd.model.prompts import Lesson, lesson
from arcd.pretrain.compose import compose
from arcd.pretrain.decontamination import EvaluationSet, all_pairs
from arcd.system.seeds import generator

ORIGINALS = 0.1
"""Share of lessons made from a task's own pairs where there are generated ones."""

SHOWN = (2, 5)
"""Fewest and most pairs shown before the target."""

SHORTEST = 256
"""Tokens that the shortest lessons may take."""

TRAINING = ("arc2-train", "arc1-train")
"""The sets trained on; a task that is in both is taken from the last."""

HELD_OUT = 10
"""Generated examples of each task that are kept for measuring, never trained on."""

FEWEST = HELD_OUT + SHOWN[0] + 1
"""Generated examples that a task must have to be of use."""


_Pool = tuple[list[Pair], list[int]]
"""Pairs, the smallest first, and the tokens of each."""


@dataclass(frozen=True)
class Corpus:
    """Pools of pairs by task: its own, and generated ones; and the ids that were left out."""

    own: dict[str, tuple[Pair, ...]]
    generated: dict[str, tuple[Pair, ...]]
    left_out: tuple[str, ...]
    evaluation: EvaluationSet

    def lesson(
        self, rng: random.Random, limit: int, *, composed: float = 0.0, held_out: bool = False
    ) -> Lesson:
        """A lesson in a random view, with loss on all outputs but the first.

        With probability `composed` it is of a composed task, unless the step that was drawn makes
        grids too large. The held out ones are of `generated`.
        """
        encoding = CellEncoding()
        while True:
            task = self._draw(rng, limit, held_out=held_out)
            if task is None:
                continue
            if composed and rng.random() < composed:
                task = replace(task, train=compose(task.train, rng))
                if any(map(self.evaluation.has, task.train)):
                    continue
            (view,) = spread(1, len(task.train), rng, keep_black=0.9)
            target = rng.randrange(len(task.train))
            found = lesson(task, target, view, encoding, limit, rng, loss="outputs")
            if isinstance(found, Lesson):
                return found

    def _draw(self, rng: random.Random, limit: int, *, held_out: bool) -> Task | None:
        """Pairs of a task, none larger than its share of `limit` tokens; None if it has too few."""
        task_id = rng.choice(self._generated if held_out else self._ids)
        source = "generated"
        if task_id not in self.generated or (not held_out and rng.random() < ORIGINALS):
            source = "own"
        elif held_out:
            source = "held out"
        pool, sizes = self._by_size[source][task_id]
        count = min(len(pool), rng.randint(*SHOWN) + 1)
        fitting = pool[: bisect_right(sizes, limit / count)]
        return (
            Task(task_id, tuple(rng.sample(fitting, count)), ()) if len(fitting) >= count else None
        )

    @property
    def examples(self) -> int:
        """How many generated pairs there are."""
        return sum(map(len, self.generated.values()))

    @cached_property
    def _ids(self) -> list[str]:
        return list(self.own)

    @cached_property
    def _generated(self) -> list[str]:
        return list(self.generated)

    @cached_property
    def _by_size(self) -> dict[str, dict[str, _Pool]]:
        """Pools by source and task."""
        pools = {
            "own": self.own,
            "held out": {i: pool[:HELD_OUT] for i, pool in self.generated.items()},
            "generated": {i: pool[HELD_OUT:] for i, pool in self.generated.items()},
        }
        return {
            source: {i: _sorted(pool) for i, pool in tasks.items()}
            for source, tasks in pools.items()
        }


def _sorted(pool: Sequence[Pair]) -> _Pool:
    by_size = sorted((_tokens(pair), i) for i, pair in enumerate(pool))
    return [pool[i] for _, i in by_size], [size for size, _ in by_size]


def _tokens(pair: Pair) -> int:
    """Of a pair in a lesson: its cells, a token that ends each row, and two that begin it."""
    return 2 + sum(len(grid) * (len(grid[0]) + 1) for grid in (pair.input, pair.output))


def open_corpus(rearc: Path | None) -> Corpus:
    """The training tasks, with the examples of a re-arc file {id: [pair, ...]}.

    A training task that shares a pair with an evaluation task, in whatever view, is left out with
    its generated examples: 40853293 is 070dd51e of the evaluation set under another name. A
    generated pair that equals one by chance, such as a uniform 3x3 grid, is dropped. Raises BadTask
    if the file has any task that is not a training task, or too few examples of one.
    """
    evaluation = EvaluationSet.evaluation()
    training = {name: load(name) for name in TRAINING}
    own = {task.id: all_pairs(task, found) for found in training.values() for task in found.tasks}
    known = {task.id for task in training["arc1-train"].tasks}
    left_out = {
        i for i, pool in own.items() if i in evaluation.ids or any(map(evaluation.has, pool))
    }
    generated = _read(rearc) if rearc else {}
    for task_id in generated.keys() - (known - evaluation.ids):
        raise BadTask(f"{rearc}: task {task_id}: not an ARC-AGI-1 training task")
    kept = {
        i: tuple(pair for pair in pool if not evaluation.has(pair))
        for i, pool in generated.items()
        if i not in left_out
    }
    for task_id, pool in kept.items():
        if len(pool) < FEWEST:
            raise BadTask(f"{rearc}: task {task_id}: {len(pool)} examples, {FEWEST} are needed")
    return Corpus(
        {i: pool for i, pool in own.items() if i not in left_out},
        kept,
        tuple(sorted(left_out)),
        evaluation,
    )


def _read(path: Path) -> dict[str, tuple[Pair, ...]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            value = json.load(file)
        return {
            task_id: tuple(Pair(to_grid(p["input"]), to_grid(p["output"])) for p in pairs)
            for task_id, pairs in value.items()
        }
    except (OSError, EOFError, zlib.error) as error:
        raise BadTask(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, BadGrid) as error:
        raise BadTask(f"{path}: not a re-arc file: {error}") from None


def batch(
    corpus: Corpus,
    seed: int,
    worker: int,
    step: int,
    *,
    tokens: int,
    limit: int,
    composed: float = 0.0,
) -> list[Lesson]:
    """The lessons of one step of one worker: at most `tokens` in all, padded, or a single one.

    A pure function of its arguments, so that a run resumes where it stopped. Its lessons are of a
    length up to `limit` that is drawn for the step, each octave as likely: most rules show as well
    on small grids, at a fraction of the cost. Those taken are a random one and its neighbours by
    length among twice as many as are needed, so that there is little padding.
    """
    rng = generator(seed, "pretrain", worker, step)
    longest = round(limit * min(1.0, SHORTEST / limit) ** rng.random())
    drawn = sorted(
        (corpus.lesson(rng, longest, composed=composed) for _ in range(2 * tokens // longest + 2)),
        key=lambda found: len(found.tokens),
    )
    start = rng.randrange(len(drawn))
    low = high = start
    while True:
        wider = [(low - 1, high)] if low > 0 else []
        wider += [(low, high + 1)] if high + 1 < len(drawn) else []
        wider = [(a, b) for a, b in wider if len(drawn[b].tokens) * (b - a + 1) <= tokens]
        if not wider:
            return drawn[low : high + 1]
        low, high = rng.choice(wider)
