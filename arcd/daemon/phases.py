"""The phases of a daemon's life, and what it says of itself in each: health, forecast, beat.

Frozen values and pure functions. Knows nothing of how one phase becomes the next.
"""

import os
from dataclasses import asdict, dataclass

from arcd.backends.runtime import Runtime
from arcd.daemon.heartbeat import Activity, Beat
from arcd.daemon.options import Options
from arcd.daemon.schema import Forecast, Health, Prediction
from arcd.jobs.state import Job
from arcd.model.device import Device
from arcd.scheduling.rates import RateEstimator
from arcd.scheduling.scheduler import Scheduler
from arcd.system.ledger import Ledger
from arcd.version import __version__


@dataclass(frozen=True, slots=True)
class Platform:
    """Which base model a daemon has, and the device it runs on."""

    fingerprint: str
    device: Device


@dataclass(frozen=True, slots=True)
class Loading:
    """The models are being loaded; `platform` is None until torch has told what is there."""

    platform: Platform | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """Trainer and engine can work."""

    platform: Platform
    runtime: Runtime
    estimator: RateEstimator
    scheduler: Scheduler


DaemonPhase = Loading | Ready


def health(
    phase: DaemonPhase, options: Options, jobs: int, ledger: Ledger, *, stopping: bool
) -> Health:
    """How the daemon is."""
    device = phase.platform.device if phase.platform else None
    ready = isinstance(phase, Ready)
    return Health(
        state="stopping" if stopping else "ready" if ready else "loading",
        pid=os.getpid(),
        version=__version__,
        base=options.base_name,
        device=device.label if device else options.device,
        hardware=device.name if device else "",
        dtype=device.dtype if device else options.config.precision,
        jobs=jobs,
        rates=phase.estimator.rates.to_json() if isinstance(phase, Ready) else None,
        ledger=ledger.account().to_json(),
    )


def forecast(phase: DaemonPhase, job: Job, *, detail: bool) -> Forecast:
    """The seconds that are still to come of a job; in detail, by task and how good they were."""
    seconds = phase.scheduler.left(job.id) if isinstance(phase, Ready) else None
    if not detail:
        return Forecast(job=job.id, seconds=seconds, tasks={}, accuracy={})
    tasks = {n: t.predicted for n, t in job.tasks.items() if t.in_flight and t.predicted}
    if isinstance(phase, Ready):
        tasks |= phase.scheduler.predicted(job.id)
    return Forecast(
        job=job.id,
        seconds=seconds,
        tasks={name: Prediction(**asdict(times)) for name, times in tasks.items()},
        accuracy=job.accuracy(),
    )


def beat(phase: DaemonPhase, ledger: Ledger, *, stopping: bool) -> Beat:
    """The sign of life for the supervisor: how far loading, or trainer and engine, are."""
    if isinstance(phase, Loading):
        idle = Activity(False, 0)
        return Beat(False, idle, idle, stopping, ledger.stages_open)
    engine, trainer = phase.runtime.engine, phase.runtime.trainer
    engines = Activity(engine.busy, engine.steps)
    return Beat(True, engines, Activity(trainer.busy, trainer.steps), stopping)
