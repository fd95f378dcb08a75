"""The store: one SQLite file under the home folder, in which the events are the truth.

A state is the fold of its events; the other tables hold what is too large for that (tasks) or is
looked up by a key (candidates, attempts), written in the same transaction as their event. What
`append` and `submit` return is on the disk. One process writes, any number read. Knows nothing of
who asks.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from arcd.arc import submission
from arcd.arc.grids import Grid, to_grid
from arcd.arc.selection import Candidate, Verdict
from arcd.arc.tasks import Task, TaskSet, from_challenges, to_challenge, to_challenges
from arcd.config import Config
from arcd.errors import StoreFailed
from arcd.jobs import events
from arcd.jobs.events import Event, Record
from arcd.jobs.state import State

VERSION = 2
"""Of the schema, in SQLite's user_version."""

_RATES = """\
CREATE TABLE rates (
    platform TEXT PRIMARY KEY,      -- device, base and what else decides how fast it is
    measured TEXT NOT NULL
) STRICT;
"""

SCHEMA = f"""
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,               -- seconds since 1970; order is that of seq
    job INTEGER,                    -- NULL: of the daemon
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job, seq);
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    config TEXT NOT NULL,
    outs TEXT NOT NULL,
    digest TEXT NOT NULL,           -- of what is asked for, without its name and priority
    base TEXT NOT NULL DEFAULT ''   -- the base model it was given to, if that is known
) STRICT;
CREATE TABLE tasks (
    job INTEGER NOT NULL REFERENCES jobs,
    position INTEGER NOT NULL,
    task TEXT NOT NULL,
    body TEXT NOT NULL,             -- as in a challenges file
    solution TEXT,                  -- as in a solutions file
    attempts TEXT NOT NULL,         -- as in a submission; blank until there is an answer
    answered INTEGER REFERENCES events,
    PRIMARY KEY (job, task)
) STRICT;
CREATE TABLE candidates (
    job INTEGER NOT NULL,
    task TEXT NOT NULL,
    test INTEGER NOT NULL,
    sample INTEGER NOT NULL,        -- counted through all retries
    seq INTEGER NOT NULL REFERENCES events,
    PRIMARY KEY (job, task, test, sample)
) STRICT, WITHOUT ROWID;
CREATE TABLE serials (next INTEGER NOT NULL) STRICT;
INSERT INTO serials VALUES (0);
{_RATES}"""

MIGRATIONS = {1: f"ALTER TABLE jobs ADD COLUMN base TEXT NOT NULL DEFAULT '';\n{_RATES}"}
"""What makes a store of one version one of the next, by the version it starts from."""

READABLE = range(1, VERSION + 1)
"""Versions whose jobs can be read as they are: what was added since is for the daemon alone."""

Mode = Literal["write", "read"]


@dataclass(frozen=True)
class NewJob:
    """What is to be done: tasks, how, how urgently, and where the submission goes as well."""

    name: str
    priority: int
    tasks: TaskSet
    config: Config
    outs: tuple[Path, ...] = ()
    base: str = ""
    """The base model it was given to, so that another one's answers are not taken for its own."""

    @property
    def digest(self) -> str:
        """The same for two jobs that ask for the same, whatever they are called."""
        asked = [
            to_challenges(self.tasks),
            dict(self.tasks.solutions),
            self.config.model_dump(mode="json"),
            [str(out) for out in self.outs],
            self.base,
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def path_in(home: Path) -> Path:
    """Where a home keeps its store."""
    return home / "arcd.db"


class Store:
    """An open store. Raises StoreFailed, naming the file, whatever SQLite or system object to."""

    def __init__(
        self, home: Path, mode: Mode = "write", *, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the store of `home`; for writing it is made if it is not there."""
        self.path = path_in(home)
        self._clock = clock
        if mode == "read" and not self.path.is_file():
            raise StoreFailed(f"{home}: no jobs here")
        with self._explained():
            self._connection = _connect(self.path, mode)
            self._check_version(mode)

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        with self._explained():
            self._connection.close()

    def submit(self, job: NewJob) -> Record:
        """Put a job into the store; the record of its Submitted names its number."""
        names = tuple(task.id for task in job.tasks.tasks)
        with self._transaction() as connection:
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
            budget = job.config.budget
            usable = budget.seconds - budget.reserve if budget.seconds is not None else None
            return self._insert(number, events.Submitted(job.name, job.priority, names, usable))

    def append(self, job: int | None, *new: Event) -> list[Record]:
        """Write events of a job, or of the daemon, all or none; returns their records.

        Raises StoreFailed where a candidate is already there: none is ever counted twice.
        """
        with self._transaction():
            return [self._insert(job, event) for event in new]

    def serial(self) -> int:
        """A number for an adapter; none is given out twice, whatever dies in between."""
        with self._transaction() as connection:
            row = connection.execute("UPDATE serials SET next = next + 1 RETURNING next")
            return int(row.fetchone()[0]) - 1

    def measured(self, platform: str) -> Any:
        """What was measured of a platform, as a JSON value; None if nothing was."""
        rows = self._read("SELECT measured FROM rates WHERE platform = ?", (platform,))
        return next((json.loads(text) for (text,) in rows), None)

    def keep_measured(self, platform: str, measured: Any) -> None:
        """Remember what was measured of a platform, a JSON value."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO rates (platform, measured) VALUES (?, ?)",
                (platform, json.dumps(measured)),
            )

    def last(self) -> int:
        """The number of the last record; 0 if there is none."""
        (row,) = self._read("SELECT coalesce(max(seq), 0) FROM events")
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
        for seq, at, owner, name, body in self._read(
            f"{query} ORDER BY seq", {"after": after, "job": job}
        ):
            yield Record(seq, at, owner, events.load(name, body))

    def has(self, job: int) -> bool:
        """Whether there is a job of this number."""
        return bool(list(self._read("SELECT 1 FROM jobs WHERE id = ?", (job,))))

    def like(self, job: NewJob) -> list[int]:
        """The numbers of the jobs that ask for the same, oldest first."""
        rows = self._read("SELECT id FROM jobs WHERE digest = ? ORDER BY id", (job.digest,))
        return [number for (number,) in rows]

    def config(self, job: int) -> Config:
        """The job's configuration as resolved when it was submitted."""
        (row,) = self._read("SELECT config FROM jobs WHERE id = ?", (job,))
        return Config.model_validate_json(row[0])

    def outs(self, job: int) -> tuple[Path, ...]:
        """Where the job's submission is to be written beside the home folder."""
        (row,) = self._read("SELECT outs FROM jobs WHERE id = ?", (job,))
        return tuple(Path(out) for out in json.loads(row[0]))

    def bases(self) -> dict[int, str]:
        """The base model that each job was given to, where that is known."""
        return dict(self._read("SELECT id, base FROM jobs WHERE base != ''"))

    def tasks(self, job: int) -> TaskSet:
        """The job's tasks with the solutions that are known."""
        (name,) = next(self._read("SELECT name FROM jobs WHERE id = ?", (job,)))
        rows = list(
            self._read(
                "SELECT task, body, solution FROM tasks WHERE job = ? ORDER BY position", (job,)
            )
        )
        found = from_challenges(name, {task: json.loads(body) for task, body, _ in rows})
        solutions = {task: _grids(json.loads(text)) for task, _, text in rows if text}
        return TaskSet(name, found.tasks, solutions)

    def task(self, job: int, name: str) -> Task:
        """One task of a job."""
        (row,) = self._read("SELECT body FROM tasks WHERE job = ? AND task = ?", (job, name))
        (task,) = from_challenges(name, {name: json.loads(row[0])}).tasks
        return task

    def candidates(self, job: int, task: str | None = None) -> Iterator[Candidate]:
        """The samples of a job, or of one of its tasks, in the order in which they finished."""
        which = "" if task is None else "AND c.task = :task"
        for (body,) in self._read(
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
        for (body,) in self._read(
            "SELECT e.body FROM tasks t JOIN events e ON e.seq = t.answered"
            f" WHERE t.job = :job {which} ORDER BY t.position",
            {"job": job, "task": task},
        ):
            answered = events.load("Answered", body)
            assert isinstance(answered, events.Answered)
            yield answered.verdict

    def submission(self, job: int) -> str:
        """The job's submission as a JSON text: every task and every test, at any time."""
        rows = self._read(
            "SELECT task, attempts FROM tasks WHERE job = ? ORDER BY position", (job,)
        )
        return "{" + ", ".join(f"{json.dumps(task)}: {attempts}" for task, attempts in rows) + "}"

    def _insert(self, job: int | None, event: Event) -> Record:
        at = self._clock()
        seq = self._connection.execute(
            "INSERT INTO events (at, job, kind, body) VALUES (?, ?, ?, ?)",
            (at, job, events.kind(event), events.dump(event)),
        ).lastrowid
        assert seq is not None
        match event:
            case events.Sampled(task=task, candidate=candidate):
                self._connection.execute(
                    "INSERT INTO candidates (job, task, test, sample, seq) VALUES (?, ?, ?, ?, ?)",
                    (job, task, candidate.test, candidate.sample, seq),
                )
            case events.Answered(task=task, verdict=verdict):
                self._connection.execute(
                    "UPDATE tasks SET attempts = ?, answered = ? WHERE job = ? AND task = ?",
                    (json.dumps(submission.entry(verdict.attempts)), seq, job, task),
                )
        return Record(seq, at, job, event)

    def _read(self, query: str, values: Any = ()) -> Iterator[tuple[Any, ...]]:
        with self._explained():
            yield from self._connection.execute(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk when the block is over."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.rollback()
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreFailed(f"{self.path}: {error}") from error
        except OSError as error:
            raise StoreFailed(f"{self.path}: {error.strerror or error}") from error

    def _check_version(self, mode: Mode) -> None:
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if mode == "write" and not found and not tables:
            self._connection.executescript(
                f"BEGIN;\n{SCHEMA}\nPRAGMA user_version = {VERSION};\nCOMMIT;"
            )
            return
        if mode == "read" and not found and not tables:
            # Just being made.
            self._connection.close()
            raise StoreFailed(f"{self.path.parent}: no jobs here")
        while found in MIGRATIONS and mode == "write":
            step = f"BEGIN;\n{MIGRATIONS[found]}\nPRAGMA user_version = {found + 1};\nCOMMIT;"
            self._connection.executescript(step)
            found += 1
        if found != VERSION and not (mode == "read" and found in READABLE):
            self._connection.close()
            raise StoreFailed(
                f"{self.path}: a store of version {found}, this arcd reads version {VERSION}: "
                "use the arcd that made it, or another --home"
            )


def _connect(path: Path, mode: Mode) -> sqlite3.Connection:
    if mode == "read":
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    # Nobody else's: made before SQLite would make it with the user's umask.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, too
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _task_row(job: int, position: int, task: Task, tasks: TaskSet) -> tuple[Any, ...]:
    body = to_challenge(task)
    solution = tasks.solutions.get(task.id)
    blank = _blank(len(task.tests))
    known = json.dumps(solution) if solution else None
    return job, position, task.id, json.dumps(body), known, blank


@cache
def _blank(tests: int) -> str:
    return json.dumps(submission.entry([()] * tests))


def _grids(values: Sequence[Any]) -> tuple[Grid, ...]:
    return tuple(to_grid(value) for value in values)
