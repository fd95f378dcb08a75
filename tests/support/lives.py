"""Whole lives of a daemon in this process, on a machine with a virtual clock.

A `Life` is everything that a daemon's process is, but for trainer and engine, which are fakes, and
for the server, whose application is asked directly. Between two calls it stands still. Knows
nothing of what must hold.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from arcd.arc.tasks import Solutions
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import Adapter
from arcd.backends.runtime import Runtime
from arcd.daemon.options import Options
from arcd.daemon.phases import Platform
from arcd.daemon.process import Daemon, OpenRuntime
from arcd.errors import TrainerFailed
from arcd.model.device import Device
from arcd.model.encoding import CellEncoding
from arcd.system.home import Home
from arcd.system.ledger import Ledger
from support import asgi, virtual
from support.machine import Exited, Killed, Machine

T = TypeVar("T")

STEP_S = 0.5
"""Virtual seconds of a training step."""

TOKEN_S = 0.05
"""Virtual seconds of a token."""

PATIENCE_S = 120.0
"""Virtual seconds in which a daemon of fakes is ready, answers, or ends."""

POLL_S = 0.05
"""Virtual seconds between two looks at what a life has come to."""


@dataclass
class Trainer(FakeTrainer):
    """Saves its adapters as the real one does: under another name first."""

    machine: Machine | None = None

    def _save(self, serial: int, task: str) -> Path:
        assert self.machine is not None
        assert self.folder is not None
        path = Adapter.under(self.folder, serial).path
        temporary = self.folder / f".writing-{serial}"
        self.machine.reach()
        temporary.mkdir(parents=True)
        self.machine.reach()
        (temporary / "task").write_text(task)
        if self.machine.full:
            (temporary / "task").unlink()
            temporary.rmdir()
            raise TrainerFailed(f"{path}: no space left on device")
        self.machine.reach()
        temporary.rename(path)
        self.machine.reach()
        return path


def find_platform(options: Options) -> Platform:
    return Platform("fake", Device("cpu", "float32"))


def runtime_of(machine: Machine, solutions: Solutions) -> OpenRuntime:
    """Opens fakes on a machine, which know these solutions."""

    @asynccontextmanager
    async def open_runtime(
        options: Options,
        platform: Platform,
        *,
        rank: int,
        ledger: Ledger,
        serial: Callable[[], int],
    ) -> AsyncIterator[Runtime]:
        encoding = CellEncoding()
        trainer = Trainer(STEP_S, folder=Home(options.home).adapters, machine=machine)
        engine = FakeEngine(encoding, solutions, trainer.trained, TOKEN_S)
        yield Runtime(trainer, engine, encoding, ledger, serial, background=virtual.at_once)

    return open_runtime


class Life:
    """One daemon, from its start to its end or death."""

    def __init__(
        self, machine: Machine, options: Options, solutions: Solutions, *, predecessor_died: bool
    ) -> None:
        self._machine = machine
        self._options, self._died = options, predecessor_died
        self._loop = machine.begin()
        self.daemon: Daemon | None = None
        self._task = self._loop.create_task(self._live(runtime_of(machine, solutions)))

    async def _live(self, open_runtime: OpenRuntime) -> None:
        self.daemon = Daemon(self._options, None, predecessor_died=self._died)
        await self.daemon.run(open_runtime, find_platform)

    # What comes of it.

    @property
    def over(self) -> bool:
        """Whether the process is gone."""
        return self._machine.dead or self._task.done()

    @property
    def error(self) -> BaseException | None:
        """What ended it; None if it ended in order, or was killed."""
        if self._machine.dead or not self._task.done():
            return None
        error = self._task.exception()
        return None if error is None or _all_are(error, Exited) else error

    @property
    def ready(self) -> bool:
        """Whether its models are loaded."""
        return not self.over and self.daemon is not None and self.daemon.health().state == "ready"

    def close(self) -> None:
        """Whatever it does: it is gone, and the disk is as it was when it ended."""
        for task in {self._task, *asyncio.all_tasks(self._loop)}:
            task.cancel()
        self._loop.run_until_complete(self._gone())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        self._machine.end()

    async def _gone(self) -> None:
        others = {self._task, *asyncio.all_tasks()} - {asyncio.current_task()}
        await asyncio.wait(others, timeout=PATIENCE_S)
        for task in others:
            if task.done() and not task.cancelled():
                task.exception()  # it was told already

    # What its users do.

    def advance(self, seconds: float) -> None:
        """Let so many virtual seconds pass, or less if it ends before."""
        if not self.over:
            self._loop.run_until_complete(asyncio.wait({self._task}, timeout=seconds))

    def until(self, reached: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
        """Let time pass until something holds; whether it does, within so many seconds."""
        end = self._loop.time() + seconds
        while not reached():
            if self.over or self._loop.time() >= end:
                return False
            self.advance(POLL_S)
        return True

    def stop(self) -> None:
        """Ask for an end in order, as a SIGTERM does."""
        assert self.daemon is not None

        async def ask() -> None:
            assert self.daemon is not None
            self.daemon.stop()

        self.do(ask())

    def ask(self, method: str, path: str, document: object = None) -> asgi.Answer | None:
        """The answer of its API; None if it dies before."""
        body = b"" if document is None else json.dumps(document).encode()
        headers = asgi.JSON if body else ()
        return self.do(asgi.ask(self.app, method, path, headers=headers, body=body))

    @property
    def app(self) -> Any:
        """What listens on its socket."""
        return self._machine.servers[0].app

    def do(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What comes of a request; None if the daemon dies before."""

        async def either() -> T | None:
            asked = self._loop.create_task(work)
            await asyncio.wait(
                {asked, self._task}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
            )
            if not asked.done():
                assert self._task.done(), f"no answer in {PATIENCE_S} s"
                asked.cancel()
                return None
            error = asked.exception()
            if error is not None and _all_are(error, Killed):
                return None
            return asked.result()

        if self.over:
            work.close()
            return None
        return self._loop.run_until_complete(either())

    def follow(
        self, job: int, after: int, hear: Callable[[str], None], then: Callable[[], T]
    ) -> "asyncio.Task[T]":
        """Hear each record of a job as it is streamed, and do something when the stream ends."""

        def split(piece: bytes) -> None:
            for line in piece.decode().splitlines():
                if line.startswith("data: ") and not self._machine.dead:
                    hear(line.removeprefix("data: "))

        async def follow() -> T:
            query = f"after={after}".encode()
            await asgi.ask(self.app, "GET", f"/jobs/{job}/events", query=query, hear=split)
            return then()

        return self._loop.create_task(follow())


def _all_are(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether this is the cause, alone or in groups; other tasks of a group are cancelled."""
    if isinstance(error, BaseExceptionGroup):
        return all(_all_are(inner, kind) for inner in error.exceptions)
    return isinstance(error, kind)
