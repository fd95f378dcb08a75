"""Who follows a job: served from a thread in batches, let go at once, with what it needs."""

import io
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.past import BEGIN
from support.small import candidate, solutions, task, task_set
from support.stores import opened

from arcd.arc.selection import verdict
from arcd.config import Config
from arcd.daemon import server
from arcd.display.screen import Scene, draw
from arcd.jobs import events, following
from arcd.jobs.events import Record
from arcd.jobs.history import History
from arcd.jobs.journal import new_job
from arcd.jobs.service import JobService
from arcd.jobs.store import Store

pytestmark = pytest.mark.anyio

NAMES = [f"t{i}" for i in range(6)]
TASKS = task_set(*map(task, NAMES))
STEPS, SAMPLES = 5, 4


def solved(name: str, serial: int | None, round: int = 0) -> list[events.Event]:
    """A task from its start to its answer, trained or by the base."""
    first = round * Config().sample.samples
    drawn = [candidate(task(name), 0, first + i, adapter=serial) for i in range(SAMPLES)]
    trained: list[events.Event] = []
    if serial is not None:
        trained = [events.Training(name, i, STEPS, 1 / i, 10.0) for i in range(1, STEPS + 1)]
        trained.append(events.Trained(name, serial, STEPS, 100, STEPS + 1.0, 0.2))
    return [
        events.Started(name, STEPS if trained else 0, SAMPLES),
        *trained,
        *(events.Sampled(name, each) for each in drawn),
        events.Noted(name, "a note"),
        events.Answered(name, verdict(name, 1, drawn, serial, ("a note",))),
    ]


class Clock:
    """A second later at each look."""

    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def emit(store: Store, *happened: events.Event) -> None:
    for event in happened:
        store.journal.append(1, event)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """With job 1, half of whose tasks are answered, two in flight, before any service is there."""
    with opened(tmp_path, clock=Clock()) as store:
        store.journal.append(None, events.DaemonStarted(7, "0.1.0", "b/m", "f", "cpu", "fp32"))
        store.journal.submit(new_job("job", 10, TASKS, Config()))
        store.journal.append(None, events.DaemonReady(1.0))
        emit(store, *solved("t0", 1), *solved("t1", None), *solved("t2", 2))
        emit(store, *solved("t3", 3)[:-3], *solved("t4", 4)[:3])
        yield store


async def follow(service: JobService, after: int = 0, *, brief: bool = False) -> list[Record]:
    """All that is there; the service is closed, so that it ends."""
    service.close()
    return [
        Record.from_json(json.loads(line.text))
        async for lines in service.follow(1, after, brief=brief)
        for line in lines
    ]


@pytest.mark.parametrize("batch", [1, 2, 7, 500])
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize("after", [0, 1, 2, 11])
async def test_the_past_comes_from_the_store_in_batches(
    store: Store, batch: int, size: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECORDS_PER_READ", batch)
    monkeypatch.setattr(following, "BYTES_PER_READ", size)
    found = await follow(JobService(store), after)
    assert found == list(store.journal.records(after, 1))


@pytest.mark.parametrize("kept", [1, 3, 1000])
async def test_the_last_records_come_from_memory_and_none_is_missed_in_between(
    store: Store, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECORDS_IN_MEMORY", kept)
    service = JobService(store)
    found: list[Record] = []

    async def listen() -> None:
        async for lines in service.follow(1):
            found.extend(Record.from_json(json.loads(line.text)) for line in lines)

    async with anyio.create_task_group() as listening:
        listening.start_soon(listen)
        for event in solved("t5", 9):
            service.emit(1, event)
            service.emit(None, events.DaemonReady(1.0))
            await anyio.lowlevel.checkpoint()
        service.close()
    assert found == list(store.journal.records(0, 1))


# In brief.


def screen(records: list[Record], now: float) -> str:
    history = History(1, solutions(TASKS.tasks))
    for record in records:
        history.apply(record)
    console = Console(file=io.StringIO(), width=120, height=40, _environ={})
    console.print(draw(Scene(history, None), now, 120, 40))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


async def test_in_brief_the_screen_is_the_same_with_fewer_records(store: Store) -> None:
    service = JobService(store)
    whole, brief = await follow(service), await follow(service, brief=True)
    assert len(brief) < len(whole)
    kinds = [events.kind(record.event) for record in brief]
    assert kinds.count("Answered") == kinds.count("Noted") == 3
    # Those of the tasks in flight, and the first sample of each.
    assert kinds.count("Training") == STEPS + 2
    assert kinds.count("Sampled") == 3 + (SAMPLES - 1)
    assert [record.seq for record in brief] == sorted({record.seq for record in brief})
    now = whole[-1].at + 11
    assert screen(brief, now) == screen(whole, now)


@st.composite
def pasts(draw: st.DrawFn) -> list[events.Event]:
    """Tasks that are answered, in one round or in several, set aside with an adapter, or begun."""
    found: list[events.Event] = []
    rounds: Counter[str] = Counter()
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=6)):
        found += solved(name, draw(st.sampled_from([None, 3])), rounds[name])
        rounds[name] += 1
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3)):
        piece = solved(name, 4, rounds[name])
        cut = draw(st.integers(1, len(piece) - 1))
        found += piece[:cut]
        if cut > STEPS + 1 and draw(st.booleans()):
            found.append(events.Released(name))
    return found


@given(pasts(), st.integers(1, 9))
async def test_in_brief_no_past_makes_another_screen(
    tmp_path_factory: pytest.TempPathFactory, past: list[events.Event], batch: int
) -> None:
    with opened(tmp_path_factory.mktemp("home"), clock=Clock()) as store:
        store.journal.submit(new_job("job", 10, TASKS, Config()))
        emit(store, *past)
        service = JobService(store)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(following, "RECORDS_PER_READ", batch)
            whole, brief = await follow(service), await follow(service, brief=True)
    assert {record.seq for record in brief} <= {record.seq for record in whole}
    now = whole[-1].at + 11
    assert screen(brief, now) == screen(whole, now)


async def test_in_brief_all_that_happens_later_is_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECORDS_IN_MEMORY", 2)
    service = JobService(store)
    last = service.state.seq
    stream = service.follow(1, brief=True)
    found = [line.seq for line in await anext(stream)]
    for event in solved("t5", 9):
        service.emit(1, event)
    service.close()
    found += [line.seq async for lines in stream for line in lines]
    assert [seq for seq in found if seq > last] == [r.seq for r in store.journal.records(last, 1)]


# Who follows disturbs nobody.


async def test_others_have_their_turn_between_two_batches(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECORDS_PER_READ", 1)
    service = JobService(store)
    service.close()
    turns = 0
    seen: list[int] = []

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async def listen() -> None:
        async for _ in service.follow(1):
            seen.append(turns)

    async with anyio.create_task_group() as others:
        others.start_soon(count)
        async with anyio.create_task_group() as listening:
            for _ in range(20):
                listening.start_soon(listen)
        others.cancel_scope.cancel()
    assert len(set(seen)) > len(seen) / 20


async def test_a_client_that_hung_up_is_let_go_within_a_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECORDS_PER_READ", 1)
    unused: Any = None
    app = server.application(
        JobService(store),
        Config(),
        publishing=unused,
        check=unused,
        health=unused,
        forecast=unused,
        stop=unused,
        forget=unused,
    )
    sent: list[bytes] = []
    hung_up = anyio.Event()
    requests: AsyncIterator[dict[str, Any]] = asks(hung_up)

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 3:
            hung_up.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "GET",
        "path": "/jobs/1/events",
        "query_string": b"after=0",
        "headers": [],
    }
    with anyio.fail_after(30):
        await app(scope, requests.__anext__, send)
    assert len(sent) <= 5


async def asks(hung_up: anyio.Event) -> AsyncIterator[dict[str, Any]]:
    yield {"type": "http.request", "body": b"", "more_body": False}
    await hung_up.wait()
    while True:
        yield {"type": "http.disconnect"}
