"""Forgetting a job: its rows in the store, and its folder in the home.

Files that the user has named for the submission stay. Knows nothing of who asks.
"""

import shutil
from contextlib import closing

import anyio
from anyio import to_thread

from arcd.daemon.publisher import Publisher
from arcd.daemon.snapshotter import folded
from arcd.jobs import events
from arcd.jobs.forgetting import compact
from arcd.jobs.service import JobService
from arcd.jobs.store import Store
from arcd.system.home import Home
from arcd.system.home_lock import HomeLock


async def forget(service: JobService, publisher: Publisher, home: Home, job: int) -> None:
    """Delete all that is kept of a finished job; raises NoJob or BadJob.

    The files that the user has named get its last answers before.
    """
    if service.job(job).finished:
        await publisher.settled(job)
    await service.forget(job)
    await publisher.let_go(job)
    await to_thread.run_sync(_delete_folder, home, job)


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
                await service.forget(job)
                _delete_folder(home, job)

        anyio.run(work)
        compact(store.database)


def delete_leftovers(store: Store, home: Home) -> None:
    """Delete the folders of forgotten jobs that a death has left.

    No other folder of an unknown job: its user may have lost the store, not the submission.
    """
    for folder in home.jobs.iterdir() if home.jobs.is_dir() else ():
        if folder.name.isdecimal() and store.jobs.is_forgotten(int(folder.name)):
            _delete_folder(home, int(folder.name))


def _delete_folder(home: Home, job: int) -> None:
    shutil.rmtree(home.job_folder(job), ignore_errors=True)
