"""Forecasts: how long a task will take each lane, from its grids and the rates of the machine.

Pure arithmetic. Tokens are counted as an encoding with one token a cell counts them; another one
scales all tasks alike, which changes no order. Knows nothing of clocks or of what is measured.
"""

from dataclasses import dataclass

from arcd.config import Config
from arcd.grids import Grid
from arcd.tasks import Task


@dataclass(frozen=True, slots=True)
class Work:
    """What a task asks of the machine, in tokens: trained on, read as prompts, and generated."""

    train: int
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second of each kind of work."""

    train: float = 2000.0
    prefill: float = 2500.0
    decode: float = 400.0


COLD = Rates()
"""Before anything is measured: arcd's own base on two cores, 16 sequences at once."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that a task needs of the trainer and of the engine."""

    train: float
    infer: float

    @property
    def total(self) -> float:
        return self.train + self.infer


def work(task: Task, config: Config) -> Work:
    """The work that a task will be, as far as its grids tell."""
    outputs = [_tokens(pair.output) for pair in task.train]
    pairs = [_tokens(pair.input) + n for pair, n in zip(task.train, outputs, strict=True)]
    lesson = min(sum(pairs), config.train.max_seq_len)
    queries = [_tokens(grid) for grid in task.tests]
    prompts = [min(sum(pairs) + query, config.engine.max_model_len) for query in queries]
    samples = config.sample.samples
    answer = max(outputs)
    return Work(
        config.train.steps * config.train.batch_size * lesson,
        samples * sum(prompts),
        samples * answer * len(queries),
    )


def times(work: Work, rates: Rates = COLD) -> Times:
    """Seconds of work at these rates."""
    return Times(
        work.train / rates.train, work.prefill / rates.prefill + work.decode / rates.decode
    )


def _tokens(grid: Grid) -> int:
    """A token for each cell, the end of each row and the begin and end of the grid."""
    return len(grid) * (len(grid[0]) + 1) + 2
