"""Snapshots: with them the state is what it is without them, whatever is wrong with the files."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import candidate, task, task_set
from support.stores import opened, take_on
from support.strategies import Happening, lives

from arcd.arc.selection import verdict
from arcd.config import Config
from arcd.daemon import snapshotter
from arcd.daemon.snapshotter import Snapshotter, folded
from arcd.jobs import events, forgetting, snapshots
from arcd.jobs.fold import Fold
from arcd.jobs.journal import new_job
from arcd.jobs.service import JobService
from arcd.jobs.snapshots import Snapshots
from arcd.jobs.state import State
from arcd.jobs.store import Store
from arcd.system.home import Home


def live(store: Store, lived: list[Happening]) -> None:
    for job, event in lived:
        if isinstance(event, events.Submitted):
            tasks = task_set(*(task(name) for name in event.tasks))
            store.journal.submit(new_job(event.name, event.priority, tasks, Config()))
        else:
            store.journal.append(job, event)


def keep(home: Home, store: Store) -> None:
    """Write a snapshot of each job."""
    kept = Snapshots(home.snapshot)
    fold = Fold(store.database, kept)
    for job in store.journal.state().jobs:
        seq, at = fold.job(job)
        kept.write(seq, at, fold.state.jobs[job])


def plain(store: Store) -> State:
    """All records folded in their order; without trainings, which a snapshot may hide."""
    state = State()
    for record in store.journal.records():
        state.apply(record)
    state.training.clear()
    return state


@settings(max_examples=40)
@given(lives(), st.data())
def test_the_state_is_the_same_from_any_snapshot(
    tmp_path_factory: pytest.TempPathFactory, lived: list[Happening], data: st.DataObject
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lived)), max_size=3)))
    with opened(home.path) as store:
        for begin, end in zip([0, *cuts], [*cuts, len(lived)], strict=True):
            live(store, lived[begin:end])
            if end in cuts:
                keep(home, store)
        found, unkept = folded(home)
        found.training.clear()
        assert found == plain(store)
        if cuts and cuts[-1] > 0:
            assert sum(unkept.values()) <= len(lived) - cuts[-1]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Job 1 with an answered task and a snapshot."""
    home = Home(tmp_path)
    with opened(tmp_path) as store:
        live(store, [(1, events.Submitted("j", 10, ("a", "b")))])
        answer = verdict("a", 1, [candidate(task("a"))], 3)
        store.journal.append(1, events.Started("a", 1, 1), events.Answered("a", answer))
        keep(home, store)
    return home


def test_a_snapshot_stands_for_the_records_before_it(home: Home) -> None:
    assert folded(home)[1] == {1: 0}
    with opened(home.path) as store:
        store.journal.append(1, events.Paused())
        assert folded(home) == (store.journal.state(), {1: 1})


def damaged(home: Home, damage: str) -> None:
    path = home.snapshot(1)
    found = json.loads(path.read_text())
    match damage:
        case "missing":
            path.unlink()
        case "cut off":
            path.write_bytes(path.read_bytes()[:50])
        case "no text":
            path.write_bytes(b"\xff\xfe")
        case "of another arcd":
            path.write_text(json.dumps({**found, "form": "0"}))
        case "of another job":
            path.write_text(json.dumps({**found, "job": {**found["job"], "id": 2}}))
        case "of another store":
            path.write_text(json.dumps({**found, "at": found["at"] - 1}))
        case "of the future":
            path.write_text(json.dumps({**found, "seq": 99}))
        case "a folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        *("missing", "cut off", "no text", "of another arcd", "of another job"),
        *("of another store", "of the future", "a folder"),
    ],
)
def test_a_snapshot_that_is_of_no_use_is_not_used(home: Home, damage: str) -> None:
    damaged(home, damage)
    with opened(home.path) as store:
        state, unkept = folded(home)
        assert state == plain(store)
        assert unkept == {1: 3}


def test_another_reducer_does_not_use_the_snapshot(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "REDUCER", snapshots.REDUCER + 1)
    assert folded(home)[1] == {1: 3}


def test_where_a_snapshot_cannot_be_written_there_is_none(home: Home) -> None:
    damaged(home, "a folder")
    with opened(home.path) as store:
        keep(home, store)
    assert folded(home)[1] == {1: 3}


def test_the_largest_jobs_are_kept_when_there_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "MOST_UNKEPT", 6)
    home = Home(tmp_path)
    with opened(tmp_path) as store:
        service = JobService(store)
        keeper = Snapshotter(service, home, {})
        for name in ("small", "large"):
            take_on(service, new_job(name, 10, task_set(task("a")), Config()))
        for _ in range(4):
            service.emit(2, events.Paused(), events.Resumed())
        anyio.run(keeper.flush)
        assert not home.snapshot(1).exists()
        assert folded(home)[1] == {1: 1, 2: 0}


async def at_once(function: Callable[..., Any], *arguments: object) -> Any:
    """In place of a thread: a store belongs to the one that has opened it."""
    return function(*arguments)


def test_a_job_that_is_forgotten_while_its_snapshot_is_made_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its records are gone when they are read: the first among them."""
    home = Home(tmp_path)
    monkeypatch.setattr(snapshotter, "MOST_UNKEPT", 0)
    with opened(tmp_path) as store:
        service = JobService(store)
        keeper = Snapshotter(service, home, {})
        job = take_on(service, new_job("job", 10, task_set(task("t")), Config())).id
        service.emit(job, *(events.Noted("t", str(i)) for i in range(10)), events.Cancelled())
        monkeypatch.setattr(forgetting, "ROWS_PER_STEP", 4)
        read = Fold.job

        def late(fold: Fold, number: int) -> tuple[int, float]:
            with store.database.without_foreign_keys():
                service.emit(number, events.Forgotten())
            steps = forgetting.delete(store.database, number)
            for _ in range(3):
                next(steps)
            return read(fold, number)

        monkeypatch.setattr(Fold, "job", late)
        monkeypatch.setattr(snapshotter, "to_thread", SimpleNamespace(run_sync=at_once))
        anyio.run(keeper.flush)
        assert not home.snapshot(job).exists()


def test_no_snapshot_is_made_where_the_only_job_was_forgotten_just_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "MOST_UNKEPT", 0)

    async def forgotten_first(function: Callable[..., Any], *arguments: object) -> Any:
        if service.state.jobs:
            await service.forget(job)
        return await at_once(function, *arguments)

    monkeypatch.setattr(snapshotter, "to_thread", SimpleNamespace(run_sync=forgotten_first))
    with opened(tmp_path) as store:
        service = JobService(store)
        keeper = Snapshotter(service, Home(tmp_path), {})
        job = take_on(service, new_job("job", 10, task_set(task("t")), Config())).id
        service.emit(job, events.Cancelled())

        async def run() -> None:
            async with anyio.create_task_group() as running:
                running.start_soon(keeper.run)
                await anyio.wait_all_tasks_blocked()
                running.cancel_scope.cancel()

        anyio.run(run)
        assert not Home(tmp_path).snapshot(job).exists()
