"""Forgetting: nothing of the job is left, all of the others is, whatever happens in between."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from support.small import candidate, task, task_set
from support.stores import opened, take_on

from arcd.arc.selection import verdict
from arcd.config import Config
from arcd.daemon.forgetting import delete_leftovers, forget_offline
from arcd.errors import BadJob, NoJob
from arcd.jobs import events, forgetting
from arcd.jobs.journal import new_job
from arcd.jobs.service import JobService
from arcd.jobs.store import Store
from arcd.system.home import Home

TABLES = {"events": "job", "tasks": "job", "candidates": "job", "skipped": "job", "jobs": "id"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    """Jobs 1 and 2, of one task each, are done; job 3 is not."""
    with opened(tmp_path) as store:
        yield with_jobs(store)


def with_jobs(store: Store) -> JobService:
    service = JobService(store)
    for number in (1, 2, 3):
        take_on(service, new_job(f"job {number}", 10, task_set(task("t")), Config()))
        found = [candidate(task("t"), 0, sample) for sample in range(5)]
        sampled = [events.Sampled("t", each) for each in found]
        service.emit(number, events.Started("t", 1, 5), *sampled)
        if number < 3:
            service.emit(number, events.Answered("t", verdict("t", 1, found, 3)))
    return service


def rows(store: Store, job: int) -> dict[str, int]:
    """How many rows each table has of a job."""
    counts = {
        table: next(store.database.read(f"SELECT count(*) FROM {table} WHERE {key} = ?", (job,)))
        for table, key in TABLES.items()
    }
    return {table: int(count) for table, (count,) in counts.items()}


ALONE = {"events": 1, "tasks": 0, "candidates": 0, "skipped": 0, "jobs": 0}
"""What is left is that it was forgotten."""


def test_nothing_is_left_of_it_and_all_of_the_others(service: JobService) -> None:
    before = {job: rows(service.store, job) for job in (2, 3)}
    anyio.run(service.forget, 1)
    assert rows(service.store, 1) == ALONE
    assert {job: rows(service.store, job) for job in (2, 3)} == before
    assert list(service.state.jobs) == [2, 3]
    assert JobService(service.store).state == service.state
    with pytest.raises(NoJob):
        service.job(1)


def test_its_number_is_not_given_again(service: JobService) -> None:
    service.emit(3, events.Released("t"), events.Cancelled())
    anyio.run(service.forget, 3)
    assert take_on(service, new_job("new", 10, task_set(task("t")), Config())).id == 4


def test_what_is_not_finished_is_not_forgotten(service: JobService) -> None:
    with pytest.raises(BadJob, match="job 3: it is not finished"):
        anyio.run(service.forget, 3)
    with pytest.raises(NoJob):
        anyio.run(service.forget, 9)
    assert list(service.state.jobs) == [1, 2, 3]


def test_what_a_death_has_left_half_deleted_is_deleted_later(
    service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "ROWS_PER_STEP", 2)
    with service.store.database.without_foreign_keys():
        service.emit(1, events.Forgotten())
    deleting = forgetting.delete(service.store.database, 1)
    for _ in range(4):
        next(deleting)
        assert forgetting.half_deleted(service.store.database) == [1]
        assert list(JobService(service.store).state.jobs) == [2, 3]
    deleting.close()
    anyio.run(JobService(service.store).delete_forgotten)
    assert rows(service.store, 1) == ALONE


def test_rows_that_refer_to_nothing_are_refused_again_afterwards(service: JobService) -> None:
    anyio.run(service.forget, 1)
    with pytest.raises(sqlite3.IntegrityError):
        service.store.database.connection.execute("DELETE FROM jobs WHERE id = 2")


def test_a_folder_that_a_death_has_left_is_deleted_and_no_other(service: JobService) -> None:
    home = Home(service.store.path.parent)
    anyio.run(service.forget, 1)
    for name in ("1", "2", "9", "mine"):
        (home.jobs / name).mkdir(parents=True)
    delete_leftovers(service.store, home)
    assert {path.name for path in home.jobs.iterdir()} == {"2", "9", "mine"}


def with_large_job(tmp_path: Path) -> Home:
    """A home with a finished job of a few hundred KB."""
    with opened(tmp_path) as store:
        service = with_jobs(store)
        notes = [events.Noted("t", "x" * 1000) for _ in range(500)]
        service.emit(1, *notes)
    home = Home(tmp_path)
    home.submission(1).parent.mkdir(parents=True)
    home.submission(1).write_text("{}")
    return home


@pytest.mark.parametrize("shrinks", [True, False])
def test_the_disk_is_given_back(tmp_path: Path, shrinks: bool) -> None:
    """Also by a store from before it could be shrunk."""
    home = with_large_job(tmp_path)
    path = tmp_path / "arcd.db"
    if not shrinks:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA auto_vacuum = NONE")
            connection.execute("VACUUM")
    before = path.stat().st_size
    forget_offline(home, [1])
    assert path.stat().st_size < before / 2
    assert not home.job_folder(1).exists()
    with opened(tmp_path) as store:
        assert rows(store, 1) == ALONE
        assert list(store.journal.state().jobs) == [2, 3]


def test_without_a_daemon_nothing_is_waited_for(tmp_path: Path) -> None:
    """A task of job 3 is in flight where its daemon has died."""
    with opened(tmp_path) as store:
        with_jobs(store).emit(3, events.Cancelled())
    forget_offline(Home(tmp_path), [3])
    with opened(tmp_path) as store:
        assert rows(store, 3) == ALONE
