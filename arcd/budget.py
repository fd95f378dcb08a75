"""The budget: how much each task gets of a job's time. Pure; times come in, shares go out.

A job with a budget goes through its tasks in rounds: first a cheap answer for all, by the base
alone; then each task in full; then, for as long as there is time, once more those whose votes
disagree. Where the time is short, steps and samples shrink before tasks are dropped. Knows nothing
of clocks or of who keeps to it.
"""

import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from arcd.config import Config
from arcd.errors import BadConfig
from arcd.forecast import Times

CHEAP_SAMPLES = 2
"""Samples for each test in round 0."""

LEAST = 0.25
"""A task gets at least this share of its steps and samples: less would teach it nothing."""

MARGIN = 1.15
"""Predicted times are taken so many times as long: a plan that is too slow loses whole tasks, one
that is too fast leaves time for another round."""

REMEMBERED = 32
"""Measured tasks from which the pace is known: the machine may have become slower since."""

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
    """How long tasks take here, as a multiple of what is predicted for them; median of the last."""

    def __init__(self) -> None:
        self._train: deque[float] = deque(maxlen=REMEMBERED)
        self._infer: deque[float] = deque(maxlen=REMEMBERED)

    @property
    def known(self) -> bool:
        """Whether a training was measured."""
        return bool(self._train)

    def trained(self, predicted: float, seconds: float) -> None:
        """A training was done."""
        if predicted > 0:
            self._train.append(seconds / predicted)

    def inferred(self, predicted: float, seconds: float) -> None:
        """A task was sampled."""
        if predicted > 0:
            self._infer.append(seconds / predicted)

    def patience(self, times: Times, beside: int) -> float:
        """Seconds after which the sampling of a task has failed, with so many tasks in hand.

        From what sampling has taken so far, so that it grows with the samples, their lengths and
        the tasks beside it; endless until enough is known.
        """
        if len(self._infer) < KNOWN:
            return math.inf
        slow = sorted(self._infer)[math.ceil(SLOW * len(self._infer)) - 1]
        return SETTLING + PATIENCE * slow * times.infer * beside

    def of(self, times: Times) -> Times:
        """What a prediction comes to."""
        train = median(self._train) if self._train else 1.0
        infer = median(self._infer) if self._infer else 1.0
        return Times(times.train * train, times.infer * infer)


def cheap(config: Config) -> Share:
    """What a task gets in round 0."""
    return Share(0, min(CHEAP_SAMPLES, config.sample.samples))


def share(left: float, waiting: Sequence[Times], config: Config) -> Share:
    """What the next task gets, with `left` seconds for it and all that wait behind it.

    `waiting` are the times of full rounds. The lanes work side by side: the one with more to do
    decides. Never more than a full round.
    """
    need = MARGIN * max(sum(t.train for t in waiting), sum(t.infer for t in waiting))
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
