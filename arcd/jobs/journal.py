"""The journal: the events, written in order and read again; the truth of the store.

A submitted job, a candidate, an answer also have a row in a table of their own, written in the same
transaction as the event. Knows nothing of who emits events.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from arcd.arc import submission
from arcd.arc.grids import Grid
from arcd.arc.tasks import Task, TaskSet, to_challenge
from arcd.config import Config
from arcd.jobs import events
from arcd.jobs.database import Database
from arcd.jobs.events import Event, Record
from arcd.jobs.fold import Fold
from arcd.jobs.snapshots import Snapshots
from arcd.jobs.state import State

ROWS_PER_STEP = 250
"""Tasks that reach the disk together when a job is submitted: one to two MB, some 10 ms."""

SUBMITTED = "EXISTS (SELECT 1 FROM events WHERE events.job = jobs.id)"
"""Of a row of `jobs`, in SQL: all tasks of the job are in the store."""


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task as the store keeps it: texts, which take a fraction of the memory of grids."""

    id: str
    body: str
    """As in a challenges file."""
    solution: str | None
    """As in a solutions file, where it is known."""
    tests: int

    @classmethod
    def of(cls, task: Task, solution: Sequence[Grid] | None) -> Self:
        """The texts of a task."""
        known = json.dumps(solution) if solution else None
        return cls(task.id, json.dumps(to_challenge(task)), known, len(task.tests))


@dataclass(frozen=True)
class NewJob:
    """A job to be submitted; `outs` are further paths of its submission file."""

    name: str
    priority: int
    tasks: tuple[NewTask, ...]
    config: Config
    outs: tuple[Path, ...] = ()
    base: str = ""
    """The base model it is for: the answers of two bases must not be mixed."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Ids of its file whose tasks cannot be used: blank in the submission, with so many tests."""

    @cached_property
    def digest(self) -> str:
        """A hash that is equal for jobs that ask for the same answers.

        Name, priority and `outs` do not count. A budget does: it is counted from the job's
        submission and decides how its tasks are done, so another budget is another job. A job of
        another arcd may have another digest: then it is not found, and a new one is begun.
        """
        asked = [self.config.model_dump(mode="json"), self.base, dict(self.skipped)]
        found = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
        for task in sorted(self.tasks, key=lambda task: task.id):
            found.update(json.dumps([task.id, task.body, task.solution]).encode())
        return found.hexdigest()


def new_job(
    name: str,
    priority: int,
    tasks: TaskSet,
    config: Config,
    outs: tuple[Path, ...] = (),
    base: str = "",
) -> NewJob:
    """The job for a set of tasks, the solutions that are known, and those that were skipped."""
    found = tuple(NewTask.of(task, tasks.solutions.get(task.id)) for task in tasks.tasks)
    skipped = {each.id: each.tests for each in tasks.skipped}
    return NewJob(name, priority, found, config, outs, base, skipped)


class Journal:
    """The events of a store. What `append` and `submit` return is on the disk."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` tells the time of an event, in seconds since 1970."""
        self._database, self._clock = database, clock

    def submit(self, job: NewJob) -> Record:
        """Put a job into the store; the record of its Submitted names its number."""
        *_, record = self.submitting(job)
        assert record is not None
        return record

    def submitting(self, job: NewJob) -> Generator[Record | None, None, None]:
        """As `submit`, ROWS_PER_STEP tasks in each step, of which the last gives the record.

        Until then the job is not there; `discard_unsubmitted` deletes what a death has left of it.
        """
        steps = range(0, max(1, len(job.tasks)), ROWS_PER_STEP)
        number = 0
        for begin in steps:
            with self._database.transaction() as connection:
                if begin == 0:
                    number = self._insert_job(job)
                tasks = enumerate(job.tasks[begin : begin + ROWS_PER_STEP], begin)
                connection.executemany(
                    "INSERT INTO tasks (job, position, task, body, solution, attempts)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (_task_row(number, i, task) for i, task in tasks),
                )
                last = begin == steps[-1]
                record = self._insert(number, _submitted(job)) if last else None
            yield record

    def discard_unsubmitted(self) -> None:
        """Delete jobs of which not all tasks have reached the store."""
        with self._database.transaction() as connection:
            for table, key in (("skipped", "job"), ("tasks", "job"), ("jobs", "id")):
                which = f"SELECT id FROM jobs WHERE NOT {SUBMITTED}"
                connection.execute(f"DELETE FROM {table} WHERE {key} IN ({which})")

    def append(self, job: int | None, *new: Event) -> list[Record]:
        """Write events of a job, or of the daemon, all or none; returns their records.

        Raises StoreFailed where a candidate is already there: none is ever counted twice.
        """
        with self._database.transaction():
            return [self._insert(job, event) for event in new]

    def redirect(self, job: int, outs: tuple[Path, ...]) -> None:
        """Change where the job's submission is to be written beside the home folder.

        It counts as not written there yet.
        """
        with self._database.transaction() as connection:
            given = json.dumps([str(out) for out in outs])
            change = "UPDATE jobs SET outs = ?, published = -1 WHERE id = ?"
            connection.execute(change, (given, job))

    def last(self) -> int:
        """The number of the last record; 0 if there is none."""
        (row,) = self._database.read("SELECT coalesce(max(seq), 0) FROM events")
        return int(row[0])

    def state(self, snapshots: Snapshots | None = None) -> State:
        """Everything that happened, folded on top of the snapshots that are there."""
        return Fold(self._database, snapshots).all()

    def records(self, after: int = 0, job: int | None = None) -> Iterator[Record]:
        """The records after number `after`; of a job, with the daemon's since it is there."""
        query = "SELECT seq, at, job, kind, body FROM events WHERE seq > :after"
        if job is not None:
            # Not one query with OR, for which SQLite would sort all that is left each time.
            submitted = "(SELECT min(seq) FROM events WHERE job = :job)"
            daemons = f"{query} AND job IS NULL AND seq > {submitted}"
            query = f"{query} AND job = :job UNION ALL {daemons}"
        for seq, at, owner, name, body in self._database.read(
            f"{query} ORDER BY seq", {"after": after, "job": job}
        ):
            yield Record(seq, at, owner, events.load(name, body))

    def _insert_job(self, job: NewJob) -> int:
        number = self._database.connection.execute(
            "INSERT INTO jobs (name, config, outs, digest, base) VALUES (?, ?, ?, ?, ?)",
            (
                job.name,
                job.config.model_dump_json(),
                json.dumps([str(out) for out in job.outs]),
                job.digest,
                job.base,
            ),
        ).lastrowid
        assert number is not None
        self._database.connection.executemany(
            "INSERT INTO skipped (job, task, tests) VALUES (?, ?, ?)",
            ((number, task, tests) for task, tests in job.skipped.items()),
        )
        return number

    def _insert(self, job: int | None, event: Event) -> Record:
        at = self._clock()
        seq = self._database.connection.execute(
            "INSERT INTO events (at, job, kind, body) VALUES (?, ?, ?, ?)",
            (at, job, events.kind(event), events.dump(event)),
        ).lastrowid
        assert seq is not None
        match event:
            case events.Sampled(task=task, candidate=candidate):
                self._database.connection.execute(
                    "INSERT INTO candidates (job, task, test, sample, seq) VALUES (?, ?, ?, ?, ?)",
                    (job, task, candidate.test, candidate.sample, seq),
                )
            case events.Forgotten():
                self._database.connection.execute("DELETE FROM jobs WHERE id = ?", (job,))
            case events.Answered(task=task, verdict=verdict):
                self._database.connection.execute(
                    "UPDATE tasks SET attempts = ?, answered = ? WHERE job = ? AND task = ?",
                    (json.dumps(submission.entry(verdict.attempts)), seq, job, task),
                )
        return Record(seq, at, job, event)


def _task_row(job: int, position: int, task: NewTask) -> tuple[Any, ...]:
    blank = submission.blank_text(task.tests)
    return job, position, task.id, task.body, task.solution, blank


def _submitted(job: NewJob) -> events.Submitted:
    budget = job.config.budget
    usable = budget.seconds - budget.reserve if budget.seconds is not None else None
    names = tuple(task.id for task in job.tasks)
    return events.Submitted(job.name, job.priority, names, usable)
