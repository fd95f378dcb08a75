"""Arithmetic of budgets: how many steps and samples a task gets, and how long it may be sampled.

Under time pressure each task gets as little as a quarter of its steps and samples before any task
is skipped. Pure functions of times; the rounds themselves are in `rounds`. Knows nothing of clocks.
"""

import math
import re
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

from arcd.config import Config
from arcd.errors import BadConfig
from arcd.jobs.events import Times

CHEAP_SAMPLES = 2
"""Samples for each test in round 0."""

LEAST_ALLOTMENT = 0.25
"""A task gets at least this part of its steps and samples: less would teach the adapter nothing."""

SAFETY_FACTOR = 1.15
"""Predicted times are multiplied by this. A task that takes longer than predicted can cost another
task its answer; one that takes less leaves time for another round."""

PACE_WINDOW = 32
"""Tasks over which the pace is measured: older ones say little about the machine as it is now."""

PACE_MINIMUM = 5
"""Tasks that must have been sampled before sampling has a timeout."""

SLOW_QUANTILE = 0.9
"""The quantile of the measured paces from which the timeout is computed."""

TIMEOUT_FACTOR = 4.0
"""The timeout is this many times the slow pace: it is there for a sampling that hangs."""

SETTLING_S = 10.0
"""Seconds that the timeout of every task has on top, for loading adapters and making kernels."""

SECONDS_PER_UNIT = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Allotment:
    """Optimizer steps, and samples for each test, that a task gets in one round."""

    steps: int
    samples: int

    def of(self, config: Config) -> Config:
        """The configuration with these steps and samples."""
        train = config.train.model_copy(update={"steps": self.steps})
        sample = config.sample.model_copy(update={"samples": self.samples})
        return config.model_copy(update={"train": train, "sample": sample})


class Pace:
    """How long sampling takes here beside other tasks, as multiples of what was predicted."""

    def __init__(self) -> None:
        self._engine: deque[float] = deque(maxlen=PACE_WINDOW)
        self._alone: deque[float] = deque(maxlen=PACE_WINDOW)
        self._expected: deque[float] = deque(maxlen=PACE_WINDOW)

    def sampled(self, alone: float, expected: float, *, engine: float, wall: float) -> None:
        """A task was sampled in `wall` seconds; for `engine` of these the engine had no older task.

        Predicted were `alone` seconds with the engine for itself, and `expected` seconds beside the
        tasks that can be in flight with it.
        """
        if alone > 0:
            self._engine.append(engine / alone)
            self._alone.append(wall / alone)
            self._expected.append(wall / expected)

    def timeout(self, expected: float) -> float:
        """Seconds after which to end a sampling that should take `expected` seconds.

        It grows with the number of samples, their lengths and the tasks beside it, because
        `expected` does. Infinite until PACE_MINIMUM tasks were sampled.
        """
        if len(self._expected) < PACE_MINIMUM:
            return math.inf
        slow = sorted(self._expected)[math.ceil(SLOW_QUANTILE * len(self._expected)) - 1]
        return SETTLING_S + TIMEOUT_FACTOR * slow * expected

    def of_work(self, times: Times) -> Times:
        """Seconds that trainer and engine will be busy with work of these predicted times."""
        return Times(times.train, times.infer * _median(self._engine))

    def of_task(self, times: Times) -> Times:
        """Seconds that a task of these predicted times takes beside others."""
        return Times(times.train, times.infer * _median(self._alone))


def _median(ratios: Collection[float]) -> float:
    return median(ratios) if ratios else 1.0


def cheap(config: Config) -> Allotment:
    """What a task gets in round 0: a few samples of the base."""
    return Allotment(0, min(CHEAP_SAMPLES, config.sample.samples))


def allot(left: float, waiting: Times, config: Config) -> Allotment:
    """What the next task gets, with `left` seconds for it and for all tasks that wait behind it.

    `waiting` are the seconds that trainer and engine need for full rounds of them all. They work
    side by side: the one with more to do decides. Never more than a full round.
    """
    need = SAFETY_FACTOR * max(waiting.train, waiting.infer)
    part = 1.0 if need <= 0 else min(1.0, max(LEAST_ALLOTMENT, left / need))
    return Allotment(
        max(1, round(part * config.train.steps)) if config.train.steps else 0,
        max(1, round(part * config.sample.samples)),
    )


def seconds(text: str) -> float:
    """Seconds of a duration like 11h30m, 90s, 30d or 45; raises BadConfig for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    if "".join(number + unit for number, unit in parts) == text and parts:
        return sum(float(number) * SECONDS_PER_UNIT[unit] for number, unit in parts)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    raise BadConfig(f"{text!r} is not a duration like 11h30m, 4m or 90s")
