"""The budget: how much each task gets of a job's time. Pure; times come in, shares go out.

A job with a budget goes through its tasks in rounds: first a cheap answer for all, by the base
alone; then each task in full; then, for as long as there is time, once more those whose votes
disagree. Where the time is short, steps and samples shrink before tasks are dropped. Knows nothing
of clocks or of who keeps to it.
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
"""A task gets at least this share of its steps and samples: less would teach it nothing."""

SAFETY_FACTOR = 1.15
"""Predicted times are taken so many times as long: a plan that is too slow loses whole tasks, one
that is too fast leaves time for another round."""

PACE_WINDOW = 32
"""Tasks from which the pace is known: the machine may have become slower since."""

PACE_MINIMUM = 5
"""Tasks that must have been sampled before any is called slow."""

SLOW_QUANTILE = 0.9
"""The quantile of the measured paces that counts as slow."""

TIMEOUT_FACTOR = 4.0
"""A task may take so many times as long as a slow one: a limit is there for what hangs."""

SETTLING_S = 10.0
"""Seconds that any task may take on top: adapters are loaded, kernels are made."""

SECONDS_PER_UNIT = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a task gets in one round."""

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

        Predicted were `alone` seconds with the engine for itself, `expected` with all that may be
        beside it.
        """
        if alone > 0:
            self._engine.append(engine / alone)
            self._alone.append(wall / alone)
            self._expected.append(wall / expected)

    def timeout(self, expected: float) -> float:
        """Seconds after which the sampling of a task has failed that should take `expected`.

        From what sampling has taken so far, so that it grows with the samples, their lengths and
        the tasks beside it; endless until enough is known.
        """
        if len(self._expected) < PACE_MINIMUM:
            return math.inf
        slow = sorted(self._expected)[math.ceil(SLOW_QUANTILE * len(self._expected)) - 1]
        return SETTLING_S + TIMEOUT_FACTOR * slow * expected

    def of_work(self, times: Times) -> Times:
        """How long the lanes will be kept busy by what these times are predicted for."""
        return Times(times.train, times.infer * _median(self._engine))

    def of_task(self, times: Times) -> Times:
        """How long the parts of a task of these times will take, others being beside it."""
        return Times(times.train, times.infer * _median(self._alone))


def _median(ratios: Collection[float]) -> float:
    return median(ratios) if ratios else 1.0


def cheap(config: Config) -> Allotment:
    """What a task gets in round 0."""
    return Allotment(0, min(CHEAP_SAMPLES, config.sample.samples))


def allot(left: float, waiting: Times, config: Config) -> Allotment:
    """What the next task gets, with `left` seconds for it and all that wait behind it.

    `waiting` is what the lanes need for full rounds of them all. The lanes work side by side: the
    one with more to do decides. Never more than a full round.
    """
    need = SAFETY_FACTOR * max(waiting.train, waiting.infer)
    part = 1.0 if need <= 0 else min(1.0, max(LEAST_ALLOTMENT, left / need))
    return Allotment(
        max(1, round(part * config.train.steps)) if config.train.steps else 0,
        max(1, round(part * config.sample.samples)),
    )


def seconds(text: str) -> float:
    """Seconds of a duration like 11h30m, 90s, 4m or 45; raises BadConfig for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if "".join(number + unit for number, unit in parts) == text and parts:
        return sum(float(number) * SECONDS_PER_UNIT[unit] for number, unit in parts)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    raise BadConfig(f"{text!r} is not a duration like 11h30m, 4m or 90s")
