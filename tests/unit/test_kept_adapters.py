"""Adapters on the disk: those that the state still needs, whatever happens to jobs."""

import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Unpack

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import virtual
from support.works import FEW, Build, Options, Progress, Trainer, Works, building, same

from arcd.arc.selection import Verdict
from arcd.arc.tasks import TaskSet
from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Trained, TrainRequest
from arcd.errors import BadJob, DiskFull
from arcd.jobs import events, recovery
from arcd.jobs.events import Record
from arcd.jobs.state import Job, Phase, State
from arcd.model.prompts import Question
from arcd.scheduling.adapter_folder import AdapterFolder
from arcd.scheduling.kept_adapters import KeptAdapters
from arcd.scheduling.sharing import AdapterGroups

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """The disk is not waited for."""
    with building(tmp_path) as build:

        def quick(tasks: TaskSet, **options: Unpack[Options]) -> Works:
            works = build(tasks, **options)
            works.store.database.connection.execute("PRAGMA synchronous = OFF")
            return works

        yield quick


BUDGET = [*FEW, "budget.seconds=400", "budget.reserve=10"]


@dataclass
class Refusing(FakeEngine):
    """Takes the adapter of no task whose name ends with 1; no two of its answers are alike."""

    broken: frozenset[str] = frozenset({"t1"})

    def _solution(self, question: Question) -> list[int]:
        shade = random.Random(f"{question.view}").randrange(10)
        return self.encoding.answer(((shade, shade),))


def on_disk(works: Works) -> set[int]:
    folder = works.home / "adapters"
    found = folder.iterdir() if folder.is_dir() else ()
    return {int(each.name.removeprefix("adapter-")) for each in found}


async def test_an_adapter_that_the_engine_refuses_is_deleted(build: Build) -> None:
    works = build(same(3), engine=Refusing)
    works.submit()
    await works.finish()
    (refused,) = [event for event in works.of_kind(events.Trained) if event.task == "t1"]
    assert works.service.state.jobs[1].tasks["t1"].answered_by is None
    assert refused.adapter not in on_disk(works)


@pytest.mark.parametrize("seconds", range(20, 260, 30))
async def test_a_job_with_a_budget_that_is_cancelled_leaves_no_adapter(
    build: Build, seconds: float
) -> None:
    works = build(same(4), engine=Refusing)
    job = works.submit(settings=BUDGET)
    async with works.running():
        await anyio.sleep(seconds)
        works.service.cancel(job)
        await works.until(lambda state: not state.in_flight())
        assert on_disk(works) == set()


class Small(Trainer):
    """Has no room for a third adapter."""

    async def _train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        assert self.folder is not None
        if self.folder.is_dir() and len(list(self.folder.iterdir())) > 1:
            raise DiskFull("adapters: no room")
        return await super()._train(wanted, progress)


async def test_what_is_kept_for_later_rounds_makes_room_where_the_disk_is_full(
    build: Build,
) -> None:
    works = build(same(5), engine=Refusing, trainer=Small(seconds_per_step=2.0))
    job = works.submit(settings=BUDGET)
    await works.finish()
    found = works.service.state.jobs[job].tasks
    assert all(each.notes == () for name, each in found.items() if name != "t1")
    assert all(each.answered_by is not None for name, each in found.items() if name != "t1")
    assert len(works.of_kind(events.Trained)) > 5


async def test_with_nothing_to_make_room_a_full_disk_is_waited_for(build: Build) -> None:
    works = build(same(3), trainer=Small(seconds_per_step=2.0))
    works.submit()
    others = [works.home / "adapters" / f"adapter-{1000 + i}" for i in range(2)]
    async with works.running():
        for other in others:
            other.mkdir(parents=True)
        await anyio.sleep(1000)
        assert works.of_kind(events.Answered) == []
        assert [event.note for event in works.of_kind(events.Noted)] == [
            "had to wait for room on the disk: adapters: no room"
        ]
        for other in others:
            other.rmdir()
        await works.until(lambda state: state.jobs[1].finished)
    assert all(each.answered_by is not None for each in works.service.state.jobs[1].tasks.values())


# Whatever happens to jobs.


def check(works: Works) -> None:
    """There is what tasks are sampled with, and beside it what their next rounds begin with."""
    needed: set[int | None] = set()
    kept: set[int | None] = set()
    for job in works.service.state.jobs.values():
        for each in job.tasks.values():
            goes_on = each.in_flight or (each.phase is Phase.waiting and not job.cancelled)
            if goes_on:
                needed.add(each.adapter)
            if job.budget is not None and not job.finished and (goes_on or each.retriable):
                kept.add(each.answered_by)
    found: set[int | None] = set(on_disk(works))
    assert needed - {None} <= found <= needed | kept


Action = tuple[str, int]

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["submit", "budget", "groups"]), st.just(0)),
        st.tuples(st.sampled_from(["pause", "resume", "cancel", "retry"]), st.integers(1, 4)),
        st.tuples(st.sampled_from(["sleep", "stop", "die"]), st.integers(1, 150)),
    ),
    min_size=1,
    max_size=16,
)

SUBMITTED = {"submit": FEW, "budget": BUDGET, "groups": [*FEW, "train.share=2"]}


async def do(works: Works, what: str, number: int) -> None:
    if what in SUBMITTED:
        works.submit(settings=SUBMITTED[what])
    elif what in ("sleep", "stop", "die"):
        await anyio.sleep(number)
    else:
        with suppress(BadJob):
            getattr(works.service, what)(number)
    await anyio.wait_all_tasks_blocked()
    check(works)


async def live(works: Works, actions: Iterator[Action]) -> bool:
    """One life; whether it ended before all was done that is to be done."""
    with anyio.CancelScope() as life:
        async with works.running(grace=5):
            for what, number in actions:
                await do(works, what, number)
                if what == "stop":
                    return True
                if what == "die":
                    life.cancel()
                    await anyio.sleep_forever()
            for job in works.service.state.jobs.values():
                with suppress(BadJob):
                    works.service.resume(job.id)
            await works.until(lambda state: all(job.finished for job in state.jobs.values()))
            await works.until(lambda state: not state.in_flight())
            return False
    return True


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ACTIONS)
async def test_the_adapters_on_the_disk_are_those_that_are_needed(
    tmp_path_factory: pytest.TempPathFactory, actions: list[Action]
) -> None:
    home, left = tmp_path_factory.mktemp("home"), iter(actions)
    goes_on = True
    while goes_on:
        works = Works(home, same(4), engine=Refusing)
        works.store.database.connection.execute("PRAGMA synchronous = OFF")
        found = recovery.plan(works.service.state, {}, "", since=0)
        AdapterFolder(home / "adapters").keep_only(found.adapters)
        goes_on = await live(works, left)
        works.store.close()
    assert on_disk(works) == set()


async def test_an_adapter_whose_end_a_death_has_prevented_ends_with_the_next_life(
    build: Build,
) -> None:
    works = build(same(2))
    job = works.submit(settings=BUDGET)

    def answered() -> list[int]:
        tasks = works.service.state.jobs[job].tasks.values()
        return [task.answered_by for task in tasks if task.answered_by is not None]

    async with works.running(grace=0.0):
        await works.until(lambda _: bool(answered()))
    assert not works.service.state.jobs[job].finished
    (serial,) = answered()
    left = works.home / "adapters" / f"adapter-{serial}"
    left.mkdir(parents=True)  # as if the process had died before it deleted it
    async with build(same(2)).running(grace=0.0):
        assert not left.exists()


class Looks(AdapterGroups):
    """Counts how often somebody asks for a group of tasks."""

    asked = 0

    def of(self, job: Job, task: str) -> tuple[str, ...]:
        Looks.asked += 1
        return super().of(job, task)


@pytest.mark.parametrize("in_flight", [True, False])
def test_what_happens_to_a_large_group_is_heard_group_by_group(
    tmp_path: Path, in_flight: bool
) -> None:
    """Not task by task with all others of the group: that took minutes for 400 tasks."""
    names = tuple(f"t{i}" for i in range(100))
    state, numbers = State(), count(1)
    state.apply(Record(next(numbers), 0.0, 1, events.Submitted("job", 10, names)))
    groups = Looks()
    groups.add(state.jobs[1], len(names))

    def hear(kept: KeptAdapters, event: events.Event) -> int:
        Looks.asked = 0
        record = Record(next(numbers), 0.0, 1, event)
        state.apply(record)
        kept.hear(state.jobs[1], record)
        return Looks.asked

    adapters = tmp_path / "adapters"
    before = KeptAdapters(AdapterFolder(adapters), groups, state.jobs)
    hear(before, events.Started("t0", 1, 1))
    hear(before, events.Trained("t0", 7, 1, 1, 1.0, 1.0))
    for name in names[1:]:
        hear(before, events.Shared(name, 7))
    (adapters / "adapter-7").mkdir(parents=True)
    kept = KeptAdapters(AdapterFolder(adapters), groups, state.jobs)
    assert hear(kept, events.Answered("t1", Verdict("t1", ((),), 0, 0, 7))) < 5
    if not in_flight:
        assert hear(kept, events.Released("t0")) < 5
    assert hear(kept, events.Cancelled()) < 2 * len(names)
    assert (adapters / "adapter-7").exists() == in_flight
    if in_flight:
        assert hear(kept, events.Released("t0")) < 5
        assert not (adapters / "adapter-7").exists()


def test_room_is_made_only_where_something_was_deleted(tmp_path: Path) -> None:
    """Else a training would be tried again and again, without a rest, while the disk is full."""
    state, numbers = State(), count(1)

    def happen(event: events.Event) -> None:
        state.apply(Record(next(numbers), 0.0, 1, event))

    happen(events.Submitted("job", 10, ("t",), 400.0))
    happen(events.Answered("t", Verdict("t", ((),), 0, 0, 3)))
    happen(events.Retried(("t",)))
    happen(events.Started("t", 1, 1))
    happen(events.Trained("t", 7, 1, 1, 1.0, 1.0))
    happen(events.Released("t"))
    for serial in (3, 7):
        (tmp_path / f"adapter-{serial}").mkdir()
    kept = KeptAdapters(AdapterFolder(tmp_path), AdapterGroups(), state.jobs)
    assert kept.make_room()
    assert [folder.name for folder in tmp_path.iterdir()] == ["adapter-7"]
    assert not kept.make_room()
