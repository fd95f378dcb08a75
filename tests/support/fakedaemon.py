"""A daemon whose trainer and engine are fakes, and which dies or freezes where its plan says.

Run by a supervisor as `python tests/support/fakedaemon.py OPTIONS PLAN`. Everything else is the
real thing: store, job service, scheduler, server, publisher, signals. A plan's harm is done once:
the file `marker` remembers it over restarts. `answered.log` gets a line for each sample that the
engine finishes. A test may also run this daemon in its own process, with points of its own.
"""

import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from arcd.arc.tasks import load
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import Adapter, Completion, Request
from arcd.backends.runtime import Runtime
from arcd.daemon import process
from arcd.daemon.options import Options
from arcd.daemon.phases import Platform
from arcd.jobs import database, events
from arcd.jobs.daemon_facts import DaemonFacts
from arcd.jobs.events import Record
from arcd.jobs.job_table import JobTable
from arcd.jobs.journal import Journal, NewJob
from arcd.jobs.store import Store
from arcd.model.device import Device
from arcd.model.encoding import CellEncoding
from arcd.system import files
from arcd.system.home import Home
from arcd.system.ledger import Ledger

SOLUTIONS = "arc1-train:4"
"""Tasks whose solutions the fake engine knows."""

KNOWN = load(SOLUTIONS)

POISONED = KNOWN.tasks[1].id
"""The task with which an engine reaches the point `poison`."""

EVENTS = (
    *("DaemonStarted", "DaemonReady", "Submitted", "Started", "Training"),
    *("Trained", "Sampled", "Answered", "DaemonStopped"),
)
ACTS = ("serial", "adapter", "rates", "write", "replace", "published")
"""A number for an adapter and its folder; rates are kept; a submission is written, put in its place
and counted as published."""

POINTS = (
    *(f"{when} {what}" for what in (*EVENTS, *ACTS) for when in ("before", "after")),
    "hand-over",
)
"""All points that every job reaches, beside `poison`."""


@dataclass(frozen=True)
class Plan:
    """What happens at the `count`th time that the point of this name is reached."""

    marker: str = ""
    point: str = ""
    count: int = 1
    harm: str = "kill"
    """kill, stop (SIGSTOP), gil (a thread that never lets go of it) or hang (the engine alone)."""
    seconds_per_step: float = 0.01
    seconds_per_token: float = 0.0005
    always: bool = False
    """In every life, not once."""
    loading: float = 0.0
    """Seconds until the runtime is there."""
    pages: int = 0
    """What the store may grow to, in pages of 4096 bytes, as if the disk were full then."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Points:
    """Named points in the life of a daemon; here nothing happens at any of them."""

    def __init__(self) -> None:
        self.writing: AbstractContextManager[object] = nullcontext()
        """Held while the store is written to, and at the points before and after."""

    def reach(self, name: str) -> None:
        """Called at each point."""

    def hang(self) -> bool:
        """Whether the engine is to stand still from now on."""
        return False


class Harm(Points):
    """Does the harm of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan, self._marker = plan, Path(plan.marker)
        self._left = plan.count

    def reach(self, name: str) -> None:
        if name != self._plan.point:
            return
        self._left -= 1
        if self._left == 0 and (self._plan.always or not self._marker.exists()):
            self._marker.touch()
            self._harm()

    def hang(self) -> bool:
        if self._plan.harm != "hang" or self._marker.exists():
            return False
        self._marker.touch()
        return True

    def _harm(self) -> None:
        match self._plan.harm:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "gil":
                # Centuries of backtracking in C, which lets nobody else have a turn.
                re.match("(a+)+b", "a" * 64)


class Trainer(FakeTrainer):
    """Tells when an adapter is being written."""

    points: Points

    def _save(self, serial: int, task: str) -> Path:
        self.points.reach("before adapter")
        path = super()._save(serial, task)
        self.points.reach("after adapter")
        return path


class Engine(FakeEngine):
    """Hangs if it is planned, and writes down what it finished.

    A line of `answered.log`: the last record of the store when this engine was opened, then task,
    test and sample.
    """

    points: Points
    home: Path
    since: int
    hanging = False

    @property
    def busy(self) -> bool:
        return self.hanging or super().busy

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        self.points.reach("hand-over")
        if requests[0].question.task == POISONED:
            self.points.reach("poison")
        self.hanging = self.hanging or self.points.hang()

        def noted(completion: Completion) -> None:
            question, sample = completion.request.question, completion.request.sample
            with (self.home / "answered.log").open("a") as log:
                log.write(f"{self.since} {question.task} {question.test} {sample}\n")
            deliver(completion)

        if self.hanging:
            await anyio.sleep_forever()
        await super().sample(requests, adapter, noted)


Patch = Callable[[object, str, object], None]
"""Like setattr; in a test, one that is undone after it."""


STORED = (Journal, DaemonFacts, JobTable)
"""What writes to the store."""


def instrument(points: Points, patch: Patch = setattr) -> None:
    """Have the store and the files reach their points."""

    def surround(owner: object, method: str, name: Callable[..., str]) -> None:
        original = getattr(owner, method)

        def surrounded(*args: object, **kwargs: object) -> object:
            what = name(*args)
            with points.writing if owner in STORED else nullcontext():
                points.reach(f"before {what}")
                result = original(*args, **kwargs)
                points.reach(f"after {what}")
            return result

        patch(owner, method, surrounded)

    surround(Journal, "append", lambda _, job, *new: events.kind(new[0]))
    submitting = Journal.submitting

    def submitted(journal: Journal, job: NewJob) -> Iterator[Record | None]:
        with points.writing:
            points.reach("before Submitted")
            yield from submitting(journal, job)
            points.reach("after Submitted")

    patch(Journal, "submitting", submitted)
    surround(DaemonFacts, "serial", lambda *_: "serial")
    surround(DaemonFacts, "keep_measured", lambda *_: "rates")
    surround(JobTable, "keep_published", lambda *_: "published")
    surround(os, "replace", lambda *_: "replace")
    surround(files, "_write_durably", lambda *_: "write")


def limit_pages(pages: int) -> None:
    """Let no store grow beyond so many pages."""
    connect = database._connect

    def limited(path: Path, mode: database.Mode) -> sqlite3.Connection:
        connection = connect(path, mode)
        if mode == "write":
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    vars(database)["_connect"] = limited


def runtime_of(plan: Plan, points: Points) -> process.OpenRuntime:
    """Opens fakes at the pace of a plan, which reach these points."""

    @asynccontextmanager
    async def open_runtime(
        options: Options,
        platform: Platform,
        *,
        rank: int,
        ledger: Ledger,
        serial: Callable[[], int],
    ) -> AsyncIterator[Runtime]:
        await anyio.sleep(plan.loading)
        encoding = CellEncoding()
        trainer = Trainer(
            seconds_per_step=plan.seconds_per_step, folder=Home(options.home).adapters
        )
        trainer.points = points
        engine = Engine(
            encoding,
            KNOWN.solutions,
            trainer.trained,
            seconds_per_token=plan.seconds_per_token,
        )
        engine.points, engine.home = points, options.home
        reader = Store(options.home, "read")
        engine.since = reader.journal.last()
        reader.close()
        yield Runtime(trainer, engine, encoding, ledger, serial)

    return open_runtime


def find_platform(options: Options) -> Platform:
    return Platform("fake", Device("cpu", "float32"))


def main(plan: Plan) -> int:
    """Be a daemon of fakes; returns the exit code."""
    points = Harm(plan)
    instrument(points)
    if plan.pages:
        limit_pages(plan.pages)
    return process.main(runtime_of(plan, points), find_platform)


if __name__ == "__main__":
    sys.exit(main(Plan(**json.loads(sys.argv[2]))))
