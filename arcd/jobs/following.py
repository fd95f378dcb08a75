"""Following: what happened to a job, as JSON texts in batches, from any record on.

    Feed    the last records from memory, older ones from the store, read in a thread
    Brief   which steps and samples of the past a screen needs

A reading opens a connection of its own, so that whoever follows slowly keeps no old version of the
store alive, and no more than one reads at a time, so that twenty of them leave the interpreter to
the event loop. Knows nothing of who follows.
"""

import json
from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Self

import anyio
from anyio import to_thread

from arcd.jobs import events
from arcd.jobs.database import Database
from arcd.jobs.events import Record
from arcd.jobs.job_table import JobTable

RECORDS_PER_READ = 500
"""Records that are read at once at most."""

BYTES_PER_READ = 1 << 20
"""Characters of the records that are read at once, if there are several: an answer can have
100 000."""

RECORDS_IN_MEMORY = 1000
"""The last records of all jobs, some MB."""

COLUMNS = "seq, at, job, kind, body"

Row = tuple[int, float, int | None, str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """A record: its number, and what `Record.to_json` gives, as a text."""

    seq: int
    text: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """The records that are wanted, up to number `end`."""

    lines: list[Line]
    end: int


@dataclass(frozen=True, slots=True)
class Brief:
    """The past of a job up to record number `until`, with a few of its steps and samples.

    `kept` are the numbers of these: the first sample of a task in each round, which tells when
    sampling began, and all since the oldest task in flight was started. What is left out is most of
    the store. Of trainings that were ended early nothing is left but the start of their task.
    """

    until: int
    kept: Sequence[int]

    @classmethod
    def of(cls, database: Database, job: int, until: int, in_flight: Collection[str]) -> Self:
        """The brief past of a job with these tasks in flight."""
        recent = _oldest_start(database, job, until, set(in_flight))
        samples = JobTable(database).config(job).sample.samples
        found = database.read(
            "SELECT min(seq) FROM candidates WHERE job = :job GROUP BY task, sample / :samples"
            " UNION SELECT seq FROM candidates WHERE job = :job AND seq > :recent"
            " UNION SELECT seq FROM events WHERE job = :job AND seq > :recent AND kind = 'Training'"
            " ORDER BY 1",
            {"job": job, "recent": recent, "samples": samples},
        )
        return cls(until, [seq for (seq,) in found])


def _oldest_start(database: Database, job: int, until: int, in_flight: set[str]) -> int:
    """The number of the oldest of the records with which tasks in flight were started."""
    oldest = until
    if in_flight:
        for seq, body in database.read(
            "SELECT seq, body FROM events WHERE job = ? AND seq <= ? AND kind = 'Started'"
            " ORDER BY seq DESC",
            (job, until),
        ):
            in_flight.discard(json.loads(body)["task"])
            oldest = seq
            if not in_flight:
                break
    return oldest


class Feed:
    """The records of one store, for all who follow its jobs."""

    def __init__(self, path: Path, seq: int) -> None:
        """`path` is the store's file, `seq` the number of its last record."""
        self._path = path
        self._tail: deque[Record] = deque(maxlen=RECORDS_IN_MEMORY)
        self._before = seq
        """The number of the last record that is not in the tail."""
        self._reading = anyio.CapacityLimiter(1)

    def hear(self, record: Record) -> None:
        """Take in a record that is in the store."""
        if len(self._tail) == self._tail.maxlen:
            self._before = self._tail[0].seq
        self._tail.append(record)

    async def brief(self, job: int, until: int, in_flight: Collection[str]) -> Brief:
        """The brief past of a job."""

        def read() -> Brief:
            with closing(Database(self._path, "read")) as database:
                return Brief.of(database, job, until, in_flight)

        return await to_thread.run_sync(read, limiter=self._reading)

    async def read(self, job: int, after: int, until: int, brief: Brief | None) -> Stretch:
        """A batch of a job's records between two numbers, or of these in its brief past."""
        if after >= self._before:
            return self._from_tail(job, after, until)
        if brief is not None and after < brief.until:
            until = brief.until
        else:
            brief = None

        def read() -> Stretch:
            with closing(Database(self._path, "read")) as database:
                return _read(database, job, after, until, brief)

        return await to_thread.run_sync(read, limiter=self._reading)

    def _from_tail(self, job: int, after: int, until: int) -> Stretch:
        found: list[Record] = []
        for record in takewhile(lambda record: record.seq > after, reversed(self._tail)):
            if record.job == job or record.job is None:
                found.append(record)
            if record.job == job and isinstance(record.event, events.Submitted):
                break  # what happened to daemons before does not belong to the job
        return Stretch([_line(record) for record in reversed(found)], until)


def _line(record: Record) -> Line:
    name, fields = events.kind(record.event), events.dump(record.event)
    return Line(record.seq, events.text_of(record.seq, record.at, record.job, name, fields))


def _read(database: Database, job: int, after: int, until: int, brief: Brief | None) -> Stretch:
    rows: Iterable[Row] = _rows(database, job, after, until, light=brief is not None)
    if brief is not None:
        light = list(rows)
        if len(light) == RECORDS_PER_READ:
            until = light[-1][0]
        first = bisect_right(brief.kept, after)
        kept = brief.kept[first : bisect_right(brief.kept, until)][:RECORDS_PER_READ]
        if len(kept) == RECORDS_PER_READ:
            until = kept[-1]
        near = [row for row in light if row[0] <= until]
        rows = sorted([*near, *_numbered(database, kept)])
    return _stretch(rows, until)


def _stretch(rows: Iterable[Row], until: int) -> Stretch:
    """As many of the rows as are read at once."""
    lines: list[Line] = []
    size = 0
    for row in rows:
        lines.append(Line(row[0], events.text_of(*row)))
        size += len(lines[-1].text)
        if len(lines) == RECORDS_PER_READ or size >= BYTES_PER_READ:
            return Stretch(lines, row[0])
    return Stretch(lines, until)


def _rows(database: Database, job: int, after: int, until: int, *, light: bool) -> Iterator[Row]:
    """The first records of a job between two numbers, with the daemons' since it is there.

    Light ones are all but steps and samples.
    """
    between = f"SELECT {COLUMNS} FROM events WHERE seq > :after AND seq <= :until"
    submitted = "(SELECT min(seq) FROM events WHERE job = :job)"
    kinds = "AND kind NOT IN ('Training', 'Sampled')" if light else ""
    # Not one query with OR, for which SQLite would sort all that is left each time.
    query = (
        f"{between} AND job = :job {kinds}"
        f" UNION ALL {between} AND job IS NULL AND seq > {submitted}"
        " ORDER BY seq LIMIT :most"
    )
    values = {"job": job, "after": after, "until": until, "most": RECORDS_PER_READ}
    yield from database.read(query, values)


def _numbered(database: Database, numbers: Sequence[int]) -> Iterator[Row]:
    """The records with these numbers."""
    places = ", ".join("?" * len(numbers))
    query = f"SELECT {COLUMNS} FROM events WHERE seq IN ({places})"
    yield from database.read(query, tuple(numbers))
