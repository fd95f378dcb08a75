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

LEAST = 0.25
"""A task gets at least this share of its steps and samples: less would teach it nothing."""

MARGIN = 1.15
"""Predicted times are taken so many times as long: a plan that is too slow loses whole tasks, one
that is too fast leaves time for another round."""

REMEMBERED = 32
"""RateEstimator tasks from which the pace is known: the machine may have become slower since."""

KNOWN = 5
"""Tasks that must have been sampled before any is called slow."""

SLOW = 0.9
"""The quantile of the measured paces that counts as slow."""

PATIENCE = 4.0
"""A task may take so many times as long as a slow one: a limit is there for what hangs."""

SETTLING = 10.0
"""Seconds that any task may take on top: adapters are loaded, kernels are made."""

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Share:
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
        self._lane: deque[float] = deque(maxlen=REMEMBERED)
        self._alone: deque[float] = deque(maxlen=REMEMBERED)
        self._expected: deque[float] = deque(maxlen=REMEMBERED)

    def sampled(self, alone: float, expected: float, *, lane: float, wall: float) -> None:
        """A task was sampled in `wall` seconds, in `lane` of which the engine was not with others.

        Predicted were `alone` seconds with the engine for itself, `expected` with all that may be
        beside it.
        """
        if alone > 0:
            self._lane.append(lane / alone)
            self._alone.append(wall / alone)
            self._expected.append(wall / expected)

    def patience(self, expected: float) -> float:
        """Seconds after which the sampling of a task has failed that should take `expected`.

        From what sampling has taken so far, so that it grows with the samples, their lengths and
        the tasks beside it; endless until enough is known.
        """
        if len(self._expected) < KNOWN:
            return math.inf
        slow = sorted(self._expected)[math.ceil(SLOW * len(self._expected)) - 1]
        return SETTLING + PATIENCE * slow * expected

    def of_lanes(self, times: Times) -> Times:
        """How long the lanes will be kept busy by what these times are predicted for."""
        return Times(times.train, times.infer * _median(self._lane))

    def of_task(self, times: Times) -> Times:
        """How long the parts of a task of these times will take, others being beside it."""
        return Times(times.train, times.infer * _median(self._alone))


def _median(ratios: Collection[float]) -> float:
    return median(ratios) if ratios else 1.0


def cheap(config: Config) -> Share:
    """What a task gets in round 0."""
    return Share(0, min(CHEAP_SAMPLES, config.sample.samples))


def share(left: float, waiting: Times, config: Config) -> Share:
    """What the next task gets, with `left` seconds for it and all that wait behind it.

    `waiting` is what the lanes need for full rounds of them all. The lanes work side by side: the
    one with more to do decides. Never more than a full round.
    """
    need = MARGIN * max(waiting.train, waiting.infer)
    part = 1.0 if need <= 0 else min(1.0, max(LEAST, left / need))
    return Share(
        max(1, round(part * config.train.steps)) if config.train.steps else 0,
        max(1, round(part * config.sample.samples)),
    )


def seconds(text: str) -> float:
    """Seconds of a duration like 11h30m, 90s, 4m or 45; raises BadConfig for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if "".join(number + unit for number, unit in parts) == text and parts:
        return sum(float(number) * UNITS[unit] for number, unit in parts)
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    raise BadConfig(f"{text!r} is not a duration like 11h30m, 4m or 90s")
