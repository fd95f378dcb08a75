"""Events: what happened to a task, as frozen records; everything that watches a run reads these.

The run folder writes them down, the screen draws them, tests compare them. For each task they come
in the order Started, Training*, Trained?, (Sampled | Noted)*, Answered. Knows nothing of who emits
or listens.
"""

from collections.abc import Callable
from dataclasses import dataclass

from arcd.selection import Candidate, Verdict


@dataclass(frozen=True, slots=True)
class Started:
    """A task is in hand: so many lessons to learn and samples to draw."""

    task: str
    lessons: int
    samples: int


@dataclass(frozen=True, slots=True)
class Training:
    """Step `step` of `steps` is done; loss in nats per token."""

    task: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter is ready after so many steps, tokens and seconds of training."""

    task: str
    adapter: int
    steps: int
    tokens: int
    seconds: float
    loss: float


@dataclass(frozen=True, slots=True)
class Noted:
    """Something went other than planned; the note is also in the verdict."""

    task: str
    note: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """A candidate finished."""

    task: str
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Answered:
    """The task is done."""

    task: str
    verdict: Verdict


Event = Started | Training | Trained | Noted | Sampled | Answered
Emit = Callable[[Event], None]
