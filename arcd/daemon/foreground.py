"""`arcd run`: supervisor, daemon, submit, follow and stop, as one call.

The same machinery as `arcd serve` with `arcd submit`, so that everything which holds for a daemon
holds here: what was answered is in the store, a daemon that dies or freezes is replaced, and the
same call again goes on where this one was ended. Knows nothing of command lines.
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

from arcd.daemon.client import RETRY, Client
from arcd.daemon.options import Options
from arcd.daemon.schema import Order
from arcd.daemon.supervisor import Incident, Supervisor
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

LAST = 0.2
"""Share of a budget's reserve in which a daemon that is still there is killed."""

PAUSE = 3.0
"""Seconds that a daemon gets to pause its job before it is asked to stop anyway."""


@dataclass(frozen=True)
class Outcome:
    """A job that is finished, and where the time of its last daemon went."""

    job: int
    status: dict[str, Any]
    account: Account

    @property
    def exit_code(self) -> int:
        """0 if the job is done, 1 if it is not: it failed, or somebody cancelled it."""
        return 0 if self.status["state"] == "done" else 1


def command(options: Options) -> Sequence[str]:
    """The command that is a daemon with these options."""
    return [sys.executable, "-m", "arcd.daemon", options.model_dump_json()]


def run(
    options: Options,
    order: Order,
    *,
    limits: Limits,
    report: Callable[[Incident], None],
    begin: Callable[[dict[str, Any]], Watch],
) -> Outcome:
    """Do one job with a daemon of its own; blocks until it is finished.

    `begin` gets the job's status once it is taken on and gives what to show its records to. Raises
    HomeInUse, DaemonFailed, ArcdError where the submission cannot be written, or RunInterrupted
    after Ctrl-C: then the job is paused, and the same call takes it up.
    """
    home = Home(options.home)
    with HomeLock.take(options.home) as lock:
        if path_in(home.path).exists():
            with closing(Store(home.path, "read")) as store:
                # Jobs that others left unfinished are not what was asked for.
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
                # The daemon is gone for good: who follows it still would wait for ever.
                following.cancel_scope.cancel()
            listening.cancel_scope.cancel()
        if self._outcome is None:
            raise RunInterrupted
        return self._outcome

    async def _keep_to_budget(self) -> None:
        """End what should have ended by itself: nothing may keep us beyond the budget."""
        if self._budget.seconds is None:
            return
        await anyio.sleep(self._budget.seconds - LAST * self._budget.reserve)
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
            for record in client.follow(status["job"], rest=_rest):
                watch(record)
            account = Account.from_json(_answered(client.health)["ledger"])
            return Outcome(status["job"], _answered(lambda: client.job(status["job"])), account)

    def _submit(self, client: Client) -> dict[str, Any]:
        """Submit as soon as there is somebody to submit to; if nobody comes we are cancelled."""
        return _answered(lambda: client.send(self._order))

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(*ENDING) as received:
            async for _ in received:
                if self._job is not None and not self._paused:
                    self._paused = True
                    with anyio.move_on_after(PAUSE):
                        await to_thread.run_sync(self._pause, self._job, abandon_on_cancel=True)
                self._supervisor.stop()

    def _pause(self, job: int) -> None:
        """So that no later daemon goes on with it unasked."""
        with Client(self._home.path) as client, suppress(NoDaemon, BadJob):
            client.pause(job)


def _write_where_the_daemon_could_not(home: Home, order: Order, job: int) -> None:
    """Raise what the daemon could only log."""
    with closing(Store(home.path, "read")) as store:
        text = store.jobs.submission(job)
    for out in map(Path, order.outs):
        if not out.is_file() or out.read_text() != text:
            files.write_text(out, text)


def _answered(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, as soon as there is a daemon to give it."""
    while True:
        try:
            return ask()
        except NoDaemon:
            _rest(RETRY)


def _rest(seconds: float) -> None:
    """Wait for the daemon, unless there will be none any more."""
    from_thread.check_cancelled()
    time.sleep(seconds)
