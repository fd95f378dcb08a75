"""The store when its process is dropped, its last write is torn, or the disk is full."""

import os
import random
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import candidate
from support.stores import JOB, A, B, opened, sampled

from arcd.arc.selection import verdict
from arcd.errors import StoreFailed
from arcd.jobs import events, schema
from arcd.jobs.store import Store, path_in


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store with one job."""
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
        yield store


# Unclean ends.

DATA = Path(__file__).parents[1] / "data"

Keep = Callable[[str], None]
"""Called with each SQL statement, before it is run."""


def copies(home: Path, folder: Path) -> tuple[list[Path], Keep]:
    """Copies of a home before each statement on its store, as a kill would leave it; their list
    grows."""
    made: list[Path] = []

    def keep(statement: str) -> None:
        made.append(folder / f"{len(made)}")
        shutil.copytree(home, made[-1])

    return made, keep


def contents(home: Path) -> list[object]:
    """All that a store has to say of job 1."""
    with opened(home) as store:
        journal, jobs, facts = store.journal, store.jobs, store.facts
        there = jobs.has(1)
        return [
            list(journal.records()),
            [jobs.tasks(1), jobs.submission(1)] if there else [],
            [list(jobs.candidates(1)), list(jobs.verdicts(1))],
            facts.measured("here"),
            facts.serial(),
        ]


def test_a_store_that_is_dropped_at_any_statement_has_what_was_done_and_nothing_else(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = [candidate(A, 0, i) for i in range(2)]
    with opened(home, clock=iter(range(99)).__next__) as store:
        acts: list[Callable[[], object]] = [
            lambda: store.journal.submit(JOB),
            lambda: store.journal.append(None, events.DaemonReady(1.0)),
            store.facts.serial,
            lambda: store.journal.append(1, sampled(), events.Noted("a", "x" * 9000)),
            lambda: store.journal.append(1, sampled(sample=1), sampled(B)),
            lambda: store.journal.append(1, events.Answered("a", verdict("a", 1, found, None))),
            lambda: store.facts.keep_measured("here", {"a": 1}),
        ]
        made, keep = copies(home, tmp_path)
        done: list[tuple[range, Path]] = []
        store.database.connection.set_trace_callback(keep)
        for act in acts:
            first = len(made)
            act()
            whole = tmp_path / f"after {first}"
            shutil.copytree(home, whole)
            done.append((range(first, len(made)), whole))
    before = contents(shutil.copytree(made[0], tmp_path / "before"))
    for statements, whole in done:
        assert len(statements) >= 3
        for each in statements:
            assert contents(made[each]) == before
        after = contents(whole)
        assert after != before
        before = after


def test_a_store_that_is_dropped_at_any_statement_of_its_migration_is_migrated_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(DATA / "store-v1.db", path_in(home))
    made, keep = copies(home, tmp_path)
    migrate = schema.migrate

    def watched(connection: sqlite3.Connection, found: int) -> int:
        connection.set_trace_callback(keep)
        return migrate(connection, found)

    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrate", watched)
        whole = contents(home)
    assert len(made) >= 4
    for each in made:
        assert contents(each) == whole


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A home as a kill after 21 appends leaves it, and how long its log was one append before."""
    living, home = tmp_path_factory.mktemp("living"), tmp_path_factory.mktemp("dead") / "home"
    with opened(living) as store:
        store.journal.submit(JOB)
        for i in range(20):
            store.journal.append(1, sampled(sample=i), events.Noted("a", "x" * 300))
            store.facts.serial()
        size = store.path.with_name("arcd.db-wal").stat().st_size
        store.journal.append(1, sampled(sample=20), events.Noted("a", "y" * 9000))
        shutil.copytree(living, home)
    return home, size


def check_whole(home: Path, *, appends: int) -> None:
    """Just so many appends of the dead are there, and work goes on."""
    with opened(home) as store:
        assert [c.sample for c in store.jobs.candidates(1)] == list(range(appends))
        assert len(list(store.journal.records())) == 1 + 2 * appends
        assert store.journal.state().jobs[1].tasks["a"].sampled == appends
        assert store.facts.serial() == 20
        store.journal.append(1, sampled(sample=appends))
    with opened(home) as store:
        assert len(list(store.jobs.candidates(1))) == appends + 1


def test_a_store_that_is_dropped_loses_nothing_that_it_committed(
    dead: tuple[Path, int], tmp_path: Path
) -> None:
    shutil.copytree(dead[0], tmp_path / "home")
    check_whole(tmp_path / "home", appends=21)


@pytest.mark.parametrize("index", ["kept", "gone"])
@settings(max_examples=20)
@given(data=st.data())
def test_a_torn_last_write_costs_that_write_alone(
    dead: tuple[Path, int],
    tmp_path_factory: pytest.TempPathFactory,
    index: str,
    data: st.DataObject,
) -> None:
    home = tmp_path_factory.mktemp("torn") / "home"
    shutil.copytree(dead[0], home)
    log = home / "arcd.db-wal"
    torn = data.draw(st.integers(dead[1], log.stat().st_size - 1))
    os.truncate(log, torn)
    if index == "gone":  # as after a power cut
        (home / "arcd.db-shm").unlink()
    check_whole(home, appends=20)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 20_000))
def test_garbage_behind_the_last_write_is_no_harm(
    dead: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
) -> None:
    home = tmp_path_factory.mktemp("garbage") / "home"
    shutil.copytree(dead[0], home)
    with (home / "arcd.db-wal").open("ab") as log:
        log.write(random.Random(seed).randbytes(size))
    check_whole(home, appends=21)


@settings(max_examples=20)
@given(data=st.data())
def test_a_last_write_of_which_other_bytes_reached_the_disk_is_as_if_it_never_was(
    dead: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("flipped") / "home"
    shutil.copytree(dead[0], home)
    (home / "arcd.db-shm").unlink()
    with (home / "arcd.db-wal").open("r+b") as log:
        place = data.draw(st.integers(dead[1], os.path.getsize(log.name) - 1))
        log.seek(place)
        (byte,) = log.read(1)
        log.seek(place)
        log.write(bytes([byte ^ 1 << data.draw(st.integers(0, 7))]))
    check_whole(home, appends=20)


# No room.


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes; Python ignores the signal that comes with that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = events.Noted("a", "x" * 50_000)


@pytest.mark.parametrize("room", [0, 1, 4000, 4096, 9000, 20_000, 50_000])
def test_a_log_that_may_not_grow_fails_one_append_and_works_when_there_is_room(
    store: Store, room: int
) -> None:
    store.journal.append(1, sampled())
    before = list(store.journal.records())
    log = store.path.with_name("arcd.db-wal")
    with full_after(log.stat().st_size + room):
        for _ in range(2):
            with pytest.raises(StoreFailed, match=f"^{store.path}: [^\n]+$"):
                store.journal.append(1, sampled(sample=1), LARGE)
        with pytest.raises(StoreFailed, match=f"^{store.path}: [^\n]+$"):
            store.journal.submit(replace(JOB, name="x" * 50_000))
        assert list(store.journal.records()) == before
        assert len(list(store.jobs.candidates(1))) == 1
    store.journal.append(1, sampled(sample=1), LARGE)
    assert store.facts.serial() == 0
    assert store.journal.submit(JOB).job == 2
    assert [c.sample for c in store.jobs.candidates(1)] == [0, 1]


def test_a_disk_that_is_full_fails_one_append_and_works_when_there_is_room(store: Store) -> None:
    pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
    store.database.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    before = list(store.journal.records())
    for _ in range(2):
        with pytest.raises(StoreFailed, match=f"^{store.path}: database or disk is full$"):
            store.journal.append(1, sampled(), LARGE)
    assert list(store.journal.records()) == before
    assert list(store.jobs.candidates(1)) == []
    store.database.connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.journal.append(1, sampled(), LARGE)
    assert store.journal.state().jobs[1].tasks["a"].sampled == 1


def test_a_disk_without_room_for_a_new_store_leaves_one_that_can_be_made_later(
    tmp_path: Path,
) -> None:
    with full_after(0), pytest.raises(StoreFailed, match=f"^{path_in(tmp_path)}: [^\n]+$"):
        Store(tmp_path)
    with opened(tmp_path) as store:
        assert store.journal.submit(JOB).job == 1
