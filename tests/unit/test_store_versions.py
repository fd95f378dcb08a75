"""Stores of released versions, which load for ever.

Each `tests/data/store-vN.db` was written by `keep(Path("tests/data"))` of this file, when N was the
version, and stays as it is.
"""

import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from support.small import candidate
from support.stores import JOB, TASKS, A, B, opened, sampled

from arcd.arc import submission
from arcd.arc.selection import verdict
from arcd.jobs import events
from arcd.jobs.database import Mode
from arcd.jobs.events import Times
from arcd.jobs.job_table import Published
from arcd.jobs.schema import VERSION
from arcd.jobs.state import JobState, Phase
from arcd.jobs.store import Store, path_in

DATA = Path(__file__).parents[1] / "data"


def keep(folder: Path) -> None:
    """Write a store of this version for the tests of all later ones."""
    with tempfile.TemporaryDirectory() as home:
        with opened(Path(home), clock=map(float, count(1_700_000_000)).__next__) as store:
            _fill(store)
            store.database.connection.execute("VACUUM")
        shutil.copy(path_in(Path(home)), folder / f"store-v{VERSION}.db")


def _fill(store: Store) -> None:
    """A job that is done, retried and under way again, one that waits, and a daemon that died."""
    found = [candidate(A, 0, 0), candidate(A, 0, 1, None), candidate(A, 0, 2, ((2,),))]
    store.journal.append(None, events.DaemonStarted(7, "0.1.0", "base", "f", "cpu", "bfloat16"))
    store.journal.append(None, events.DaemonReady(1.5))
    store.journal.submit(JOB)
    store.journal.append(1, events.Started("b", 6, 4, Times(1.5, 0.5)))
    store.journal.append(1, events.Training("b", 1, 3, 0.5, 100.0))
    store.journal.append(1, events.Trained("b", store.facts.serial(), 3, 300, 2.0, 0.25, 1 << 30))
    store.journal.append(1, sampled(B, 0, 0), sampled(B, 1, 0))
    store.journal.append(1, events.Interrupted("b"))
    store.journal.append(1, events.Started("a", 6, 3), events.Noted("a", "a note"))
    store.journal.append(1, *(events.Sampled("a", each) for each in found))
    store.journal.append(1, events.Answered("a", verdict("a", 1, found, None, ("a note",))))
    store.journal.append(1, events.Retried(("a",)), events.Started("a", 6, 3), events.Released("a"))
    store.journal.submit(replace(JOB, name="second", outs=()))
    store.journal.append(2, events.Paused(), events.Resumed(), events.Paused())
    store.jobs.keep_published(1, Published(own=store.journal.state().jobs[1].changed, outs=0))


@pytest.mark.parametrize("version", range(1, VERSION + 1))
@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_store_of_each_version_loads_for_ever(tmp_path: Path, version: int, mode: Mode) -> None:
    shutil.copy(DATA / f"store-v{version}.db", path_in(tmp_path))
    with opened(tmp_path, mode=mode) as store:
        state = store.journal.state()
        first, second = state.jobs[1], state.jobs[2]
        assert (first.name, first.state, second.name, second.state) == (
            "job",
            JobState.running,
            "second",
            JobState.paused,
        )
        b, a = first.tasks["b"], first.tasks["a"]
        assert (b.phase, b.deaths, b.adapter, b.sampled) == (Phase.waiting, 1, 0, 2)
        assert (a.phase, a.round, a.notes) == (Phase.waiting, 1, ("a note",))
        assert a.answer is not None
        assert (a.answer.best, a.answer.samples, a.answer.invalid) == ((1,), 3, 1)
        assert state.daemon is not None
        assert (state.daemon.pid, state.ready) == (7, True)
        assert store.jobs.tasks(1) == replace(TASKS, name="job")
        assert store.jobs.config(1).train.steps == 3
        assert (store.jobs.outs(1), store.jobs.outs(2)) == ((Path("/o.json"),), ())
        assert [c.grid for c in store.jobs.candidates(1, "a")] == [((1,),), None, ((2,),)]
        assert json.loads(store.jobs.submission(1))["a"] == submission.entry([(((1,),), ((2,),))])
        if mode == "write":
            assert store.facts.serial() == 1
            store.journal.append(1, events.Started("b", 6, 2), sampled(B, 0, 1))
            assert store.facts.measured("here") is None
            store.facts.keep_measured("here", {"a": 1})
            assert store.facts.measured("here") == {"a": 1}


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_what_a_store_from_before_the_count_has_answered_is_published(
    tmp_path: Path, version: int
) -> None:
    """So that no daemon replaces what its user has made of it; its own file is written again."""
    shutil.copy(DATA / f"store-v{version}.db", path_in(tmp_path))
    with opened(tmp_path) as store:
        last = store.journal.state().jobs[1].changed
        assert last > 0
        old = {1: Published(outs=last), 2: Published(outs=0)}
        new = {1: Published(own=last, outs=0), 2: Published()}
        assert store.jobs.published() == (old if version < 3 else new)


def test_an_old_store_that_was_opened_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    shutil.copy(DATA / "store-v1.db", path_in(tmp_path / "old"))
    for name in ("old", "new"):
        with opened(tmp_path / name):
            pass
    old, new = (sqlite3.connect(path_in(tmp_path / name)) for name in ("old", "new"))
    columns = (
        'SELECT m.name, c.name, c.type, c."notnull", c.pk FROM sqlite_master m, '
        "pragma_table_info(m.name) c ORDER BY m.name, c.name"
    )
    assert old.execute(columns).fetchall() == new.execute(columns).fetchall()
    assert old.execute("PRAGMA user_version").fetchone() == (VERSION,)
    old.close()
    new.close()


def test_what_was_measured_of_one_platform_is_not_anothers(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.facts.keep_measured("one", [1])
        store.facts.keep_measured("two", [2])
        store.facts.keep_measured("one", [3])
        assert (store.facts.measured("one"), store.facts.measured("two")) == ([3], [2])


ADDED_KEYS = (
    "engine.enforce_eager",
    "engine.attention_backend",
    "engine.kv_cache_memory_bytes",
)
"""Settings that came after the version: a stored configuration without them has their defaults."""


def test_the_store_that_is_kept_is_what_this_version_writes(tmp_path: Path) -> None:
    """Fails when the schema or the events change without a new version."""
    keep(tmp_path)
    kept, new = (in_memory(folder / f"store-v{VERSION}.db") for folder in (DATA, tmp_path))
    for store in (kept, new):
        store.execute("UPDATE jobs SET digest = ''")  # another arcd may have another one
    for key in ADDED_KEYS:
        new.execute(f"UPDATE jobs SET config = json_remove(config, '$.{key}')")
    assert list(kept.iterdump()) == list(new.iterdump())
    kept.close()
    new.close()


def in_memory(file: Path) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:")
    with closing(sqlite3.connect(file)) as store:
        store.backup(copy)
    return copy
