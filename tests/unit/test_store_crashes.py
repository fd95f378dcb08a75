"""The store when its process dies, its last write is torn, or the disk is full."""

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stores import JOB, ROOT, opened, sampled

from arcd.errors import StoreFailed
from arcd.jobs import events
from arcd.jobs.store import Store, path_in


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store with one job."""
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
        yield store


# Unclean ends.

DYING = """
import os, sys
from pathlib import Path
from support.stores import A, JOB, sampled
from arcd.jobs import events
from arcd.jobs.store import Store
store = Store(Path(sys.argv[1]))
store.journal.submit(JOB)
for i in range(20):
    store.journal.append(1, sampled(sample=i), events.Noted("a", "x" * 300))
    store.facts.serial()
print(store.path.with_name("arcd.db-wal").stat().st_size, flush=True)
store.journal.append(1, sampled(sample=20), events.Noted("a", "y" * 9000))
os._exit(9)
"""


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The home of a process that died at once, and how long its log was one append before."""
    home = tmp_path_factory.mktemp("dead")
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(home)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 9, done.stderr
    return home, int(done.stdout)


def check_whole(home: Path, *, appends: int) -> None:
    """Just so many appends of DYING are there, and work goes on."""
    with opened(home) as store:
        assert [c.sample for c in store.jobs.candidates(1)] == list(range(appends))
        assert len(list(store.journal.records())) == 1 + 2 * appends
        assert store.journal.state().jobs[1].tasks["a"].sampled == appends
        assert store.facts.serial() == 20
        store.journal.append(1, sampled(sample=appends))
    with opened(home) as store:
        assert len(list(store.jobs.candidates(1))) == appends + 1


def test_a_process_that_dies_loses_nothing_that_it_committed(
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
