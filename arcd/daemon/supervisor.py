"""The supervisor: keeps one daemon alive.

    run      starts one daemon after the other until one ends for good, or `restarts` gives up
    _spawn   starts a daemon in a session of its own, tied to this process by pipe, lock and prctl
    _watch   reads its beats; on a stall lets it write its stacks, then kills its process group
    _stop    asks it to end, and kills it if it does not

It sleeps until a beat arrives or the watchdog's deadline has passed. It knows the daemon only as a
command that sends beats, and imports nothing heavy, so that little in it can fail.
"""

import itertools
import math
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import anyio.abc

from arcd.daemon.daemon_log import DaemonLog
from arcd.daemon.heartbeat import (
    PREDECESSOR_DIED,
    PULSE_FD,
    SUPERVISOR_PID,
    Beat,
    Failure,
    from_line,
)
from arcd.daemon.restarts import Life, Restarts
from arcd.daemon.watchdog import Limits, Watchdog
from arcd.errors import DaemonFailed
from arcd.system.home_lock import HomeLock
from arcd.system.processes import Process, identify, kill_group, send, sweep_group

DUMP_S = 2.0
"""Seconds in which a stalled daemon can write its stacks; a stopped process cannot write them."""

STOP_MARGIN_S = 5.0
"""Seconds after its own grace, before a daemon that was asked to stop is killed."""

PIPE_BYTES = 65536
"""The capacity of a pipe, so that one read empties it."""

Progress = Literal["loading", "ready"]
"""How far a daemon is: it answers while its models load; its models are loaded."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A daemon ended without a request; `number` counts the daemons from 1.

    death: the process ended by itself. stall: it was killed because its steps stopped. kill: it was
    killed because it did not stop when asked, or because it was asked twice.
    """

    kind: Literal["death", "stall", "kill"]
    text: str
    number: int


class Supervisor:
    """Runs a command as the daemon of a locked home.

    The command must be the daemon itself, not a wrapper that starts it. `run` must be called in the
    main thread, because the kernel kills the daemon when the thread that started it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        lock: HomeLock,
        limits: Limits,
        *,
        env: Mapping[str, str] = {},
        log: Path,
        report: Callable[[Incident], None],
        progress: Callable[[Progress, int], None] = lambda progress, pid: None,
        grace: float = 30.0,
    ) -> None:
        self._command = command
        self._lock = lock
        self._env = env
        self._log = DaemonLog(log)
        self._report = report
        self._progress = progress
        self._grace = grace
        self._watchdog = Watchdog(limits)
        self._asked = anyio.Event()
        self._urged = anyio.Event()

    def stop(self) -> None:
        """Ask the daemon to end, so that `run` returns; called again: kill it now."""
        if self._asked.is_set():
            self._urged.set()
        self._asked.set()

    async def run(self) -> int:
        """Keep a daemon alive until it ends by itself with 0 or is stopped.

        Returns 0 then, and 1 if it had to be killed or died while it ended. Raises DaemonFailed if
        it sent a failure that does not pass, or if too many daemons in a row did not become ready,
        or got nothing done. No process is left behind in any case.
        """
        restarts = Restarts()
        for number in itertools.count(1):
            if self._asked.is_set():
                break
            daemon = await self._run_one(number, died=restarts.any_ready)
            failure = daemon.failure
            if failure and not restarts.may_pass(failure):
                raise DaemonFailed(failure.message, failure.exit_code)
            code = self._exit_code(daemon)
            if code is not None:
                return code
            restarts.count(daemon.life, failure)
            if reason := restarts.hopeless:
                last = self._log.last_line()
                raise DaemonFailed(f"{reason}, see {self._log.path}: {last}")
            with anyio.move_on_after(restarts.pause):
                await self._asked.wait()
        return 0

    def _exit_code(self, daemon: "DaemonRun") -> int | None:
        """The exit code if this was the last daemon; reports an end without a request."""
        if daemon.code == 0:
            return 0
        asked = self._asked.is_set()
        # A daemon that has no signal handler yet dies of the SIGTERM itself.
        if asked and daemon.code == -signal.SIGTERM and not daemon.killed:
            return 0
        text = daemon.failure.message if daemon.failure else _told(daemon.code)
        self._report(daemon.killed or Incident("death", text, daemon.number))
        return 1 if asked or daemon.stopping else None

    async def _run_one(self, number: int, *, died: bool) -> "DaemonRun":
        async with self._spawn(number, died=died) as daemon:
            self._watchdog.begin(anyio.current_time())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, daemon, name="watch")
                tasks.start_soon(self._stop, daemon, name="stop")
                await daemon.process.wait()
                tasks.cancel_scope.cancel()
        return daemon

    @asynccontextmanager
    async def _spawn(self, number: int, *, died: bool) -> AsyncIterator["DaemonRun"]:
        """One daemon; after the block, it and its process group are dead and reaped."""
        reading, writing = os.pipe()
        try:
            try:
                process = await self._start(writing, died=died)
            finally:
                os.close(writing)
            daemon = DaemonRun(number, process, reading)
            try:
                self._lock.record(daemon.identity)
                yield daemon
            finally:
                await daemon.end()
                self._hear(daemon)
        finally:
            os.close(reading)

    async def _start(self, writing: int, *, died: bool) -> anyio.abc.Process:
        mine = {
            PULSE_FD: str(writing),
            SUPERVISOR_PID: str(os.getpid()),
            PREDECESSOR_DIED: "1" if died else "",
        }
        try:
            # Shielded: a cancellation in between would leave a process without an owner.
            with self._log.open() as log, anyio.CancelScope(shield=True):
                process = await anyio.open_process(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self._env, **mine},
                    start_new_session=True,
                    pass_fds=(self._lock.fd, writing),
                )
        except OSError as error:
            raise DaemonFailed(f"the daemon cannot be started: {error}") from error
        return process

    async def _watch(self, daemon: "DaemonRun") -> None:
        """Read beats until the daemon stalls, then kill it. While it stops, `_stop` watches it."""
        while True:
            stopping = self._asked.is_set()
            deadline = math.inf if stopping else self._watchdog.deadline()
            await daemon.news(deadline)
            # Beats that have arrived count first: this process may have slept, not the daemon.
            self._hear(daemon)
            self._log.cut()
            reason = self._watchdog.stalled(anyio.current_time())
            if reason and not self._asked.is_set():
                break
        daemon.killed = Incident("stall", reason, daemon.number)
        send(daemon.identity, signal.SIGUSR1)
        await anyio.sleep(DUMP_S)
        kill_group(daemon.identity)

    async def _stop(self, daemon: "DaemonRun") -> None:
        """Ask the daemon to end when `stop` is called, kill it when it does not."""
        await self._asked.wait()
        send(daemon.identity, signal.SIGTERM)
        allowed = self._grace + STOP_MARGIN_S
        reason = f"not ended {allowed:.0f} s after it was asked to"
        with anyio.move_on_after(allowed):
            await self._urged.wait()
            reason = "killed on request"
        daemon.killed = Incident("kill", reason, daemon.number)
        kill_group(daemon.identity)

    def _hear(self, daemon: "DaemonRun") -> None:
        for message in daemon.hear():
            if isinstance(message, Beat):
                self._watchdog.hear(message, anyio.current_time())
                daemon.life.hear(message, anyio.current_time())
                daemon.stopping |= message.stopping
                now: Progress = "ready" if message.ready else "loading"
                if now != daemon.progress:
                    daemon.progress = now
                    self._progress(now, daemon.process.pid)


class DaemonRun:
    """One daemon process, from its start until it is reaped."""

    def __init__(self, number: int, process: anyio.abc.Process, pipe: int) -> None:
        self.number = number
        self.process = process
        # A process that is dead and reaped already has no start time to be known by.
        self.identity = identify(process.pid) or Process(process.pid, None)
        self.life = Life()
        self.progress: Progress | None = None
        self.stopping = False
        """Whether anybody has asked it to end, and it has heard that."""
        self.failure: Failure | None = None
        self.killed: Incident | None = None
        os.set_blocking(pipe, False)
        self._pipe = pipe
        self._open = True
        self._torn = b""

    @property
    def code(self) -> int | None:
        """The exit code, or minus the number of the signal; None while it runs."""
        return self.process.returncode

    async def news(self, deadline: float) -> None:
        """Wait until there is something in the pipe, or until the deadline."""
        with anyio.CancelScope(deadline=deadline):
            if self._open:
                await anyio.wait_readable(self._pipe)
            else:
                await anyio.sleep_forever()

    def hear(self) -> list[Beat | Failure]:
        """All complete messages that are in the pipe now."""
        *lines, self._torn = (self._torn + self._read()).split(b"\n")
        messages = [message for line in lines if (message := from_line(line))]
        for message in messages:
            if isinstance(message, Failure):
                self.failure = message
        return messages

    async def end(self) -> None:
        """Kill the process with its group, and reap it, even if this task is cancelled."""
        with anyio.CancelScope(shield=True):
            kill_group(self.identity)
            await self.process.wait()
            sweep_group(self.identity)

    def _read(self) -> bytes:
        try:
            read = os.read(self._pipe, PIPE_BYTES)
        except BlockingIOError:
            return b""
        self._open = bool(read)
        return read


def _told(code: int | None) -> str:
    if code is not None and code < 0:
        return f"died of signal {-code} ({signal.strsignal(-code)})"
    return f"ended with exit code {code}"
