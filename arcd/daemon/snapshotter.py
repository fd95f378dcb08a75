"""The snapshotter: keeps a snapshot of each job, so that the next daemon has little to fold.

One thread writes, from the store alone, when many records are in no snapshot yet. Knows nothing of
what a snapshot consists of.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import closing

from anyio import to_thread

from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.fold import Fold
from arcd.jobs.service import JobService
from arcd.jobs.snapshots import Snapshots
from arcd.jobs.state import State
from arcd.jobs.store import Store
from arcd.system.home import Home

MOST_UNKEPT = 20_000
"""Records of all jobs that may be in no snapshot: folding them takes a fifth of a second."""


def folded(home: Home) -> tuple[State, dict[int, int]]:
    """The state of a home's store, and by job how many of its records are in no snapshot."""
    with closing(Store(home.path, "read")) as store:
        fold = Fold(store.database, Snapshots(home.snapshot))
        return fold.all(), fold.unkept


class Snapshotter:
    """Writes the snapshots of the jobs of a service."""

    def __init__(self, service: JobService, home: Home, unkept: Mapping[int, int]) -> None:
        """`unkept`: by job, how many of its records are in no snapshot."""
        self._service, self._home = service, home
        self._unkept = Counter(unkept)
        service.subscribe(self._hear)

    async def run(self) -> None:
        """Write snapshots when there is enough for them, for ever."""
        while True:
            await self.flush()
            await self._service.changed()

    async def flush(self) -> None:
        """Write what is due."""
        while self._unkept.total() > MOST_UNKEPT:
            ((job, _),) = self._unkept.most_common(1)
            # Before reading: a record that comes meanwhile counts, whether it was read or not.
            del self._unkept[job]
            await to_thread.run_sync(self._write, job)
            if job not in self._service.state.jobs:
                Snapshots(self._home.snapshot).discard(job)  # forgotten meanwhile

    def _write(self, job: int) -> None:
        snapshots = Snapshots(self._home.snapshot)
        with closing(Store(self._home.path, "read")) as store, store.database.one_moment():
            if not store.jobs.has(job):
                return
            fold = Fold(store.database, snapshots)
            seq, at = fold.job(job)
        snapshots.write(seq, at, fold.state.jobs[job])

    def _hear(self, record: Record) -> None:
        if isinstance(record.event, events.Forgotten):
            del self._unkept[record.job]
        elif record.job is not None:
            self._unkept[record.job] += 1
