"""Forgetting: deletes all that a store has of a job, in steps, and gives the disk back.

The number of the job stays taken. What a death has left half deleted is deleted at the next start.
Knows nothing of who wants it forgotten, nor of files beside the store.
"""

from collections.abc import Generator

from arcd.jobs.database import Database

ROWS_PER_STEP = 2000
"""Rows that are deleted together, some 10 ms."""

PAGES_PER_STEP = 1000
"""Free pages of 4 KiB that are given back together."""

INCREMENTAL = 2
"""Value of SQLite's auto_vacuum with which free pages can be given back in steps."""

_ROWS = (
    "candidates WHERE (job, task, test, sample) IN"
    " (SELECT job, task, test, sample FROM candidates WHERE job = ? LIMIT ?)",
    "events WHERE seq IN (SELECT seq FROM events WHERE job = ? AND kind != 'Forgotten' LIMIT ?)",
    "skipped WHERE (job, task) IN (SELECT job, task FROM skipped WHERE job = ? LIMIT ?)",
    # Last: by its tasks `half_deleted` finds what a death has left of a job.
    "tasks WHERE (job, task) IN (SELECT job, task FROM tasks WHERE job = ? LIMIT ?)",
)


def half_deleted(database: Database) -> list[int]:
    """Jobs that are forgotten, but not all of their rows are deleted."""
    query = "SELECT DISTINCT job FROM tasks WHERE job NOT IN (SELECT id FROM jobs)"
    return [job for (job,) in database.read(query)]


def delete(database: Database, job: int) -> Generator[None, None, None]:
    """Delete the rows of a job that is forgotten, a step at a time."""
    for rows in _ROWS:
        deleted = ROWS_PER_STEP
        while deleted == ROWS_PER_STEP:
            # Each deleted record would be looked for among all candidates, which have no index.
            with database.without_foreign_keys(), database.transaction() as connection:
                found = connection.execute(f"DELETE FROM {rows}", (job, ROWS_PER_STEP))
                deleted = found.rowcount
            yield
    yield from give_back(database)


def give_back(database: Database) -> Generator[None, None, None]:
    """Give free pages back to the disk, a step at a time; a store from before 0.2 keeps them."""
    if _pragma(database, "auto_vacuum") != INCREMENTAL:
        return
    while _pragma(database, "freelist_count"):
        database.execute(f"PRAGMA incremental_vacuum({PAGES_PER_STEP})")
        yield


def compact(database: Database) -> None:
    """Write a store from before 0.2 anew, without free pages: from then on it can be shrunk.

    Takes as long as copying the file; nobody else may use it.
    """
    if _pragma(database, "auto_vacuum") != INCREMENTAL:
        database.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        database.execute("VACUUM")


def _pragma(database: Database, name: str) -> int:
    (row,) = database.read(f"PRAGMA {name}")
    return int(row[0])
