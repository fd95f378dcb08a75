"""The daemon: one process with job service, server, scheduler and runtime in one task group.

Crash-only: whatever goes wrong in earnest ends the process; the supervisor starts another one,
which finds everything in the store. What a restart would not mend is told to the supervisor as a
failure. Started by the supervisor as `python -m arcd.daemon OPTIONS`.
"""

import asyncio
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import anyio
from anyio import to_thread

from arcd.backends.runtime import Runtime, set_environment
from arcd.daemon import server
from arcd.daemon.heartbeat import Activity, Beat, Failure, Pulse, prepare_child
from arcd.daemon.options import Options
from arcd.daemon.publisher import Publisher
from arcd.daemon.schema import Forecast, Health, Prediction
from arcd.errors import EngineFailed, known
from arcd.jobs import events, messages
from arcd.jobs.events import Record
from arcd.jobs.service import JobService
from arcd.jobs.state import Job
from arcd.jobs.store import NewJob, Store
from arcd.model.base_model import Device, check, check_training, fingerprint, pick_device
from arcd.scheduling.calibration import calibrate
from arcd.scheduling.rates import RateEstimator
from arcd.scheduling.scheduler import Scheduler
from arcd.system.home import Home
from arcd.system.ledger import Ledger
from arcd.version import __version__

BEAT = 0.5
"""Seconds between two signs of life."""

KEEP = 10.0
"""Seconds between two writings of the rates, which may be lost: they are soon measured again."""

log = logging.getLogger("arcd.daemon")


@dataclass(frozen=True)
class Platform:
    """What the models of a daemon are and run on."""

    fingerprint: str
    device: Device


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

    def __init__(self, options: Options, pulse: Pulse | None) -> None:
        self._options, self._pulse = options, pulse
        self._home = Home(options.home)
        self._ledger = Ledger()
        self._service = JobService(Store(options.home))
        self._publisher = Publisher(self._service, self._home)
        self._scheduler: Scheduler | None = None
        self._runtime: Runtime | None = None
        self._platform: Platform | None = None
        self._state: Literal["loading", "ready", "stopping"] = "loading"
        self._rates: RateEstimator | None = None
        self._kept = 0.0  # when they were written down last
        self._service.listeners.append(self._log)

    async def run(
        self, open_runtime: OpenRuntime, find_platform: Callable[[Options], Platform]
    ) -> None:
        """Serve until told to stop."""
        self._recover()
        servers = self._servers()
        async with anyio.create_task_group() as helping:
            for helper in (self._beat, self._obey_signals, self._publisher.run):
                helping.start_soon(helper)
            async with anyio.create_task_group() as serving:
                for http, listening in servers:
                    serving.start_soon(http.serve, [listening])
                await self._work(open_runtime, find_platform)
                for http, _ in servers:
                    http.should_exit = True
            helping.cancel_scope.cancel()
        self._service.store.close()

    async def _work(
        self, open_runtime: OpenRuntime, find_platform: Callable[[Options], Platform]
    ) -> None:
        """Load the models, work through jobs until told to stop, write the last word."""
        begun = time.monotonic()
        with self._ledger.span("host", "load"):
            self._platform = await to_thread.run_sync(find_platform, self._options)
        self._started(self._platform)
        async with open_runtime(
            self._options,
            self._platform,
            rank=self._largest_rank(),
            ledger=self._ledger,
            serial=self._service.store.serial,
        ) as runtime:
            self._rates = await self._measured(runtime)
            scheduler = self._ready(runtime, self._rates, time.monotonic() - begun)
            if self._state == "stopping":
                scheduler.stop()
            await scheduler.run(self._options.grace)
            self._keep(self._rates)
        await to_thread.run_sync(self._publisher.flush)
        self._service.emit(None, events.DaemonStopped(self._ledger.account().to_json()))
        self._service.close()

    async def _measured(self, runtime: Runtime) -> RateEstimator:
        """What an earlier daemon has measured of this platform, or a calibration."""
        kept = self._service.store.measured(self._rates_key())
        if kept is not None and (found := RateEstimator.from_json(kept)).known:
            return found
        with self._ledger.span("host", "load"):
            measured = await calibrate(runtime, self._options.config)
        self._keep(measured)
        return measured

    def _keep(self, measured: RateEstimator) -> None:
        self._service.store.keep_measured(self._rates_key(), measured.to_json())
        self._kept = time.monotonic()

    def _rates_key(self) -> str:
        """What decides how fast it is: machine, base, engine, and what an adapter looks like."""
        assert self._platform is not None
        config, device = self._options.config, self._platform.device
        return json.dumps(
            {
                "device": [device.kind, device.name, device.dtype],
                "base": self._platform.fingerprint,
                "engine": config.engine.model_dump(mode="json"),
                "trainings": config.trainings,
                "rank": config.train.rank,
                "target_modules": config.train.target_modules,
            }
        )

    def health(self) -> Health:
        """How the daemon is."""
        device = self._platform.device if self._platform else None
        return Health(
            state=self._state,
            pid=os.getpid(),
            version=__version__,
            base=str(self._options.base),
            device=device.kind if device else self._options.device,
            dtype=device.dtype if device else self._options.config.precision,
            jobs=len(self._service.state.jobs),
            rates=self._rates.rates.to_json() if self._rates else None,
            ledger=self._ledger.account().to_json(),
        )

    def forecast(self, job: Job) -> Forecast:
        """What is still to come of a job."""
        scheduler = self._scheduler
        tasks = {n: t.predicted for n, t in job.tasks.items() if t.in_flight and t.predicted}
        tasks |= scheduler.predicted(job.id) if scheduler else {}
        return Forecast(
            job=job.id,
            seconds=scheduler.left(job.id) if scheduler else None,
            tasks={name: Prediction(**asdict(times)) for name, times in tasks.items()},
            accuracy=job.accuracy(),
        )

    def stop(self) -> None:
        """End in order."""
        self._state = "stopping"
        if self._scheduler is not None:
            self._scheduler.stop()
        else:
            # Loading cannot be interrupted; but who asked by HTTP shall hear that we obey.
            asyncio.get_running_loop().call_later(BEAT, self._drop_everything)

    def _drop_everything(self) -> None:
        """End before the models are loaded: nothing is in hand."""
        self._publisher.flush()
        self._service.emit(None, events.DaemonStopped())
        self._service.store.close()
        os._exit(0)

    def _log(self, record: Record) -> None:
        line = messages.log_line(record, self._service.state)
        if line:
            log.info("%s", line)

    def _recover(self) -> None:
        """Count the deaths of what was in hand, and throw away what a death has left half done."""
        state = self._service.state
        for job, task in state.in_flight():
            self._service.emit(job, events.Interrupted(task))
        since, base = self._options.since, str(self._options.base)
        bases = self._service.store.bases().items()
        self._service.foreign = {number: other for number, other in bases if other != base}
        self._service.held = {job.id for job in state.jobs.values() if job.asked < since}
        for number, other in self._service.foreign.items():
            if not state.jobs[number].finished:
                self._service.held.add(number)
                log.warning("job %d waits for a daemon with its base, %s", number, other)
        kept = {
            f"adapter-{serial}"
            for job in state.jobs.values()
            if not job.finished
            for task in job.tasks.values()
            for serial in (task.adapter, task.answered_by if job.budget is not None else None)
            if serial is not None
        }
        if self._home.adapters.is_dir():
            for folder in self._home.adapters.iterdir():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)

    def _servers(self) -> list[tuple[server.Server, server.Socket]]:
        options = self._options
        found = [(self._server(), server.listen_on_unix(self._home))]
        if options.host is not None:
            listening = server.listen_on_tcp(options.host, options.port)
            log.info("listening on %s:%d", *listening.getsockname()[:2])
            found.append((self._server(server.token_in(self._home)), listening))
        return found

    def _server(self, token: str | None = None) -> server.Server:
        return server.server_of(
            server.application(
                self._service,
                self._options.config,
                base=str(self._options.base),
                check=self._check,
                health=self.health,
                forecast=self.forecast,
                stop=self.stop,
                token=token,
            )
        )

    def _check(self, job: NewJob) -> None:
        check_training(self._options.base, job.config.train)

    def _largest_rank(self) -> int:
        """The rank that the engine must serve: also that of jobs of an earlier daemon."""
        jobs = (job for job in self._service.state.jobs.values() if not job.finished)
        ranks = (self._service.store.config(job.id).train.rank for job in jobs)
        return max([self._options.config.train.rank, *ranks])

    def _started(self, platform: Platform) -> None:
        self._service.emit(
            None,
            events.DaemonStarted(
                os.getpid(),
                __version__,
                str(self._options.base),
                platform.fingerprint,
                platform.device.kind,
                platform.device.dtype,
            ),
        )

    def _ready(self, runtime: Runtime, measured: RateEstimator, seconds: float) -> Scheduler:
        self._runtime = runtime
        self._scheduler = Scheduler(
            self._service, runtime, self._options.config, self._home.adapters, measured
        )

        def remember(record: Record) -> None:
            if isinstance(record.event, events.Answered) and self._kept + KEEP < time.monotonic():
                self._keep(measured)

        self._service.listeners.append(remember)
        self._service.emit(None, events.DaemonReady(seconds))
        if self._state == "loading":
            self._state = "ready"
        if self._pulse:
            # From now on the supervisor's patience is shorter: it should know as soon as others do.
            self._pulse.send(self._life())
        return self._scheduler

    async def _beat(self) -> None:
        while self._pulse:
            self._pulse.send(self._life())
            await anyio.sleep(BEAT)

    def _life(self) -> Beat:
        if self._runtime is None:
            return Beat(False, Activity(False, 0), Activity(False, 0))
        engine, trainer = self._runtime.engine, self._runtime.trainer
        return Beat(
            True, Activity(engine.busy, engine.steps), Activity(trainer.busy, trainer.steps)
        )

    async def _obey_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                self.stop()


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
        ledger=ledger,
        serial=serial,
    ) as runtime:
        yield runtime


def main(
    open_runtime: OpenRuntime = real_runtime,
    find_platform: Callable[[Options], Platform] = find_platform,
) -> int:
    """Be a daemon, with the options given on the command line; returns the exit code."""
    options = Options.model_validate_json(sys.argv[1])
    set_environment()
    prepare_child(Home(options.home).stacks)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("arcd").setLevel(logging.INFO)
    pulse = Pulse.from_environment()

    async def live() -> None:
        await Daemon(options, pulse).run(open_runtime, find_platform)

    try:
        anyio.run(live)
    except BaseException as error:
        explained = known(error)
        if explained is None or isinstance(explained, EngineFailed):
            raise
        log.error("%s", explained)
        if pulse:
            pulse.send(Failure(str(explained), explained.exit_code))
        return explained.exit_code
    return 0
