"""What the store knows of each job: its tasks, its configuration, its samples and its answers.

Writes nothing but how far a job is published. Knows nothing of who asks.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcd import config as configuration
from arcd.arc.grids import Grid, to_grid
from arcd.arc.selection import Candidate, Verdict
from arcd.arc.submission import blank_text
from arcd.arc.tasks import Task, TaskSet, from_challenges
from arcd.config import Config
from arcd.jobs import events
from arcd.jobs.database import Database
from arcd.jobs.journal import SUBMITTED, NewJob

NEVER = -1
"""Stands for the last answer in a file that was not written yet: less than any number."""


@dataclass(frozen=True, slots=True)
class Published:
    """How far a job's files are: the number of the last Answered record in each.

    0: the file is blank. NEVER: it was not written yet.
    """

    own: int = NEVER
    """Of the file in the home folder."""
    outs: int = NEVER
    """Of all further files together: none of them is older."""


class JobTable:
    """The jobs of a store, looked up by their numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def has(self, job: int) -> bool:
        """Whether there is a job of this number, which may be any."""
        if not 0 < job < 2**63:  # SQLite's integers end there
            return False
        query = f"SELECT 1 FROM jobs WHERE id = ? AND {SUBMITTED}"
        return bool(list(self._database.read(query, (job,))))

    def is_forgotten(self, job: int) -> bool:
        """Whether there was a job of this number, of which nothing is left but that."""
        query = "SELECT 1 FROM events WHERE job = ? AND kind = 'Forgotten'"
        known = job < 2**63 and not self.has(job)
        return known and bool(list(self._database.read(query, (job,))))

    def count(self) -> int:
        """How many jobs there are."""
        (row,) = self._database.read(f"SELECT count(*) FROM jobs WHERE {SUBMITTED}")
        return int(row[0])

    def like(self, job: NewJob) -> list[int]:
        """The numbers of the jobs that ask for the same, oldest first."""
        rows = self._database.read(
            f"SELECT id FROM jobs WHERE digest = ? AND {SUBMITTED} ORDER BY id", (job.digest,)
        )
        return [number for (number,) in rows]

    def config(self, job: int) -> Config:
        """The job's configuration as resolved when it was submitted."""
        (row,) = self._database.read("SELECT config FROM jobs WHERE id = ?", (job,))
        return configuration.stored(row[0])

    def outs(self, job: int) -> tuple[Path, ...]:
        """Where the job's submission is to be written beside the home folder."""
        (row,) = self._database.read("SELECT outs FROM jobs WHERE id = ?", (job,))
        return tuple(Path(out) for out in json.loads(row[0]))

    def bases(self) -> dict[int, str]:
        """The base model that each job was given to, where that is known."""
        return dict(self._database.read("SELECT id, base FROM jobs WHERE base != ''"))

    def tasks(self, job: int) -> TaskSet:
        """The job's tasks with the solutions that are known."""
        (name,) = next(self._database.read("SELECT name FROM jobs WHERE id = ?", (job,)))
        rows = list(
            self._database.read(
                "SELECT task, body, solution FROM tasks WHERE job = ? ORDER BY position", (job,)
            )
        )
        found = from_challenges(name, {task: json.loads(body) for task, body, _ in rows})
        solutions = {task: _grids(json.loads(text)) for task, _, text in rows if text}
        return TaskSet(name, found.tasks, solutions)

    def task(self, job: int, name: str) -> Task:
        """One task of a job."""
        found = self.solved(job, name)
        assert found is not None
        return found[0]

    def solved(self, job: int, name: str) -> tuple[Task, tuple[Grid, ...]] | None:
        """One task of a job, and its solution, empty where it is not known; None: not in it."""
        query = "SELECT body, solution FROM tasks WHERE job = ? AND task = ?"
        row = next(self._database.read(query, (job, name)), None)
        if row is None:
            return None
        (task,) = from_challenges(name, {name: json.loads(row[0])}).tasks
        return task, _grids(json.loads(row[1])) if row[1] else ()

    def names(self, job: int) -> list[str]:
        """The ids of a job's tasks, in the order of their file."""
        query = "SELECT task FROM tasks WHERE job = ? ORDER BY position"
        return [task for (task,) in self._database.read(query, (job,))]

    def candidates(self, job: int, task: str | None = None) -> Iterator[Candidate]:
        """The samples of a job, or of one of its tasks, in the order in which they finished."""
        which = "" if task is None else "AND c.task = :task"
        for (body,) in self._database.read(
            "SELECT e.body FROM candidates c JOIN events e ON e.seq = c.seq"
            f" WHERE c.job = :job {which} ORDER BY c.seq",
            {"job": job, "task": task},
        ):
            sampled = events.load("Sampled", body)
            assert isinstance(sampled, events.Sampled)
            yield sampled.candidate

    def samples(self, job: int) -> dict[str, list[list[Grid | None]]]:
        """The grids of all samples by task and test; None for each invalid one."""
        found: dict[str, list[list[Grid | None]]] = {
            task.id: [[] for _ in task.tests] for task in self.tasks(job).tasks
        }
        for candidate in self.candidates(job):
            found[candidate.task][candidate.test].append(candidate.grid)
        return found

    def verdicts(self, job: int, task: str | None = None) -> Iterator[Verdict]:
        """The last verdicts on a job's tasks, or on one of them, in the order of its file."""
        which = "" if task is None else "AND t.task = :task"
        for (body,) in self._database.read(
            "SELECT e.body FROM tasks t JOIN events e ON e.seq = t.answered"
            f" WHERE t.job = :job {which} ORDER BY t.position",
            {"job": job, "task": task},
        ):
            answered = events.load("Answered", body)
            assert isinstance(answered, events.Answered)
            yield answered.verdict

    def submission(self, job: int) -> str:
        """The job's submission as a JSON text: every id of its file and every test, at any time."""
        return self.submission_at(job)[0]

    def submission_at(self, job: int) -> tuple[str, int]:
        """The submission, and the number of the last Answered record in it; 0 if it is blank."""
        query = "SELECT position, task, attempts, answered FROM tasks WHERE job = ?"
        # Sorted here: SQLite would move all the texts.
        rows = sorted(self._database.read(query, (job,)))
        found = [(task, attempts) for _, task, attempts, _ in rows]
        found += [(task, blank_text(tests)) for task, tests in self.skipped(job).items()]
        entries = (f"{json.dumps(task)}: {attempts}" for task, attempts in found)
        return "{" + ", ".join(entries) + "}", max((seq or 0 for *_, seq in rows), default=0)

    def solutions(self, job: int) -> str:
        """The solutions of the job's tasks that are known, as a JSON text in Kaggle's format."""
        known = self._database.read(
            "SELECT task, solution FROM tasks WHERE job = ? AND solution IS NOT NULL"
            " ORDER BY position",
            (job,),
        )
        return "{" + ", ".join(f"{json.dumps(task)}: {text}" for task, text in known) + "}"

    def skipped(self, job: int) -> dict[str, int]:
        """The ids of the job's file whose tasks cannot be used, with the number of their tests."""
        table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'skipped'"
        if not list(self._database.read(table)):
            return {}  # a store of an older version, which is only read
        query = "SELECT task, tests FROM skipped WHERE job = ? ORDER BY task"
        return dict(self._database.read(query, (job,)))

    def published(self) -> dict[int, Published]:
        """How far the files of each job are."""
        rows = self._database.read("SELECT id, kept, published FROM jobs")
        return {job: Published(own, outs) for job, own, outs in rows}

    def published_of(self, job: int) -> Published:
        """How far the files of one job are."""
        (row,) = self._database.read("SELECT kept, published FROM jobs WHERE id = ?", (job,))
        return Published(*row)

    def keep_published(self, job: int, published: Published) -> None:
        """Remember how far a job's files are; called when they are on the disk."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE jobs SET kept = ?, published = ? WHERE id = ?",
                (published.own, published.outs, job),
            )


def _grids(values: Sequence[Any]) -> tuple[Grid, ...]:
    return tuple(to_grid(value) for value in values)
