"""The journal: the events, written in order and read again; the truth of the store.

A submitted job, a candidate, an answer also have a row in a table of their own, written in the same
transaction as the event. Knows nothing of who emits events.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcd.arc import submission
from arcd.arc.tasks import Task, TaskSet, to_challenge, to_challenges
from arcd.config import Config
from arcd.jobs import events
from arcd.jobs.database import Database
from arcd.jobs.events import Event, Record
from arcd.jobs.state import State


@dataclass(frozen=True)
class NewJob:
    """A job to be submitted; `outs` are further paths of its submission file."""

    name: str
    priority: int
    tasks: TaskSet
    config: Config
    outs: tuple[Path, ...] = ()
    base: str = ""
    """The base model it is for: the answers of two bases must not be mixed."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Ids of its file whose tasks cannot be used: blank in the submission, with so many tests."""

    @property
    def digest(self) -> str:
        """A hash that is equal for jobs that ask for the same answers.

        Name, priority and `outs` do not count. A budget does: it is counted from the job's
        submission and decides how its tasks are done, so another budget is another job. A job of
        another arcd may have another digest: then it is not found, and a new one is begun.
        """
        asked = [
            to_challenges(self.tasks),
            dict(self.tasks.solutions),
            self.config.model_dump(mode="json"),
            self.base,
            dict(self.skipped),
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Journal:
    """The events of a store. What `append` and `submit` return is on the disk."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` tells the time of an event, in seconds since 1970."""
        self._database, self._clock = database, clock

    def submit(self, job: NewJob) -> Record:
        """Put a job into the store; the record of its Submitted names its number."""
        names = tuple(task.id for task in job.tasks.tasks)
        with self._database.transaction() as connection:
            config = job.config.model_dump_json()
            outs = json.dumps([str(out) for out in job.outs])
            number = connection.execute(
                "INSERT INTO jobs (name, config, outs, digest, base) VALUES (?, ?, ?, ?, ?)",
                (job.name, config, outs, job.digest, job.base),
            ).lastrowid
            assert number is not None
            rows = (_task_row(number, i, t, job.tasks) for i, t in enumerate(job.tasks.tasks))
            connection.executemany(
                "INSERT INTO tasks (job, position, task, body, solution, attempts)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.executemany(
                "INSERT INTO skipped (job, task, tests) VALUES (?, ?, ?)",
                ((number, task, tests) for task, tests in job.skipped.items()),
            )
            budget = job.config.budget
            usable = budget.seconds - budget.reserve if budget.seconds is not None else None
            return self._insert(number, events.Submitted(job.name, job.priority, names, usable))

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

    def state(self) -> State:
        """Everything that happened, folded."""
        state = State()
        for record in self.records():
            state.apply(record)
        return state

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
            case events.Answered(task=task, verdict=verdict):
                self._database.connection.execute(
                    "UPDATE tasks SET attempts = ?, answered = ? WHERE job = ? AND task = ?",
                    (json.dumps(submission.entry(verdict.attempts)), seq, job, task),
                )
        return Record(seq, at, job, event)


def _task_row(job: int, position: int, task: Task, tasks: TaskSet) -> tuple[Any, ...]:
    body = to_challenge(task)
    solution = tasks.solutions.get(task.id)
    blank = submission.blank_text(len(task.tests))
    known = json.dumps(solution) if solution else None
    return job, position, task.id, json.dumps(body), known, blank
