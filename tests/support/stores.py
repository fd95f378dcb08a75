"""Stores with one small job, for the tests of what is stored.

The values never change: the stores kept in `tests/data` were written with them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from arcd.arc.grids import Grid
from arcd.arc.tasks import Pair, Task, TaskSet
from arcd.config import resolve
from arcd.jobs import events
from arcd.jobs.database import Mode
from arcd.jobs.journal import NewJob, new_job
from arcd.jobs.service import JobService
from arcd.jobs.state import Job
from arcd.jobs.store import Store
from support.small import candidate

ROOT = Path(__file__).parents[2]
"""The repository."""

ONE, TWO = ((1, 2), (3, 4)), ((5,),)
B = Task("b", (Pair(ONE, TWO), Pair(TWO, ONE)), (ONE, TWO))
A = Task("a", (Pair(ONE, TWO),), (ONE,))
TASKS = TaskSet("two", (B, A), {"b": (TWO, ONE)})
# With the defaults of the time when the stores were kept.
SETTINGS = ["train.steps=3", "engine.cpu_cache_gib=2", "engine.max_num_seqs=64"]
JOB = new_job("job", 10, TASKS, resolve(settings=SETTINGS, seed=5), (Path("/o.json"),))


@contextmanager
def opened(
    home: Path, mode: Mode = "write", *, clock: Callable[[], float] = time.time
) -> Iterator[Store]:
    store = Store(home, mode, clock=clock)
    try:
        yield store
    finally:
        store.close()


def sampled(
    of: Task = A, test: int = 0, sample: int = 0, shown: Grid | None = ((1,),)
) -> events.Sampled:
    return events.Sampled(of.id, candidate(of, test, sample, shown))


def take_on(service: JobService, job: NewJob) -> Job:
    """Submit a job without an event loop, all of it at once."""
    record = service.store.journal.submit(job)
    service.announce(record)
    assert record.job is not None
    return service.state.jobs[record.job]
