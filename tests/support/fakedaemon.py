"""A daemon whose trainer and engine are fakes, and which dies or freezes where its plan says.

Run by a supervisor as `python tests/support/fakedaemon.py OPTIONS PLAN`. Everything else is the
real thing: store, job service, scheduler, server, publisher, signals. A plan's harm is done once:
the file `marker` remembers it over restarts. `answered.log` gets a line for each sample that the
engine finishes.
"""

import json
import os
import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

from arcd.arc.tasks import load
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import Completion
from arcd.backends.runtime import Runtime
from arcd.daemon import process
from arcd.daemon.options import Options
from arcd.jobs import database, events
from arcd.jobs.daemon_facts import DaemonFacts
from arcd.jobs.journal import Journal
from arcd.model.base_model import Device
from arcd.model.encoding import CellEncoding
from arcd.system import files
from arcd.system.home import Home

SOLUTIONS = "arc1-train:4"
"""Tasks whose solutions the fake engine knows."""

POISONED = load(SOLUTIONS).tasks[1].id
"""The task with which an engine reaches the point `poison`."""


@dataclass(frozen=True)
class Plan:
    """What happens at the `count`th time that the point of this name is reached."""

    marker: str
    point: str = ""
    count: int = 1
    harm: str = "kill"
    """kill, stop (SIGSTOP), gil (a thread that never lets go of it) or hang (one lane)."""
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


OF_RUNTIME = ("serial", "adapter", "hand-over", "poison")


class Points:
    """Named points in the life of a daemon; harm is done at one of them.

    What trainer and engine reach before the daemon is ready is the point `calibration`.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._left = plan.count
        self.ready = False

    def reach(self, name: str) -> None:
        if name == "before DaemonReady":
            self.ready = True
        if not self.ready and name.split()[-1] in OF_RUNTIME:
            name = "calibration"
        if name != self._plan.point:
            return
        self._left -= 1
        if self._left == 0 and (self._plan.always or not Path(self._plan.marker).exists()):
            Path(self._plan.marker).touch()
            self._harm()

    def _harm(self) -> None:
        match self._plan.harm:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "gil":
                # Centuries of backtracking in C, which lets nobody else have a turn.
                re.match("(a+)+b", "a" * 64)


def surround(owner: object, method: str, points: Points, name: Callable[..., str]) -> None:
    """Make a method reach `before NAME` and `after NAME`."""
    original = getattr(owner, method)

    def surrounded(*args: object, **kwargs: object) -> object:
        what = name(*args)
        points.reach(f"before {what}")
        result = original(*args, **kwargs)
        points.reach(f"after {what}")
        return result

    setattr(owner, method, surrounded)


def limit_pages(pages: int) -> None:
    connect = database._connect

    def limited(path: Path, mode: database.Mode) -> sqlite3.Connection:
        connection = connect(path, mode)
        if mode == "write":
            connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    database._connect = limited


class Trainer(FakeTrainer):
    """Hangs if it is planned, and tells when an adapter is being written."""

    points: Points

    def _save(self, serial: int, task: str) -> Path:
        self.points.reach("before adapter")
        path = super()._save(serial, task)
        self.points.reach("after adapter")
        return path


class Engine(FakeEngine):
    """Writes down what it finished."""

    points: Points
    home: Path
    hanging = False

    @property
    def busy(self) -> bool:
        return self.hanging or super().busy

    async def sample(self, requests, adapter, deliver) -> None:
        self.points.reach("hand-over")
        if requests[0].question.task == POISONED:
            self.points.reach("poison")
        hang = self.points.ready and self.points._plan.harm == "hang"
        if hang and not Path(self.points._plan.marker).exists():
            Path(self.points._plan.marker).touch()
            self.hanging = True

        def noted(completion: Completion) -> None:
            question, sample = completion.request.question, completion.request.sample
            if self.points.ready:
                with (self.home / "answered.log").open("a") as log:
                    log.write(f"{os.getpid()} {question.task} {question.test} {sample}\n")
            deliver(completion)

        if self.hanging:
            await anyio.sleep_forever()
        await super().sample(requests, adapter, noted)


def runtime_of(plan: Plan):
    points = Points(plan)
    surround(Journal, "append", points, lambda _, job, *new: events.kind(new[0]))
    if plan.pages:
        limit_pages(plan.pages)
    surround(Journal, "submit", points, lambda *_: "Submitted")
    surround(DaemonFacts, "serial", points, lambda *_: "serial")
    surround(os, "replace", points, lambda *_: "replace")
    surround(files, "_write_durably", points, lambda *_: "write")

    @asynccontextmanager
    async def open_runtime(
        options: Options, platform, *, rank, ledger, serial
    ) -> AsyncIterator[Runtime]:
        await anyio.sleep(plan.loading)
        encoding = CellEncoding()
        trainer = Trainer(
            seconds_per_step=plan.seconds_per_step, folder=Home(options.home).adapters
        )
        trainer.points = points
        engine = Engine(
            encoding,
            load(SOLUTIONS).solutions,
            trainer.trained,
            seconds_per_token=plan.seconds_per_token,
        )
        engine.points, engine.home = points, options.home
        yield Runtime(trainer, engine, encoding, ledger, serial)

    return open_runtime


def find_platform(options: Options) -> process.Platform:
    return process.Platform("fake", Device("cpu", "float32"))


if __name__ == "__main__":
    plan = Plan(**json.loads(sys.argv[2]))
    sys.exit(process.main(runtime_of(plan), find_platform))
