"""A job of four tasks whose daemon dies, and all that must hold when it is done.

`Bench` has a supervisor and daemons in processes of their own, which are killed for real. `live`
has one life of the daemon in this process; `Snapshots` keeps the home as it is at each point of
such a life, as a kill at this point would leave it. `check` looks at the home of the finished job.
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from threading import RLock

import anyio
import pytest
from anyio import to_thread

from arcd.arc import submission
from arcd.arc.tasks import TaskSet
from arcd.config import resolve
from arcd.daemon.client import Client
from arcd.daemon.options import Options
from arcd.daemon.process import Daemon
from arcd.daemon.supervisor import Incident, Supervisor
from arcd.daemon.watchdog import Limits
from arcd.errors import NoDaemon
from arcd.jobs import events
from arcd.jobs.state import JobState
from arcd.jobs.store import Store
from arcd.model.base_model import bundled
from arcd.system.home_lock import HomeLock
from support.fakedaemon import KNOWN, Plan, Points, find_platform, instrument, runtime_of
from support.running import FAKE_DAEMON

TASKS = KNOWN.tasks
SET = TaskSet("four", TASKS, {})
SAMPLES = 3
SETTINGS = {"train": {"steps": 2}, "sample": {"samples": SAMPLES}}

FINISH_TIMEOUT_S = 60.0
"""For the job, which takes one second with a daemon that lives."""


def options(home: Path) -> Options:
    """Of each daemon that the same command keeps alive in a home that was new."""
    config = resolve(settings=["lookahead=2"])
    return Options(home=home, base=bundled(), config=config, grace=5, began=0)


def have_it_done(client: Client, out: Path | None) -> int:
    """Submit the job where it is not yet known, and wait for its end; returns its number."""
    deadline = time.monotonic() + FINISH_TIMEOUT_S
    while True:
        try:
            orders = client.jobs()
            job = (
                int(orders[0]["job"]) if orders else client.submit(SET, settings=SETTINGS, out=out)
            )
            break
        except NoDaemon:
            # The daemon may be killed before, while or after it takes the job on.
            assert time.monotonic() < deadline, "no daemon takes the job on"
            time.sleep(0.01)
    for _ in client.follow(job):
        pass
    return job


async def finished(home: Path, out: Path | None = None) -> int:
    """Wait for the end of the job, in a thread that a cancellation leaves to itself."""
    with Client(home) as client:
        return await to_thread.run_sync(have_it_done, client, out, abandon_on_cancel=True)


Disturb = Callable[["Bench"], Coroutine[object, object, None]]
"""What is done to a bench while its job runs."""


class Bench:
    """A supervised daemon of fakes in a home of its own."""

    def __init__(self, home: Path, plan: Plan, limits: Limits | None = None) -> None:
        self.home = home
        self.incidents: list[Incident] = []
        self.lock = HomeLock.take(home)
        self._command = [
            sys.executable,
            str(FAKE_DAEMON),
            options(home).model_dump_json(),
            plan.to_json(),
        ]
        self._limits = limits or Limits()

    def store(self) -> Store:
        return Store(self.home, "read")

    async def finish(self, disturb: Disturb | None = None) -> int:
        """Have the job done, whatever dies meanwhile; returns its number."""
        with self.lock, anyio.fail_after(2 * FINISH_TIMEOUT_S):
            supervisor = self._supervisor()
            ended: list[int] = []

            async def supervise() -> None:
                ended.append(await supervisor.run())

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(supervise)
                if disturb:
                    tasks.start_soon(disturb, self)
                job = await finished(self.home, self.home / "out.json")
                # Who has waited finds the files as they should be, whatever died before.
                check_files(self.home, job)
                supervisor.stop()
            if ended != [0]:
                # Killed after its last answer and not started again, because it was to end anyway:
                # what it had not written down is written by the next daemon that a user starts.
                await self._start_and_stop()
        return job

    async def _start_and_stop(self) -> None:
        supervisor = self._supervisor()

        async def stop_when_it_serves() -> None:
            await finished(self.home)
            supervisor.stop()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_when_it_serves)
            assert await supervisor.run() == 0

    def _supervisor(self) -> Supervisor:
        return Supervisor(
            self._command,
            self.lock,
            self._limits,
            log=self.home / "daemon.log",
            report=self.incidents.append,
            grace=5,
        )


async def live(home: Path, points: Points) -> int:
    """One life of the daemon, in this process, until the job is done; returns its number."""
    plan = Plan(seconds_per_step=0.0, seconds_per_token=0.0)
    with pytest.MonkeyPatch.context() as patch, anyio.fail_after(2 * FINISH_TIMEOUT_S):
        instrument(points, patch.setattr)
        daemon = Daemon(options(home), None, predecessor_died=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(daemon.run, runtime_of(plan, points), find_platform)
            job = await finished(home)
            daemon.stop()
    return job


class Snapshots(Points):
    """Keeps the home as it is at each point that is reached, under `folder`.

    The files of a living daemon, SQLite's log among them, are what a killed one leaves behind.
    """

    def __init__(self, home: Path, folder: Path) -> None:
        super().__init__()
        self._home, self._folder = home, folder
        self._reached: Counter[str] = Counter()
        # The files that are copied belong together; others write from another thread.
        self.writing = RLock()

    def reach(self, name: str) -> None:
        with self.writing:
            self._reached[name] += 1
            shutil.copytree(
                self._home,
                self._folder / f"{name}-{self._reached[name]}",
                ignore=shutil.ignore_patterns("socket"),
            )

    @property
    def reached(self) -> set[str]:
        """The names of the points that were reached."""
        return set(self._reached)

    def of(self, name: str) -> list[Path]:
        """The home at each time that this point was reached."""
        return [self._folder / f"{name}-{i}" for i in range(1, self._reached[name] + 1)]


def check(home: Path, job: int) -> None:
    """All that must hold whatever happened."""
    store = Store(home, "read")
    records = list(store.journal.records(job=job))
    answered = Counter(r.event.task for r in records if isinstance(r.event, events.Answered))
    assert answered == Counter({task.id: 1 for task in TASKS})
    assert store.journal.state().jobs[job].state is JobState.done
    sampled = [
        (c.task, c.test, c.sample)
        for c in (r.event.candidate for r in records if isinstance(r.event, events.Sampled))
    ]
    expected = {(t.id, i, s) for t in TASKS for i in range(len(t.tests)) for s in range(SAMPLES)}
    assert Counter(sampled) == Counter(expected)
    assert [(c.task, c.test, c.sample) for c in store.jobs.candidates(job)] == sampled
    for verdict in store.jobs.verdicts(job):
        assert verdict.samples == SAMPLES * len(verdict.ranked)
        assert verdict.notes == ()
    read = submission.parse("result", json.loads(store.jobs.submission(job)))
    assert {name: len(tests) for name, tests in read.items()} == {
        task.id: len(task.tests) for task in TASKS
    }
    truth = KNOWN.solutions
    assert all(attempts[0] == truth[t][i] for t in read for i, attempts in enumerate(read[t]))
    check_files(home, job)
    assert drawn_again(home, records) == []
    assert not any((home / "adapters").iterdir())
    store.close()


def check_files(home: Path, job: int) -> None:
    """The job's submission is where it should be."""
    with closing(Store(home, "read")) as store:
        read = submission.parse("result", json.loads(store.jobs.submission(job)))
        for path in (home / "jobs" / str(job) / "submission.json", *store.jobs.outs(job)):
            assert submission.read(path) == read


def drawn_again(home: Path, records: list[events.Record]) -> list[str]:
    """Samples that the engine finished in a life which began when they were stored already."""
    stored = {
        (c.task, c.test, c.sample): record.seq
        for record in records
        if isinstance(record.event, events.Sampled) and (c := record.event.candidate)
    }
    wrong = []
    for line in (home / "answered.log").read_text().splitlines():
        since, task, test, sample = line.split()
        if stored[task, int(test), int(sample)] <= int(since):
            wrong.append(line)
    return wrong
