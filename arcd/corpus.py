"""What a base model may be pretrained on: pools of pairs by task, and never an evaluation task.

Made from the ARC-AGI-1 training tasks and, where given, a re-arc file with many more examples of
each. Refuses anything that is, or contains a pair of, an evaluation task of ARC-AGI-1 or 2.
"""

import gzip
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from arcd.compose import compose
from arcd.encoding import CellEncoding
from arcd.errors import BadGrid, BadTask
from arcd.forbidden import Forbidden, all_pairs
from arcd.grids import to_grid
from arcd.prompts import Lesson, lesson
from arcd.seeds import generator
from arcd.tasks import Pair, Task, load
from arcd.views import spread

ORIGINALS = 0.1
"""Share of lessons made from a task's own pairs rather than generated ones."""

SHOWN = (2, 5)
"""Fewest and most pairs shown before the target."""

HELD_OUT = 10
"""Generated examples of each task that are kept for measuring, never trained on."""


@dataclass(frozen=True)
class Corpus:
    """Pools of pairs by task: its own, and generated ones; and the ids that were left out."""

    own: dict[str, tuple[Pair, ...]]
    generated: dict[str, tuple[Pair, ...]]
    left_out: tuple[str, ...]
    forbidden: Forbidden

    def lesson(
        self, rng: random.Random, limit: int, *, composed: float = 0.0, held_out: bool = False
    ) -> Lesson:
        """A lesson in a random view, with loss on all outputs but the first.

        With probability `composed` it is of a composed task.
        """
        encoding = CellEncoding()
        while True:
            task = self._draw(rng, held_out=held_out)
            if composed and rng.random() < composed:
                task = replace(task, train=compose(task.train, rng))
                if any(map(self.forbidden.has, task.train)):
                    continue
            (view,) = spread(1, len(task.train), rng, keep_black=0.9)
            target = rng.randrange(len(task.train))
            found = lesson(task, target, view, encoding, limit, rng, loss="outputs")
            if isinstance(found, Lesson):
                return found

    def _draw(self, rng: random.Random, *, held_out: bool) -> Task:
        task_id = rng.choice(list(self.own))
        pool = self.generated.get(task_id, ())
        if not pool or (not held_out and rng.random() < ORIGINALS):
            pool = self.own[task_id]
        else:
            pool = pool[:HELD_OUT] if held_out else pool[HELD_OUT:]
        count = min(len(pool), rng.randint(*SHOWN) + 1)
        return Task(task_id, tuple(rng.sample(pool, count)), ())


def open_corpus(rearc: Path | None) -> Corpus:
    """The ARC-AGI-1 training tasks, with the examples of a re-arc file {id: [pair, ...]}.

    A training task that shares a pair with an evaluation task, in whatever view, is left out with
    its generated examples: 40853293 is 070dd51e of the evaluation set under another name. A
    generated pair that equals one by chance, such as a uniform 3x3 grid, is dropped. Raises BadTask
    if the file has any task that is not a training task.
    """
    training = load("arc1-train")
    forbidden = Forbidden.evaluation()
    own = {task.id: all_pairs(task, training) for task in training.tasks}
    left_out = {i for i, pool in own.items() if i in forbidden.ids or any(map(forbidden.has, pool))}
    generated = _read(rearc) if rearc else {}
    for task_id in generated.keys() & forbidden.ids | generated.keys() - own:
        raise BadTask(f"{rearc}: task {task_id}: not an ARC-AGI-1 training task")
    return Corpus(
        {i: pool for i, pool in own.items() if i not in left_out},
        {
            i: tuple(pair for pair in pool if not forbidden.has(pair))
            for i, pool in generated.items()
            if i not in left_out
        },
        tuple(sorted(left_out)),
        forbidden,
    )


def _read(path: Path) -> dict[str, tuple[Pair, ...]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            value = json.load(file)
        return {
            task_id: tuple(Pair(to_grid(p["input"]), to_grid(p["output"])) for p in pairs)
            for task_id, pairs in value.items()
        }
    except OSError as error:
        raise BadTask(f"{path}: {error.strerror or error}") from None
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
    """The lessons of one step of one worker: at most `tokens` in all, padding included.

    A pure function of its arguments, so that a run resumes where it stopped. Lessons of similar
    length are taken together: a random one and its neighbours by length among those drawn.
    """
    rng = generator(seed, "pretrain", worker, step)
    drawn = sorted(
        (corpus.lesson(rng, limit, composed=composed) for _ in range(max(4, tokens // 200))),
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
