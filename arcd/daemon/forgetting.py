"""Forgetting a job: its rows in the store, and its folder in the home.

Files that the user has named for the submission stay. Knows nothing of who asks.
"""

import shutil
from contextlib import closing
from functools import partial

import anyio
from anyio import to_thread

from arcd.daemon.snapshotter import folded
from arcd.jobs import events
from arcd.jobs.forgetting import compact
from arcd.jobs.service import JobService
from arcd.jobs.store import Store
from arcd.system.home import Home
from arcd.system.home_lock import HomeLock


async def forget(service: JobService, home: Home, job: int) -> None:
    """Delete all that is kept of a finished job; raises NoJob or BadJob."""
    await service.forget(job)
    await to_thread.run_sync(partial(shutil.rmtree, home.job_folder(job), ignore_errors=True))


def forget_offline(home: Home, jobs: list[int]) -> None:
    """The same in a home where no daemon runs, which gives all free pages back to the disk.

    Raises HomeInUse where one runs after all.
    """
    with HomeLock.take(home.path), closing(Store(home.path)) as store:
        state, _ = folded(home)
        service = JobService(store, state)

        async def work() -> None:
            for job, task in state.in_flight():
                if job in jobs:
                    service.emit(job, events.Released(task))  # no daemon is there to do it
            for job in jobs:
                await forget(service, home, job)

        anyio.run(work)
        compact(store.database)
