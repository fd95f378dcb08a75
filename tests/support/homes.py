"""A home with a job in it, as a daemon that died has left it."""

import json
from pathlib import Path

from arcd.arc.grids import Grid
from arcd.arc.selection import Candidate, verdict
from arcd.arc.tasks import TaskSet, load
from arcd.arc.views import identity
from arcd.config import resolve
from arcd.jobs import events
from arcd.jobs.journal import new_job
from arcd.jobs.store import Store

ONE: Grid = ((1, 2), (3, 4))
TWO: Grid = ((5,),)


def write(path: Path, value: object) -> Path:
    """A text as it is, anything else as JSON."""
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def stored(home: Path) -> TaskSet:
    """Job 1 in `home`: of its tasks, a is answered and b in flight.

    The samples of a are right (TWO) and wrong (ONE) for test 0, invalid for test 1.
    """
    home.mkdir(exist_ok=True)
    pair = {"input": ONE, "output": TWO}
    tests = [{"input": ONE, "output": TWO}, {"input": TWO, "output": ONE}]
    path = write(home / "tasks.json", {n: {"train": [pair], "test": tests} for n in "ab"})
    tasks = load(str(path))
    view = identity(tasks.tasks[0])

    def candidate(test: int, sample: int, grid: Grid | None) -> Candidate:
        return Candidate("a", test, view, (0,), sample, 3, grid, -0.5, 4)

    samples = [candidate(0, 0, TWO), candidate(1, 0, None), candidate(0, 1, ONE)]
    store = Store(home)
    store.journal.submit(new_job("two", 10, tasks, resolve()))
    store.journal.append(1, events.Started("a", 4, 4))
    store.journal.append(1, *(events.Sampled("a", sample) for sample in samples))
    store.journal.append(1, events.Answered("a", verdict("a", 2, samples, 3, ("a note",))))
    store.journal.append(1, events.Started("b", 4, 4))
    store.close()
    return tasks
