"""`arcd serve` and `arcd run` as calls: a supervised daemon that lasts as long as the call.

    serve   until a signal ends it
    run     until one job is done: daemon, submit, follow, stop

What holds for a daemon holds for `run`, because it uses one: answers are in the store, a daemon
that dies or freezes is replaced, and the same call again goes on with the job. Knows nothing of
command lines.
"""

import math
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

from arcd.config import BudgetConfig
from arcd.daemon.client import RETRY_S, Client
from arcd.daemon.options import Options
from arcd.daemon.schema import Order
from arcd.daemon.supervisor import Incident, Progress, Supervisor
from arcd.daemon.watchdog import Limits
from arcd.display.live import Watch
from arcd.errors import ArcdError, BadJob, DaemonFailed, NoDaemon, NotPublished, RunInterrupted
from arcd.jobs.job_table import Published
from arcd.jobs.store import Store
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
    be killed. Raises HomeInUse, StoreFailed or DaemonFailed.
    """
    with HomeLock.take(options.home) as lock:
        options = options.model_copy(update={"began": _last_record(options.home)})
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
    that is called with each of its records. A job that is done is in all its files when this
    returns. Raises HomeInUse, StoreFailed, DaemonFailed, ArcdError where the submission cannot be
    written, or RunInterrupted after Ctrl-C: then the job is paused, and the same call goes on with
    it.
    """
    home = Home(options.home)
    with HomeLock.take(options.home) as lock:
        last = _last_record(options.home)
        # Unfinished jobs of earlier commands are left alone.
        options = options.model_copy(update={"since": last + 1, "began": last})
        running = _Run(home, lock, options, order, limits, report, begin)
        outs = tuple(map(Path, order.outs))
        try:
            outcome = anyio.run(running.run)
        except BaseException:
            # What was answered is written, also where the daemon was killed before it could do so.
            if running.job is not None:
                with suppress(ArcdError):
                    publish_rest(home, outs, running.job, done=False)
            raise
        publish_rest(home, outs, outcome.job, done=outcome.exit_code == 0)
        return outcome


def _last_record(home: Path) -> int:
    """The number of the last record in a home, which this process has locked."""
    with closing(Store(home)) as store:
        return store.journal.last()


def publish_rest(home: Home, outs: Sequence[Path], job: int, *, done: bool) -> None:
    """Write what the daemon, which is gone, has not written of a job's submission.

    A file that has the last answers by the store's count may have been changed by its user since.
    It is left alone, unless the job is `done`: then the user has asked for the submission. Raises
    ArcdError with the reason where a file cannot be written, after all others were.
    """
    own = home.submission(job)
    with closing(Store(home.path)) as store:
        text, last = store.jobs.submission_at(job)
        before = store.jobs.published().get(job, Published())
        failed = []
        for path, has in ((own, before.own), *((out, before.outs) for out in outs)):
            if has >= last and (not done or files.holds(path, text)):
                continue
            try:
                own.parent.mkdir(parents=True, exist_ok=True)
                files.replace_text(path, text)
            except (ArcdError, OSError) as error:
                failed.append(str(error))
        if failed:
            raise ArcdError("; ".join(failed))
        if before != (now := Published(last, last)):
            store.jobs.keep_published(job, now)


class Backstop:
    """The time at which a run with a budget must end, whatever its daemon does.

    It counts from the beginning of the command and, as soon as the job is known, from the job's
    submission: a job that goes on was submitted by an earlier command. Where its time was up before
    this command began, the job only has to be closed, and the command may take what a new one may.
    """

    def __init__(self, budget: BudgetConfig, wall: Callable[[], float] = time.time) -> None:
        """`wall` is the clock of the store's records."""
        seconds = math.inf if budget.seconds is None else budget.seconds
        self._allowed = seconds - LAST_PART * budget.reserve
        self._wall = wall
        self._end = math.inf
        self._scope: anyio.CancelScope | None = None

    async def wait(self) -> None:
        """Return when the time is up; never without a budget."""
        self._end = min(self._end, anyio.current_time() + self._allowed)
        with anyio.CancelScope(deadline=self._end) as self._scope:
            await anyio.sleep_forever()

    def accepted(self, submitted: float) -> None:
        """Take in when the job was submitted, in seconds since 1970."""
        left = self._allowed - max(0.0, self._wall() - submitted)
        if left > 0:
            self._end = min(self._end, anyio.current_time() + left)
            if self._scope is not None:
                self._scope.deadline = self._end


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
        self._backstop = Backstop(options.config.budget)
        self.job: int | None = None
        """Its number, once the daemon has accepted it."""
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
        await self._backstop.wait()
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
            from_thread.run_sync(self._accepted, status)
            watch = self._begin(status)
            # What the daemon could not write is written when it is gone.
            with suppress(NotPublished):
                for record in client.follow(status["job"], brief=True, rest=_rest):
                    watch(record)
            account = Account.from_json(_answered(client.health)["ledger"])
            return Outcome(status["job"], _answered(lambda: client.job(status["job"])), account)

    def _accepted(self, status: dict[str, Any]) -> None:
        self.job = status["job"]
        self._backstop.accepted(status["submitted"])

    def _submit(self, client: Client) -> dict[str, Any]:
        """Submit as soon as the daemon answers; if it never does, this is cancelled."""
        return _answered(lambda: client.send(self._order))

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(*ENDING) as received:
            async for _ in received:
                if self.job is not None and not self._paused:
                    self._paused = True
                    with anyio.move_on_after(PAUSE_TIMEOUT_S):
                        await to_thread.run_sync(self._pause, self.job, abandon_on_cancel=True)
                self._supervisor.stop()

    def _pause(self, job: int) -> None:
        """Pause the job, so that a later daemon leaves it alone."""
        with Client(self._home.path) as client, suppress(NoDaemon, BadJob):
            client.pause(job)


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
