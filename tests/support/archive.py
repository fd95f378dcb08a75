"""What a home's store says, read afresh each time: by a witness who trusts no daemon's memory.

Knows nothing of what it should say.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from arcd.errors import StoreFailed
from arcd.jobs.job_table import NEVER
from arcd.jobs.state import State
from arcd.jobs.store import Store, path_in


class Row(NamedTuple):
    """A record as it is stored."""

    job: int | None
    kind: str
    body: str

    @property
    def fields(self) -> Any:
        """What the event holds."""
        return json.loads(self.body)


class Archive:
    """The store of a home, which may not be there yet."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def rows(self) -> dict[int, Row]:
        """All records, by number."""
        path = path_in(self._home)
        if not path.exists():
            return {}
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            try:
                found = connection.execute("SELECT seq, job, kind, body FROM events").fetchall()
            except sqlite3.OperationalError:
                return {}  # a death while it was being made
        return {seq: Row(*fields) for seq, *fields in found}

    def last(self) -> int:
        """The number of the last record; 0 if there is none."""
        return max(self.rows(), default=0)

    def state(self) -> State:
        """The fold of all records."""
        for store in self.stores():
            return store.journal.state()
        return State()

    def stores(self) -> Iterator[Store]:
        """The store, if there is one."""
        try:
            store = Store(self._home, "read")
        except StoreFailed:
            return
        with closing(store):
            yield store

    def outs(self, jobs: "set[int]") -> dict[int, tuple[Path, ...]]:
        """The outs of those of these jobs that are there."""
        return {
            job: store.jobs.outs(job)
            for store in self.stores()
            for job in jobs
            if store.jobs.has(job)
        }

    def behind(self) -> dict[int, tuple[Path, ...]]:
        """The jobs whose outs lack an answer, with these, by the store's own account."""
        found = {}
        for store in self.stores():
            published = store.jobs.published()
            for job in store.journal.state().jobs.values():
                has = published[job.id].outs if job.id in published else NEVER
                if has < job.changed:
                    found[job.id] = store.jobs.outs(job.id)
        return found
