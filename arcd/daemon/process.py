"""The daemon: one process with job service, server, scheduler and runtime in one task group.

    run        serves until told to stop
    _open      reads the store, recovers from what earlier daemons have left
    _work      loads the models, works through jobs, writes the last word

Crash-only: an error that arcd cannot explain ends the process; the supervisor starts another one,
which finds everything in the store. An error that a restart would not mend is told to the
supervisor as a failure.
"""

import gc
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import anyio
from anyio import to_thread
from starlette.types import ASGIApp

from arcd.backends.runtime import Runtime, set_environment
from arcd.config import on_device
from arcd.daemon import endings, phases, server
from arcd.daemon.entrances import open_entrances
from arcd.daemon.forgetting import delete_leftovers, forget
from arcd.daemon.heartbeat import PREDECESSOR_DIED, Pulse, prepare_child
from arcd.daemon.kept_rates import KeptRates
from arcd.daemon.options import Options
from arcd.daemon.phases import DaemonPhase, Loading, Platform, Ready
from arcd.daemon.publisher import Publisher
from arcd.daemon.schema import Forecast, Health
from arcd.daemon.snapshotter import Snapshotter, folded
from arcd.errors import StoreFailed
from arcd.jobs import events, messages
from arcd.jobs.events import Record
from arcd.jobs.journal import NewJob
from arcd.jobs.recovery import Recovery
from arcd.jobs.service import JobService
from arcd.jobs.state import Job, State
from arcd.jobs.store import Store
from arcd.model.base_model import check, check_training, fingerprint
from arcd.model.device import Device, pick_device
from arcd.scheduling.adapter_folder import AdapterFolder
from arcd.scheduling.rates import RateEstimator
from arcd.scheduling.scheduler import Scheduler
from arcd.system.home import Home
from arcd.system.ledger import Ledger
from arcd.system.processes import seconds_since_start
from arcd.version import __version__

BEAT_INTERVAL_S = 0.5
"""Seconds between two beats."""

log = logging.getLogger("arcd.daemon")


class OpenRuntime(Protocol):
    """Makes a daemon's runtime; the real one, or one of fakes."""

    def __call__(
        self,
        options: Options,
        platform: Platform,
        *,
        rank: int,
        ledger: Ledger,
        serial: Callable[[], int],
    ) -> AbstractAsyncContextManager[Runtime]: ...


class Daemon:
    """One life of the daemon, from a locked home to its end."""

    def __init__(self, options: Options, pulse: Pulse | None, *, predecessor_died: bool) -> None:
        """`predecessor_died`: whether the daemon before this one died by itself, or stalled."""
        self._options, self._pulse = options, pulse
        self._predecessor_died = predecessor_died
        self._home = Home(options.home)
        self._ledger = Ledger()
        self._store = Store(options.home)
        self._jobs: _Jobs | None = None
        self._phase: DaemonPhase = Loading()
        self._stopping = False
        self._stopped_loading = anyio.Event()

    async def run(
        self, open_runtime: OpenRuntime, find_platform: Callable[[Options], Platform]
    ) -> None:
        """Serve until told to stop."""
        early = partial(server.early_application, self.health, self.stop)
        entrances = open_entrances(self._options, self._home, early)
        self._ledger.add_stage("daemon", seconds_since_start())
        async with anyio.create_task_group() as helping:
            for helper in (self._beat, self._obey_signals, self._end_while_loading):
                helping.start_soon(helper)
            async with anyio.create_task_group() as serving:
                for entrance in entrances:
                    serving.start_soon(entrance.http.serve, [entrance.listening])
                jobs = self._jobs = await self._open()
                for helper in (
                    jobs.publisher.run,
                    jobs.snapshotter.run,
                    jobs.service.delete_forgotten,
                ):
                    helping.start_soon(helper)
                for entrance in entrances:
                    entrance.door.open(self._application(jobs, entrance.token))
                await self._work(jobs, open_runtime, find_platform)
                for entrance in entrances:
                    entrance.http.should_exit = True
            helping.cancel_scope.cancel()
        self._store.close()

    async def _open(self) -> "_Jobs":
        """Read the store, and carry out what follows from what earlier daemons have left."""
        options = self._options
        self._store.journal.discard_unsubmitted()
        state, unkept = await to_thread.run_sync(folded, self._home)
        service, recovery = JobService.open(self._store, state, options.base_name, options.since)
        service.subscribe(partial(_log, state))
        publisher = Publisher(service, self._home, options.began)
        self._recover(service, recovery)
        delete_leftovers(self._store, self._home)
        return _Jobs(service, publisher, Snapshotter(service, self._home, unkept))

    async def _work(
        self,
        jobs: "_Jobs",
        open_runtime: OpenRuntime,
        find_platform: Callable[[Options], Platform],
    ) -> None:
        """Load the models, work through jobs until told to stop, write the last word."""
        begun = time.monotonic()
        service = jobs.service
        with self._ledger.span("host", "load"), self._ledger.stage("torch"):
            platform = await to_thread.run_sync(find_platform, self._options)
        self._phase = Loading(platform)
        service.emit(None, _started(self._options, platform))
        rates = KeptRates(self._store, platform, self._options.config)
        async with open_runtime(
            self._options,
            platform,
            rank=self._largest_rank(service),
            ledger=self._ledger,
            serial=self._store.facts.serial,
        ) as runtime:
            estimator = rates.find() or RateEstimator()
            scheduler = self._become_ready(service, platform, runtime, estimator, rates, begun)
            try:
                await scheduler.run(self._options.grace)
            except Exception as error:
                self._die(service, error)
                raise
            rates.write(estimator)
        await jobs.publisher.flush()
        await jobs.snapshotter.flush()
        service.emit(None, events.DaemonStopped(self._ledger.account().to_json()))
        service.close()

    def _become_ready(
        self,
        service: JobService,
        platform: Platform,
        runtime: Runtime,
        estimator: RateEstimator,
        rates: KeptRates,
        begun: float,
    ) -> Scheduler:
        seconds = time.monotonic() - begun
        scheduler = Scheduler(
            service,
            runtime,
            on_device(self._options.config, platform.device.kind),
            self._home.adapters,
            estimator,
        )
        self._phase = Ready(platform, runtime, estimator, scheduler)
        service.subscribe(rates.subscriber(estimator))
        service.emit(None, events.DaemonReady(seconds))
        _collect_garbage_again()
        # At once: from now on the supervisor allows less time, and should not be the last to know.
        self._send_beat()
        if self._stopping:
            scheduler.stop()
        return scheduler

    def _die(self, service: JobService, error: Exception) -> None:
        """Say what the daemon dies of, in log and event stream, where that can be said."""
        if endings.told_as_death(error):
            # A store that cannot be written must not take the place of what the daemon dies of.
            with suppress(StoreFailed):
                service.emit(None, events.DaemonDied(endings.cause(error)))
        if endings.device_lost(error):
            log.error("%s", endings.cause(error))
            # An orderly end calls CUDA, which fails, aborts or hangs now.
            os._exit(1)

    @property
    def ready(self) -> bool:
        """Whether its models were loaded."""
        return isinstance(self._phase, Ready)

    def health(self) -> Health:
        """How the daemon is."""
        jobs = len(self._jobs.service.state.jobs) if self._jobs else self._store.jobs.count()
        return phases.health(
            self._phase, self._options, jobs, self._ledger, stopping=self._stopping
        )

    def forecast(self, job: Job, detail: bool) -> Forecast:
        """The seconds that are still to come of a job."""
        return phases.forecast(self._phase, job, detail=detail)

    def stop(self) -> None:
        """End in order."""
        self._stopping = True
        # At once: if this daemon dies of its end, no other one is to take its place.
        self._send_beat()
        match self._phase:
            case Ready(scheduler=scheduler):
                scheduler.stop()
            case Loading():
                self._stopped_loading.set()

    async def _end_while_loading(self) -> None:
        """End as soon as it is asked for before the models are loaded: no task is in flight.

        Loading cannot be interrupted, so the process ends itself, after one beat: who asked by HTTP
        gets the answer before.
        """
        await self._stopped_loading.wait()
        await anyio.sleep(BEAT_INTERVAL_S)
        if self._jobs:
            await self._jobs.publisher.flush()
            self._jobs.service.emit(None, events.DaemonStopped())
        self._store.close()
        os._exit(0)

    def _recover(self, service: JobService, recovery: Recovery) -> None:
        """Carry out the recovery: charge deaths, delete what a death has left half done."""
        for job, task in recovery.interrupted:
            # A kill by the user, a power cut or a preemption is not the task's fault.
            charged = self._predecessor_died
            service.emit(job, events.Interrupted(task) if charged else events.Released(task))
        for number in sorted(recovery.waiting_for_base):
            other = recovery.foreign[number]
            log.warning("job %d waits for a daemon with its base, %s", number, other)
        AdapterFolder(self._home.adapters).keep_only(recovery.adapters)

    def _application(self, jobs: "_Jobs", token: str | None) -> ASGIApp:
        return server.application(
            jobs.service,
            self._options.config,
            base=self._options.base_name,
            publishing=jobs.publisher,
            check=self._check,
            health=self.health,
            forecast=self.forecast,
            stop=self.stop,
            forget=partial(forget, jobs.service, jobs.publisher, self._home),
            token=token,
        )

    def _check(self, job: NewJob) -> None:
        check_training(self._options.base, job.config.train)

    def _largest_rank(self, service: JobService) -> int:
        """The rank that the engine must serve: also that of jobs of an earlier daemon."""
        jobs = (job for job in service.state.jobs.values() if not job.finished)
        ranks = (self._store.jobs.config(job.id).train.rank for job in jobs)
        return max([self._options.config.train.rank, *ranks])

    async def _beat(self) -> None:
        while True:
            self._send_beat()
            await anyio.sleep(BEAT_INTERVAL_S)

    def _send_beat(self) -> None:
        if self._pulse:
            self._pulse.send(phases.beat(self._phase, self._ledger, stopping=self._stopping))

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                self.stop()


@dataclass(frozen=True, slots=True)
class _Jobs:
    """What a daemon has once the store was read."""

    service: JobService
    publisher: Publisher
    snapshotter: Snapshotter


def _log(state: State, record: Record) -> None:
    line = messages.log_line(record, state)
    if line:
        log.info("%s", line)


def _collect_garbage_again() -> None:
    """After `main` has switched it off: what is there now stays for good, and is left alone."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _started(options: Options, platform: Platform) -> events.DaemonStarted:
    return events.DaemonStarted(
        os.getpid(),
        __version__,
        options.base_name,
        platform.fingerprint,
        _words(platform.device),
        platform.device.dtype,
    )


def _words(device: Device) -> str:
    more = device.name if device.kind == "cuda" else device.passed_over
    return f"{device.label} ({more})" if more else device.label


def find_platform(options: Options) -> Platform:
    """What the options come to on this machine; raises BadInput if they cannot be."""
    found = fingerprint(check(options.base))
    return Platform(found, pick_device(options.device, options.config.precision))


@asynccontextmanager
async def real_runtime(
    options: Options,
    platform: Platform,
    *,
    rank: int,
    ledger: Ledger,
    serial: Callable[[], int],
) -> AsyncIterator[Runtime]:
    """The real trainer and the real engine."""
    from arcd.backends.runtime import open_runtime

    async with open_runtime(
        options.base,
        options.config,
        platform.device,
        rank=rank,
        adapters=Home(options.home).adapters,
        compiled=options.compiled or Home(options.home).compiled,
        ledger=ledger,
        serial=serial,
    ) as runtime:
        yield runtime


def main(
    open_runtime: OpenRuntime = real_runtime,
    find_platform: Callable[[Options], Platform] = find_platform,
) -> int:
    """Be a daemon, with the options given on the command line; returns the exit code."""
    # Until the daemon is ready: imports make hardly any garbage, and to look for it takes 1.3 s.
    gc.disable()
    options = Options.model_validate_json(sys.argv[1])
    prepare_child(Home(options.home).stacks)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("arcd").setLevel(logging.INFO)
    pulse = Pulse.from_environment()
    died = os.environ.get(PREDECESSOR_DIED) == "1"
    daemon: Daemon | None = None

    async def live() -> None:
        nonlocal daemon
        daemon = Daemon(options, pulse, predecessor_died=died)
        await daemon.run(open_runtime, find_platform)

    try:
        set_environment(options.device)
        anyio.run(live)
    except Exception as error:
        failed = endings.failure(error, ready=daemon is not None and daemon.ready)
        if failed is None:
            # The last line is what the supervisor quotes.
            log.error("the daemon dies", exc_info=error)
            log.error("%s", endings.cause(error))
            return 1
        log.error("%s", failed.message)
        if pulse:
            pulse.send(failed)
        return failed.exit_code
    return 0
