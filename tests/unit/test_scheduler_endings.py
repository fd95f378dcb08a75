"""The scheduler on a virtual clock: stops, deaths of the daemon, and the lives after them."""

from collections.abc import Sequence

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import virtual
from support.small import candidate, task
from support.works import Build, Deliver, Works, begun, same

from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Adapter, Request
from arcd.errors import EngineFailed
from arcd.jobs import events
from arcd.jobs.state import JobState, Phase, State
from arcd.scheduling.rounds import MOST_DEATHS

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


# Ends and new lives.


def check_all_answered_once(works: Works, samples: int = 4) -> None:
    """Each task has its samples and its right answer, and no adapter is left."""
    for job in works.service.state.jobs.values():
        assert job.state is JobState.done
        for each in works.tasks.tasks:
            found = list(works.store.jobs.candidates(job.id, each.id))
            assert sorted((c.test, c.sample) for c in found) == [
                (test, sample) for test in range(len(each.tests)) for sample in range(samples)
            ]
        verdicts = list(works.store.jobs.verdicts(job.id))
        assert [verdict.task for verdict in verdicts] == [each.id for each in works.tasks.tasks]
        assert all(
            attempts[0] == solution
            for verdict in verdicts
            for attempts, solution in zip(
                verdict.attempts, works.tasks.solutions[verdict.task], strict=True
            )
        )
    adapters = works.home / "adapters"
    assert not adapters.exists() or list(adapters.iterdir()) == []


async def test_within_its_grace_a_stop_lets_finish_what_is_in_hand(build: Build) -> None:
    works = build(same(10))
    job = works.submit()
    async with works.running(grace=1000):
        await works.until(lambda state: begun(state.jobs[job]) == 4)
    counts = works.service.state.jobs[job].counts
    assert +counts == {Phase.answered: 4, Phase.waiting: 6}
    assert works.records(events.Released) == []


async def test_after_its_grace_a_stop_sets_aside_what_is_unfinished(build: Build) -> None:
    works = build(same(10))
    job = works.submit()
    async with works.running(grace=5):
        await works.until(lambda state: begun(state.jobs[job]) == 4)
        stopped = anyio.current_time()
        in_flight = {name for _, name in works.service.state.in_flight()}
    assert anyio.current_time() - stopped <= 5
    assert works.service.state.in_flight() == []
    released = set(works.names(events.Released))
    assert released
    assert released <= in_flight
    assert all(t.deaths == 0 for t in works.service.state.jobs[job].tasks.values())


async def test_a_stop_before_the_beginning_is_not_lost(build: Build) -> None:
    works = build(same(2))
    works.submit()
    async with works.running():
        works.scheduler.stop()
        await anyio.wait_all_tasks_blocked()
    assert works.records(events.Started) == []


async def test_a_stop_with_nothing_in_hand_is_at_once(build: Build) -> None:
    works = build(same(2))
    begun = anyio.current_time()
    async with works.running():
        pass
    assert anyio.current_time() == begun


async def test_a_new_life_finishes_what_was_set_aside_and_repeats_nothing(build: Build) -> None:
    # One long answer for each task, so that some samples are there and others are not.
    first = build(same(6, tests=2), engine=Uneven)
    first.submit()
    async with first.running(grace=0):
        await first.until(lambda state: state.jobs[1].tasks["t2"].sampled >= 3)
    set_aside = first.names(events.Released)
    assert "t2" in set_aside
    before = len(first.names(events.Started))
    assert len(first.names(events.Sampled)) < 6 * 2 * 4
    second = build(first.tasks, engine=Uneven)
    await second.finish()
    check_all_answered_once(second)
    assert len(second.names(events.Sampled)) == 6 * 2 * 4
    # What was trained stays so; what was set aside is the first to be begun.
    assert "t2" not in second.trainer.asked
    begun_first = second.names(events.Started)[before:][: len(set_aside)]
    assert set(begun_first) == set(set_aside)


class Uneven(FakeEngine):
    """The first sample of a test takes ten times as long."""

    async def _answer(self, request: Request, adapter: Adapter | None, deliver: Deliver) -> None:
        if request.sample == 0:
            await anyio.sleep(90 * self.seconds_per_token)
        await super()._answer(request, adapter, deliver)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(["stop", "die"]), st.integers(1, 60)), max_size=6))
async def test_whatever_ends_a_life_in_the_end_all_is_answered_and_nothing_twice(
    tmp_path_factory: pytest.TempPathFactory, ends: list[tuple[str, int]]
) -> None:
    home, tasks = tmp_path_factory.mktemp("home"), same(4, tests=2)
    works = Works(home, tasks, engine=Uneven)
    works.submit()
    works.submit(priority=30)
    for end, seconds in ends:
        if end == "stop":
            async with works.running(grace=seconds / 2):
                await anyio.sleep(seconds)
        else:
            with anyio.move_on_after(seconds):
                async with works.running():
                    await anyio.sleep(1e6)
        works.store.close()
        works = Works(home, tasks, engine=Uneven)
    await works.finish()
    if all(end == "stop" for end, _ in ends):
        check_all_answered_once(works)
    for job in (1, 2):
        assert sorted(works.names(events.Answered, job)) == ["t0", "t1", "t2", "t3"]
    assert works.service.state == works.store.journal.state()
    works.store.close()


# Deaths.


def die(works: Works, name: str, times: int) -> None:
    """The daemon died so often with this task in flight."""
    for _ in range(times):
        works.service.emit(1, events.Started(name, 4, 4), events.Interrupted(name))


async def test_a_task_under_suspicion_runs_alone(build: Build) -> None:
    works = build(same(8))
    works.submit()
    die(works, "t5", MOST_DEATHS - 1)
    state = State()
    for record in works.records():
        state.apply(record)
    await works.finish()
    for record in works.records()[state.seq :]:
        state.apply(record)
        if (1, "t5") in state.in_flight():
            assert state.in_flight() == [(1, "t5")]
    assert works.most_in_flight() == works.config.lookahead + 1
    check_all_answered_once(works)


async def test_a_task_under_suspicion_waits_until_the_others_are_through(build: Build) -> None:
    works = build(same(5))
    works.submit()
    async with works.running():
        await works.until(lambda state: begun(state.jobs[1]) == 3)
        second = works.submit(priority=1000)
        works.service.emit(second, events.Started("t0", 4, 4), events.Interrupted("t0"))
        works.service.emit(second, events.Started("t0", 4, 4), events.Interrupted("t0"))
        await works.until(lambda state: all(job.finished for job in state.jobs.values()))
    state = State()
    for record in works.records():
        state.apply(record)
        if state.jobs.get(2) and state.jobs[2].tasks["t0"].deaths == 2:
            assert (2, "t0") not in state.in_flight() or len(state.in_flight()) == 1


@pytest.mark.parametrize("deaths", [MOST_DEATHS, MOST_DEATHS + 2])
async def test_a_task_that_the_daemon_died_with_too_often_is_answered_from_what_it_has(
    build: Build, deaths: int
) -> None:
    works = build(same(4))
    works.submit()
    die(works, "t2", deaths)
    works.service.emit(1, events.Noted("t2", "an old note"))
    works.service.emit(1, events.Sampled("t2", candidate(task("t2"), 0, 0, ((4,),))))
    works.service.emit(1, events.Started("t2", 4, 3), events.Released("t2"))
    before = len(works.names(events.Started))
    await works.finish()
    assert "t2" not in works.trainer.asked
    assert "t2" not in works.names(events.Started)[before:]
    (verdict,) = [found for found in works.store.jobs.verdicts(1) if found.task == "t2"]
    assert verdict.attempts == ((((4,),),),)
    assert verdict.notes == (
        "an old note",
        f"set aside: the daemon died {deaths} times with this task in flight",
    )
    assert works.service.state.jobs[1].state is JobState.done


async def test_a_task_that_is_set_aside_leaves_no_adapter(build: Build) -> None:
    works = build(same(2))
    works.submit()
    serial = works.store.facts.serial()
    folder = works.home / "adapters" / f"adapter-{serial}"
    folder.mkdir(parents=True)
    works.service.emit(1, events.Started("t0", 4, 4), events.Trained("t0", serial, 1, 1, 1.0, 0.5))
    die(works, "t0", MOST_DEATHS)
    await works.finish()
    assert not folder.exists()


async def test_an_adapter_that_is_gone_is_trained_again(build: Build) -> None:
    works = build(same(2))
    works.submit()
    serial = works.store.facts.serial()
    works.service.emit(1, events.Started("t0", 4, 4), events.Trained("t0", serial, 1, 1, 1.0, 0.5))
    works.service.emit(1, events.Released("t0"))
    await works.finish()
    assert sorted(works.trainer.asked) == ["t0", "t1"]
    check_all_answered_once(works)


class Dead(FakeEngine):
    """Stops at the first request."""

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        raise EngineFailed


async def test_a_dead_engine_ends_the_work_with_its_error(build: Build) -> None:
    works = build(same(3), engine=Dead)
    works.submit()
    with pytest.RaisesGroup(EngineFailed, flatten_subgroups=True):
        await works.finish()
