"""`arcd serve` and `arcd run` as calls: a supervised daemon that lasts as long as the call.

    serve   until a signal ends it
    run     until one job is done: daemon, submit, follow, stop

What holds for a daemon holds for `run`, because it uses one: answers are in the store, a daemon
that dies or freezes is replaced, and the same call again goes on with the job. Knows nothing of
command lines.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import from_thread, to_thread

from arcd.daemon.client import RETRY_S, Client
from arcd.daemon.options import Options
from arcd.daemon.schema import Order
from arcd.daemon.supervisor import Incident, Progress, Supervisor
from arcd.daemon.watchdog import Limits
from arcd.display.live import Watch
from arcd.errors import BadJob, DaemonFailed, NoDaemon, RunInterrupted
from arcd.jobs.store import Store, path_in
from arcd.system import files
from arcd.system.home import Home
from arcd.system.home_lock import HomeLock
from arcd.system.ledger import Account

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask for an end in order: Ctrl-C, the system, a terminal that was closed."""

LAST_PART = 0.2
"""The last part of a budget's reserve, as a fraction: a daemon that still runs then is killed."""

PAUSE_TIMEOUT_S = 3.0
"""Seconds that a daemon gets to pause its job before it is asked to stop anyway."""


@dataclass(frozen=True)
class Outcome:
    """A job that is finished, and where the time of its last daemon went."""

    job: int
    status: dict[str, Any]
    account: Account

    @property
    def exit_code(self) -> int:
        """0 if the job is done, 1 if it is not: it failed or was cancelled."""
        return 0 if self.status["state"] == "done" else 1


def command(options: Options) -> Sequence[str]:
    """The command that is a daemon with these options."""
    return [sys.executable, "-m", "arcd.daemon", options.model_dump_json()]


def serve(
    options: Options,
    *,
    limits: Limits,
    report: Callable[[Incident], None],
    progress: Callable[[Progress, int], None],
) -> int:
    """Keep a daemon alive until a signal ends it; blocks. A second signal kills it at once.

    `progress` gets "loading" or "ready" with the daemon's pid. Returns 0, or 1 if the daemon had to
    be killed. Raises HomeInUse or DaemonFailed.
    """
    with HomeLock.take(options.home) as lock:
        supervisor = Supervisor(
            command(options),
            lock,
            limits,
            log=Home(options.home).log,
            report=report,
            progress=progress,
            grace=options.grace,
        )
        return anyio.run(_supervise, supervisor)


async def _supervise(supervisor: Supervisor) -> int:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_on_signals, supervisor)
        code = await supervisor.run()
        tasks.cancel_scope.cancel()
    return code


async def _stop_on_signals(supervisor: Supervisor) -> None:
    with anyio.open_signal_receiver(*ENDING) as received:
        async for _ in received:
            supervisor.stop()


def run(
    options: Options,
    order: Order,
    *,
    limits: Limits,
    report: Callable[[Incident], None],
    begin: Callable[[dict[str, Any]], Watch],
) -> Outcome:
    """Do one job with a daemon of its own; blocks until it is finished.

    `begin` gets the job's status as soon as the daemon has accepted it, and returns the function
    that is called with each of its records. Raises HomeInUse, DaemonFailed, ArcdError where the
    submission cannot be written, or RunInterrupted after Ctrl-C: then the job is paused, and the
    same call goes on with it.
    """
    home = Home(options.home)
    with HomeLock.take(options.home) as lock:
        if path_in(home.path).exists():
            with closing(Store(home.path, "read")) as store:
                # Unfinished jobs of earlier commands are left alone.
                options = options.model_copy(update={"since": store.journal.last() + 1})
        outcome = anyio.run(_Run(home, lock, options, order, limits, report, begin).run)
        _write_where_the_daemon_could_not(home, order, outcome.job)
        return outcome


class _Run:
    def __init__(
        self,
        home: Home,
        lock: HomeLock,
        options: Options,
        order: Order,
        limits: Limits,
        report: Callable[[Incident], None],
        begin: Callable[[dict[str, Any]], Watch],
    ) -> None:
        self._home, self._order, self._begin = home, order, begin
        self._supervisor = Supervisor(
            command(options), lock, limits, log=home.log, report=report, grace=options.grace
        )
        self._budget = options.config.budget
        self._job: int | None = None
        self._paused = False
        self._outcome: Outcome | None = None

    async def run(self) -> Outcome:
        async with anyio.create_task_group() as listening:
            listening.start_soon(self._obey_signals)
            async with anyio.create_task_group() as following:
                following.start_soon(self._follow_and_stop)
                following.start_soon(self._keep_to_budget)
                await self._supervisor.run()
                # The daemon is gone for good: following it would never end.
                following.cancel_scope.cancel()
            listening.cancel_scope.cancel()
        if self._outcome is None:
            raise RunInterrupted
        return self._outcome

    async def _keep_to_budget(self) -> None:
        """Kill a daemon that has not ended by itself shortly before the budget is over."""
        if self._budget.seconds is None:
            return
        await anyio.sleep(self._budget.seconds - LAST_PART * self._budget.reserve)
        if self._outcome is None:
            self._supervisor.stop()
            self._supervisor.stop()
            raise DaemonFailed(
                "the time was up before the daemon had ended; the submission has what was answered"
            )

    async def _follow_and_stop(self) -> None:
        self._outcome = await to_thread.run_sync(self._follow)
        self._supervisor.stop()

    def _follow(self) -> Outcome:
        with Client(self._home.path) as client:
            status = self._submit(client)
            self._job = status["job"]
            watch = self._begin(status)
            for record in client.follow(status["job"], brief=True, rest=_rest):
                watch(record)
            account = Account.from_json(_answered(client.health)["ledger"])
            return Outcome(status["job"], _answered(lambda: client.job(status["job"])), account)

    def _submit(self, client: Client) -> dict[str, Any]:
        """Submit as soon as the daemon answers; if it never does, this is cancelled."""
        return _answered(lambda: client.send(self._order))

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(*ENDING) as received:
            async for _ in received:
                if self._job is not None and not self._paused:
                    self._paused = True
                    with anyio.move_on_after(PAUSE_TIMEOUT_S):
                        await to_thread.run_sync(self._pause, self._job, abandon_on_cancel=True)
                self._supervisor.stop()

    def _pause(self, job: int) -> None:
        """Pause the job, so that a later daemon leaves it alone."""
        with Client(self._home.path) as client, suppress(NoDaemon, BadJob):
            client.pause(job)


def _write_where_the_daemon_could_not(home: Home, order: Order, job: int) -> None:
    """Write the submission where it is missing or old; raises what the daemon could only log."""
    with closing(Store(home.path, "read")) as store:
        text = store.jobs.submission(job)
    for out in map(Path, order.outs):
        if not out.is_file() or out.read_text() != text:
            files.write_text(out, text)


def _answered(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The daemon's answer, as soon as there is a daemon."""
    while True:
        try:
            return ask()
        except NoDaemon:
            _rest(RETRY_S)


def _rest(seconds: float) -> None:
    """Wait; raises as soon as this is cancelled, because there will be no daemon any more."""
    from_thread.check_cancelled()
    time.sleep(seconds)
