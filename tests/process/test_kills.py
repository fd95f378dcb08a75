"""The kill matrix: a daemon of fakes is killed at every point where it could hurt, and at random.

Afterwards each task has exactly one verdict, no sample that was stored is drawn again, none is
counted twice, and the submission is complete. A supervisor, a daemon, a store and a client, all
real; the processes are killed for real.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from support.fakedaemon import SOLUTIONS, Plan

from arcd.arc import submission
from arcd.arc.tasks import TaskSet, load
from arcd.config import resolve
from arcd.daemon.client import Client
from arcd.daemon.options import Options
from arcd.daemon.supervisor import Incident, Supervisor
from arcd.daemon.watchdog import Limits
from arcd.errors import NoDaemon
from arcd.jobs import events
from arcd.jobs.state import JobState
from arcd.jobs.store import Store
from arcd.model.base_model import bundled
from arcd.system.home_lock import HomeLock

pytestmark = pytest.mark.anyio

TASKS = load(SOLUTIONS).tasks
SET = TaskSet("four", TASKS, {})
SAMPLES = 3
SETTINGS = {"train": {"steps": 2}, "sample": {"samples": SAMPLES}}

KINDS = ("DaemonStarted", "DaemonReady", "Started", "Training", "Trained", "Sampled", "Answered")
POINTS = [
    *(f"{when} {kind}" for kind in KINDS for when in ("before", "after")),
    "after Submitted",
    "before serial",
    "after serial",
    "before adapter",
    "after adapter",
    "hand-over",
    "calibration",
    "before write",
    "after write",
    "before replace",
    "after replace",
]


class Bench:
    """A supervised daemon of fakes in a home of its own."""

    def __init__(self, home: Path, plan: Plan, limits: Limits | None = None) -> None:
        self.home = home
        self.incidents: list[Incident] = []
        self.lock = HomeLock.take(home)
        options = Options(
            home=home, base=bundled(), config=resolve(settings=["lookahead=2"]), grace=5
        )
        script = Path(__file__).parents[1] / "support" / "fakedaemon.py"
        self.supervisor = Supervisor(
            [sys.executable, str(script), options.model_dump_json(), plan.to_json()],
            self.lock,
            limits or Limits(),
            log=home / "daemon.log",
            report=self.incidents.append,
            grace=5,
        )

    def store(self) -> Store:
        return Store(self.home, "read")

    async def finish(self, disturb=None) -> int:
        """Have the job done, whatever dies meanwhile; returns its number."""
        with self.lock, anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.supervisor.run)
                if disturb:
                    tasks.start_soon(disturb, self)
                job = await to_thread.run_sync(self._job)
                self.supervisor.stop()
        return job

    def _job(self) -> int:
        with Client(self.home) as client:
            while True:
                try:
                    orders = client.jobs()
                    job = orders[0]["job"] if orders else client.submit(SET, settings=SETTINGS)
                    break
                except NoDaemon:
                    # The daemon may be killed before, while or after it takes the job on.
                    time.sleep(0.05)
            for _ in client.follow(job):
                pass
        return job


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
    truth = load(SOLUTIONS).solutions
    assert all(attempts[0] == truth[t][i] for t in read for i, attempts in enumerate(read[t]))
    assert submission.read(home / "jobs" / str(job) / "submission.json") == read
    assert drawn_again(home, records) == []
    assert not any((home / "adapters").iterdir())


def drawn_again(home: Path, records: list[events.Record]) -> list[str]:
    """Samples that the engine finished in a life which began when they were stored already."""
    stored_before: dict[int, set[tuple[str, int, int]]] = {}
    stored: set[tuple[str, int, int]] = set()
    for record in records:
        match record.event:
            case events.DaemonStarted(pid):
                stored_before[pid] = set(stored)
            case events.Sampled(_, c):
                stored.add((c.task, c.test, c.sample))
    wrong = []
    for line in (home / "answered.log").read_text().splitlines():
        pid, task, test, sample = line.split()
        if (task, int(test), int(sample)) in stored_before.get(int(pid), set()):
            wrong.append(line)
    return wrong


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_point(tmp_path: Path, point: str, count: int):
    plan = Plan(str(tmp_path / "marker"), point, count)
    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish()
    check(bench.home, job)
    reached = (tmp_path / "marker").exists()
    assert len(bench.incidents) == (1 if reached else 0)
    once = ("DaemonStarted", "DaemonReady", "Submitted")
    assert reached or (count > 1 and point.endswith(once)), "the point was never reached"


async def test_killed_right_after_the_last_answer_the_file_is_written_by_the_next_life(
    tmp_path: Path,
):
    plan = Plan(str(tmp_path / "marker"), "after Answered", len(TASKS))
    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish()
    assert (tmp_path / "marker").exists()
    check(bench.home, job)


@pytest.mark.parametrize("seed", range(12))
async def test_killed_at_random_again_and_again(tmp_path: Path, seed: int):
    plan = Plan(str(tmp_path / "marker"), seconds_per_step=0.02, seconds_per_token=0.002)
    rng = random.Random(seed)
    kills = rng.randint(1, 2)

    async def disturb(bench: Bench) -> None:
        # Two deaths at most: the third sets a task aside, which is another test.
        for _ in range(kills):
            await anyio.sleep(rng.uniform(0.5, 1.6))
            holders = json.loads((bench.home / "lock").read_text())
            if holders["daemon"]:
                try:
                    os.kill(holders["daemon"]["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    return

    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish(disturb)
    check(bench.home, job)
