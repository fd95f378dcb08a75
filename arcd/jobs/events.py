"""Events: what happened to jobs, tasks and the daemon, as frozen records; the truth of the store.

The store keeps them, the state is a fold of them, the screen draws the state. A task's events come
in this order: Started, Training*, Trained?, (Sampled | Noted)*, Answered. Interrupted and Released
send a task back to waiting; it is Started again later. A waiting task that gets the adapter of its
group by Shared is not trained. The names of the classes and of their fields are stored: they may
not change. Knows nothing of who emits or listens.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from arcd.arc.selection import Candidate, Verdict
from arcd.system import json_text


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that a task needs of the trainer (`train`) and of the engine (`infer`)."""

    train: float
    infer: float

    @property
    def total(self) -> float:
        return self.train + self.infer


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job with these tasks is in the store."""

    name: str
    priority: int
    tasks: tuple[str, ...]
    budget: float | None = None
    """Seconds from here to its end, without the reserve; None: until each task is done once."""


@dataclass(frozen=True, slots=True)
class Paused:
    """No task of the job is begun until it is resumed."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The pause is over."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The tasks without an answer stay without one."""


@dataclass(frozen=True, slots=True)
class Retried:
    """These tasks are done once more, with other lessons; their candidates are kept."""

    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A job with a budget is done: its time is up, or nothing is left to be improved."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The job and all that was kept of it is gone; this is the only record of it that is left."""


@dataclass(frozen=True, slots=True)
class Started:
    """A task was begun, with at most so many lessons and samples that are still to be drawn.

    Both are what its configuration asks for: what does not fit the context is found out later.
    """

    task: str
    lessons: int
    samples: int
    predicted: Times | None = None
    """Seconds that training and sampling should take; None where no prediction was made."""


@dataclass(frozen=True, slots=True)
class Training:
    """Step `step` of `steps` is done; loss in nats per token, NaN or infinite where it failed."""

    task: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter is ready after these steps, tokens and seconds; `loss` is in nats per token.

    `resident_bytes` is the memory of the process then; None where the system does not tell.
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
    """The adapter that a task of the same group has trained is for this waiting task, too."""

    task: str
    adapter: int


@dataclass(frozen=True, slots=True)
class Noted:
    """Something went other than planned; the note is also in the verdict."""

    task: str
    note: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sample is finished: a candidate."""

    task: str
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Answered:
    """The task is done."""

    task: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The daemon died while this task was in flight, and the task is charged for it.

    Its supervisor saw an end that nobody had asked for.
    """

    task: str


@dataclass(frozen=True, slots=True)
class Released:
    """The task was in flight and is set aside unfinished; nothing is charged.

    The daemon or its job stops, or the daemon was ended from outside.
    """

    task: str


@dataclass(frozen=True, slots=True)
class DaemonStarted:
    """A daemon has the home and begins to load its models."""

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
    """Trainer and engine can work, `seconds` after the daemon began to load."""

    seconds: float


@dataclass(frozen=True, slots=True)
class DaemonDied:
    """The daemon ends because of this error, and its supervisor starts another one.

    A daemon that cannot write to the store any more, or is killed, leaves no such event.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class DaemonStopped:
    """The daemon ended in order; `ledger` is the account of its time, as JSON."""

    ledger: dict[str, Any] | None = None


JobEvent = Submitted | Paused | Resumed | Cancelled | Retried | Finished | Forgotten
TaskEvent = (
    Started | Training | Trained | Shared | Noted | Sampled | Answered | Interrupted | Released
)
DaemonEvent = DaemonStarted | DaemonReady | DaemonDied | DaemonStopped
Event = JobEvent | TaskEvent | DaemonEvent
Emit = Callable[[TaskEvent], None]

_CODECS: dict[str, TypeAdapter[Event]] = {
    kind.__name__: TypeAdapter(kind) for kind in get_args(Event)
}


@dataclass(frozen=True, slots=True)
class Record:
    """An event in its place: record number `seq`, at `at` seconds since 1970, of job number `job`.

    `job` is None for events of the daemon. The order is that of `seq`: clocks may be set back.
    """

    seq: int
    at: float
    job: int | None
    event: Event

    def to_json(self) -> dict[str, Any]:
        """A JSON object: seq, at, job, event (the kind) and its fields."""
        fields: dict[str, Any] = json_text.plain(asdict(self.event))
        return {**_heading(self.seq, self.at, self.job, kind(self.event)), **fields}

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
    return json_text.dumps(asdict(event))


def load(name: str, fields: str) -> Event:
    """The event of this kind that `dump` wrote."""
    return _CODECS[name].validate_python(json.loads(fields))


def text_of(seq: int, at: float, job: int | None, name: str, fields: str) -> str:
    """What `to_json` gives, as a JSON text, from the fields that `dump` wrote.

    The fields are not read: that takes ten times as long. Those of older stores are, where a NaN
    may be in them.
    """
    if "NaN" in fields or "Infinity" in fields:
        fields = json_text.dumps(json.loads(fields))
    heading = json.dumps(_heading(seq, at, job, name))
    return heading if fields == "{}" else f"{heading[:-1]}, {fields[1:]}"


def _heading(seq: int, at: float, job: int | None, name: str) -> dict[str, Any]:
    return {"seq": seq, "at": at, "job": job, "event": name}
