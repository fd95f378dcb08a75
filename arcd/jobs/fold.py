"""The fold: the state of all jobs, read from the records that are in no snapshot yet.

Of a sample the state needs the task's name alone, so its grid is not read: most records are
samples. Knows nothing of who needs the state.
"""

import json
from collections.abc import Iterator
from typing import Any

from arcd.jobs import events
from arcd.jobs.database import Database
from arcd.jobs.events import Record
from arcd.jobs.snapshots import Snapshot, Snapshots
from arcd.jobs.state import State


class Fold:
    """The fold of a store's records, on top of the snapshots that are there."""

    def __init__(self, database: Database, snapshots: Snapshots | None = None) -> None:
        self._database, self._snapshots = database, snapshots
        self.state = State()
        self.unkept: dict[int, int] = {}
        """By job, how many of its records are in no snapshot."""

    def all(self) -> State:
        """The state of daemon and jobs. Trainings under way are in it if no snapshot is newer."""
        self.daemon()
        for (job,) in list(self._database.read("SELECT id FROM jobs ORDER BY id")):
            self.job(job)
        (row,) = self._database.read("SELECT coalesce(max(seq), 0) FROM events")
        self.state.seq = int(row[0])
        return self.state

    def daemon(self) -> None:
        """Fold what happened to daemons."""
        query = "SELECT seq, at, kind, body FROM events WHERE job IS NULL ORDER BY seq"
        for seq, at, kind, body in self._database.read(query):
            self.state.apply(Record(seq, at, None, events.load(kind, body)))

    def job(self, job: int) -> tuple[int, float]:
        """Fold what happened to a job; number and time of its last record."""
        last = (0, 0.0)
        if (snapshot := self._snapshot(job)) is not None:
            self.state.jobs[job] = snapshot.job
            last = (snapshot.seq, snapshot.at)
        self.unkept[job] = 0
        for seq, at, kind, body in self._records(job, last[0]):
            last = (seq, at)
            self.unkept[job] += 1
            if kind == "Sampled":
                self.state.count_sample(job, _task_of(body))
            else:
                self.state.apply(Record(seq, at, job, events.load(kind, body)))
        return last

    def _snapshot(self, job: int) -> Snapshot | None:
        found = self._snapshots.read(job) if self._snapshots else None
        if found is None:
            return None
        query = "SELECT 1 FROM events WHERE seq = ? AND job = ? AND at = ?"
        same = self._database.read(query, (found.seq, job, found.at))
        return found if next(same, None) else None

    def _records(self, job: int, after: int) -> Iterator[tuple[Any, ...]]:
        """A job's records, without trainings that a daemon's start has ended."""
        daemon = "(SELECT max(seq) FROM events WHERE job IS NULL)"
        return self._database.read(
            "SELECT seq, at, kind, body FROM events WHERE job = :job AND seq > :after"
            f" AND (kind != 'Training' OR seq > coalesce({daemon}, 0)) ORDER BY seq",
            {"job": job, "after": after},
        )


_TASK = '{"task": '
"""The beginning of a sample's body, as `events.dump` writes it."""

_DECODER = json.JSONDecoder()


def _task_of(body: str) -> str:
    """The task of a Sampled. Nothing behind it is read."""
    assert body.startswith(_TASK), "the fields of an event are stored in their order"
    return str(_DECODER.raw_decode(body, len(_TASK))[0])
