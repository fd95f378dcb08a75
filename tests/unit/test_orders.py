"""Orders: read task by task, and in the store whole or not at all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small import task, task_set
from support.stores import opened
from support.strategies import tasks as any_tasks

from arcd.arc.tasks import TaskSet
from arcd.config import Config, resolve
from arcd.daemon import schema
from arcd.errors import BadTask
from arcd.jobs import journal
from arcd.jobs.journal import NewJob, new_job
from arcd.jobs.store import Store

MANY = task_set(*(task(f"t{i}") for i in range(7)))


@given(any_tasks(), st.integers(1, 100), st.booleans())
def test_what_is_read_is_what_was_ordered(task: Any, priority: int, solved: bool) -> None:
    tasks = TaskSet("set", (task,), {task.id: task.tests} if solved else {})
    body = schema.order(tasks, priority=priority).model_dump_json().encode()
    found = schema.accept(schema.read(bytearray(body)), resolve())
    assert found == new_job("set", priority, tasks, resolve())


def changed(**changes: Any) -> bytes:
    order = schema.order(MANY).model_dump(mode="json")
    return json.dumps({**order, **changes}).encode()


def test_solutions_of_other_tasks_are_checked_and_left_out() -> None:
    grid = [[1]]
    known = schema.read(changed(solutions={"t0": [grid], "other": [grid]}))
    assert json.loads(schema.accept(known, resolve()).tasks[0].solution or "") == [grid]
    with pytest.raises(BadTask, match="task other"):
        schema.accept(schema.read(changed(solutions={"other": [[[10]]]})), resolve())


@pytest.mark.parametrize("body", [b"", b"{", b'{"tasks": {"a": }}', b'\xff{"name": 1}'])
def test_what_is_no_json_is_told_apart_from_what_is_no_order(body: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        schema.read(body)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(journal, "ROWS_PER_STEP", 2)
    with opened(tmp_path) as store:
        yield store


JOB = new_job("many", 10, MANY, Config())


def test_a_job_reaches_the_store_in_steps(store: Store) -> None:
    *before, record = store.journal.submitting(JOB)
    assert before == [None] * 3
    assert record is not None
    assert store.jobs.names(1) == [task.id for task in MANY.tasks]
    assert list(store.journal.state().jobs) == [1]


def test_a_job_that_is_cut_off_was_never_there(store: Store) -> None:
    for steps in range(1, 4):
        cut_off = store.journal.submitting(JOB)
        for _ in range(steps):
            next(cut_off)
        cut_off.close()
        assert (store.jobs.count(), store.jobs.like(JOB)) == (0, [])
        assert not store.jobs.has(1)
        assert not store.journal.state().jobs
    store.journal.discard_unsubmitted()
    for table in ("jobs", "tasks"):
        assert next(store.database.read(f"SELECT count(*) FROM {table}")) == (0,)


def test_the_digest_is_of_what_is_asked(store: Store) -> None:
    def digest(**changes: Any) -> str:
        fields = {"name": "n", "priority": 1, "tasks": JOB.tasks, "config": Config(), "base": "b"}
        return NewJob(**{**fields, **changes}).digest

    same = [digest(), digest(name="other", priority=2), digest(tasks=JOB.tasks[::-1])]
    assert len(set(same)) == 1
    others = [digest(tasks=JOB.tasks[1:]), digest(config=Config(seed=1)), digest(base="c")]
    assert len({same[0], *others}) == 4
