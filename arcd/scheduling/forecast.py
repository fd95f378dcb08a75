"""Forecasts: the seconds that a task needs of trainer and engine, from its grids and the rates.

The time of a step is linear in its steps and tokens, so six rates predict any task with any number
of samples. Pure arithmetic; knows nothing of clocks or of how rates are measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from operator import add, attrgetter, sub
from typing import Any

from arcd.arc.grids import Grid, shape
from arcd.arc.selection import ATTEMPTS, CONTENDERS
from arcd.arc.tasks import Task
from arcd.config import Config
from arcd.jobs.events import Times
from arcd.model.encoding import CellEncoding, Encoding


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a task, or of several together, in counts.

    `trainings` with `train` tokens in `steps` optimizer steps; `prefill` prompt tokens and `decode`
    generated tokens; `rounds` engine steps, each of which generates one token a sample.
    """

    trainings: int = 0
    steps: int = 0
    train: int = 0
    prefill: int = 0
    decode: int = 0
    rounds: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(add, _counts(self), _counts(other)))

    def __sub__(self, other: "Work") -> "Work":
        return Work(*map(sub, _counts(self), _counts(other)))

    @property
    def untrained(self) -> "Work":
        """Only the work of the engine."""
        return replace(self, trainings=0, steps=0, train=0)


_counts = attrgetter(*(field.name for field in fields(Work)))
"""All counts; `dataclasses.astuple` takes ten times as long, and work is added up by tasks."""

NO_WORK = Work()


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds for one unit of each kind of work.

    A training takes `task + step * steps + token * tokens` seconds. An engine step takes `round`,
    plus `prompt` for each prompt token and `row` for each generated token. So n sequences decode at
    n / (round + n * row) tokens a second: on two cores 46 / 297 / 688 / 1067 were measured for
    1 / 8 / 32 / 128 of them, and this says 46 / 295 / 702 / 1069 with 21 and 0.77 ms.
    """

    task: float = 0.3
    step: float = 0.02
    token: float = 1 / 3000
    round: float = 0.021
    prompt: float = 1 / 16000
    row: float = 0.00077

    def decode(self, sequences: int) -> float:
        """Tokens a second of this many sequences together; `round` and `row` must not both be 0."""
        return sequences / (self.round + sequences * self.row)

    def to_json(self) -> dict[str, Any]:
        """Tokens a second, and seconds, for `status` and the HTTP API."""
        return {
            "train_tokens_per_second": 1 / self.token if self.token else None,
            "train_seconds_per_step": self.step,
            "train_seconds_per_task": self.task,
            "prefill_tokens_per_second": 1 / self.prompt if self.prompt else None,
            "decode_tokens_per_second": {n: self.decode(n) for n in (1, 8, 32)},
        }


COLD = Rates()
"""Rates before anything is measured: those of arcd's own base on two cores."""


class Sizes:
    """Tokens that grids take in an encoding, counted once for each shape.

    Half of the views swap rows and columns, so the count is the mean of both.
    """

    def __init__(self, encoding: Encoding) -> None:
        def mean(tokens: Callable[[Grid], Sequence[int]], rows: int, columns: int) -> int:
            return (len(tokens(_blank(rows, columns))) + len(tokens(_blank(columns, rows)))) // 2

        @cache
        def asked(rows: int, columns: int) -> int:
            return mean(partial(encoding.question, first=False), rows, columns)

        @cache
        def answered(rows: int, columns: int) -> int:
            return mean(encoding.answer, rows, columns)

        self._asked, self._answered = asked, answered

    def question(self, grid: Grid) -> int:
        """Tokens of an input."""
        return self._asked(*shape(grid))

    def answer(self, grid: Grid) -> int:
        """Tokens of an output."""
        return self._answered(*shape(grid))


CELLS = Sizes(CellEncoding())
"""Sizes in the encoding with one token a cell."""


def work(task: Task, config: Config, sizes: Sizes = CELLS) -> Work:
    """The work of a task, estimated from its grids.

    Where pairs do not fit, prompts are shorter than counted here: pairs are dropped one by one.
    Rescoring is counted at its most, because the number of different answers is not known before.
    """
    answers = [sizes.answer(pair.output) for pair in task.train]
    pairs = [sizes.question(p.input) + n for p, n in zip(task.train, answers, strict=True)]
    lesson = min(sum(pairs), config.train.max_seq_len)
    prompts = [
        min(sum(pairs) + sizes.question(query), config.engine.max_model_len) for query in task.tests
    ]
    samples, steps = config.sample.samples, config.train.steps
    answer = max(answers)
    # A daemon has filled the number in (`on_device`); without one it is a forecast for a CPU.
    batches = math.ceil(samples * len(task.tests) / config.engine.sequences("cpu"))
    contenders = min(samples, CONTENDERS) if samples > ATTEMPTS else 0
    judged = contenders * min(samples, config.sample.judging_views)
    judging = sum(min(prompt + answer, config.engine.max_model_len) for prompt in prompts)
    return Work(
        trainings=int(steps > 0),
        steps=steps,
        train=steps * config.train.batch_size * lesson,
        prefill=samples * sum(prompts) + judged * judging,
        decode=samples * len(task.tests) * answer,
        rounds=batches * answer,
    )


def times(work: Work, rates: Rates = COLD) -> Times:
    """Seconds of work at these rates, with trainer and engine for itself."""
    train = work.trainings * rates.task + work.steps * rates.step + work.train * rates.token
    reading = work.prefill * rates.prompt
    return Times(train, reading + work.rounds * rates.round + work.decode * rates.row)


def _blank(rows: int, columns: int) -> Grid:
    return ((0,) * columns,) * rows
