"""What the store knows of each job: its tasks, its configuration, its samples and its answers.

Reads only. Knows nothing of who asks.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arcd import config as configuration
from arcd.arc.grids import Grid, to_grid
from arcd.arc.selection import Candidate, Verdict
from arcd.arc.tasks import Task, TaskSet, from_challenges
from arcd.config import Config
from arcd.jobs import events
from arcd.jobs.database import Database
from arcd.jobs.journal import NewJob


class JobTable:
    """The jobs of a store, looked up by their numbers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def has(self, job: int) -> bool:
        """Whether there is a job of this number."""
        return bool(list(self._database.read("SELECT 1 FROM jobs WHERE id = ?", (job,))))

    def like(self, job: NewJob) -> list[int]:
        """The numbers of the jobs that ask for the same, oldest first."""
        rows = self._database.read(
            "SELECT id FROM jobs WHERE digest = ? ORDER BY id", (job.digest,)
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
        (row,) = self._database.read(
            "SELECT body FROM tasks WHERE job = ? AND task = ?", (job, name)
        )
        (task,) = from_challenges(name, {name: json.loads(row[0])}).tasks
        return task

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
        """The job's submission as a JSON text: every task and every test, at any time."""
        rows = self._database.read(
            "SELECT task, attempts FROM tasks WHERE job = ? ORDER BY position", (job,)
        )
        return "{" + ", ".join(f"{json.dumps(task)}: {attempts}" for task, attempts in rows) + "}"


def _grids(values: Sequence[Any]) -> tuple[Grid, ...]:
    return tuple(to_grid(value) for value in values)
