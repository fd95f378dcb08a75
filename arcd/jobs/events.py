"""Events: what happened to jobs, tasks and the daemon, as frozen records; the truth of the store.

Everything that watches arcd reads these: the store writes them down, the state is a fold of them,
the screen draws that, tests compare them. A task's events come in the order Started, Training*,
Trained?, (Sampled | Noted)*, Answered; an Interrupted or Released sends it back to waiting, so that
it is Started again. While it waits it may come to an adapter by Shared, and then is not trained.
Knows nothing of who emits or listens.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from arcd.arc.selection import Candidate, Verdict


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that a task needs of the trainer and of the engine."""

    train: float
    infer: float

    @property
    def total(self) -> float:
        return self.train + self.infer


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job of so many tasks is in the store."""

    name: str
    priority: int
    tasks: tuple[str, ...]
    budget: float | None = None
    """Seconds from here to its end, its reserve taken off; None: until each task is done once."""


@dataclass(frozen=True, slots=True)
class Paused:
    """None of the job's tasks is begun any more."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The pause is over."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What is not answered stays so."""


@dataclass(frozen=True, slots=True)
class Retried:
    """These tasks are to be done once more, with other lessons; their candidates are kept."""

    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job with a budget is done: its time is up, or nothing is left to be improved."""


@dataclass(frozen=True, slots=True)
class Started:
    """A task is in hand: so many lessons to learn, and samples that are still to be drawn."""

    task: str
    lessons: int
    samples: int
    predicted: Times | None = None
    """Seconds that training and sampling should take, as far as that could be told."""


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
    """An adapter is ready after so many steps, tokens and seconds of training.

    `resident_bytes` is what the process had in memory then; None where the system does not tell.
    """

    task: str
    adapter: int
    steps: int
    tokens: int
    seconds: float
    loss: float
    resident_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """An adapter that was trained with another task is for this one, too, which still waits."""

    task: str
    adapter: int


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


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The daemon died with this task in hand."""

    task: str


@dataclass(frozen=True, slots=True)
class Released:
    """The task was in hand and is set aside unfinished: the daemon stops, or its job does."""

    task: str


@dataclass(frozen=True, slots=True)
class DaemonStarted:
    """A daemon took the home over; its models are still to be loaded."""

    pid: int
    version: str
    base: str
    fingerprint: str
    device: str
    dtype: str

    @property
    def platform(self) -> str:
        """In words: the base by the end of its path, the device, the precision."""
        model = "/".join(Path(self.base).parts[-2:])
        return f"{model} on {self.device} in {self.dtype}"


@dataclass(frozen=True, slots=True)
class DaemonReady:
    """Trainer and engine can work, after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class DaemonStopped:
    """The daemon left in order; `ledger` says where its time went, an account as JSON."""

    ledger: dict[str, Any] | None = None


JobEvent = Submitted | Paused | Resumed | Cancelled | Retried | Finished
TaskEvent = (
    Started | Training | Trained | Shared | Noted | Sampled | Answered | Interrupted | Released
)
DaemonEvent = DaemonStarted | DaemonReady | DaemonStopped
Event = JobEvent | TaskEvent | DaemonEvent
Emit = Callable[[TaskEvent], None]

_CODECS: dict[str, TypeAdapter[Event]] = {
    kind.__name__: TypeAdapter(kind) for kind in get_args(Event)
}


@dataclass(frozen=True, slots=True)
class Record:
    """An event in its place: number `seq` of all, at `at` seconds since 1970, of which job.

    `job` is None for events of the daemon. Order is that of `seq`; clocks may be set back.
    """

    seq: int
    at: float
    job: int | None
    event: Event

    def to_json(self) -> dict[str, Any]:
        """A JSON object: seq, at, job, event (the kind) and its fields."""
        return {
            "seq": self.seq,
            "at": self.at,
            "job": self.job,
            "event": kind(self.event),
            **asdict(self.event),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """The record that `to_json` made the object from."""
        fields = dict(value)
        seq, at, job, name = (fields.pop(key) for key in ("seq", "at", "job", "event"))
        return cls(seq, at, job, _CODECS[name].validate_python(fields))


def kind(event: Event) -> str:
    """The name of an event's kind."""
    return type(event).__name__


def dump(event: Event) -> str:
    """The fields of an event as a JSON text."""
    return json.dumps(asdict(event))


def load(name: str, fields: str) -> Event:
    """The event of this kind that `dump` wrote."""
    return _CODECS[name].validate_python(json.loads(fields))
