"""The scheduler with the fakes on a virtual clock: overlap, bounds, shares, ends and new lives."""

import cProfile
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypedDict, Unpack

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import virtual
from support.small import candidate, task, task_set
from support.works import FEW, Deliver, Progress, Trainer, Works

from arcd import config
from arcd.arc.tasks import TaskSet
from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Adapter, Completion, Request, Trained, TrainRequest
from arcd.config import Config, resolve
from arcd.errors import EngineFailed, TrainerFailed
from arcd.jobs import events, state
from arcd.jobs.events import Record, Times
from arcd.jobs.service import JobService
from arcd.jobs.state import JobState, Phase, State
from arcd.scheduling import fair_queue, forecast, scheduler
from arcd.scheduling.budget import SETTLING_S, TIMEOUT_FACTOR
from arcd.scheduling.fair_queue import Item, Order, makespan, ordered
from arcd.scheduling.forecast import times, work
from arcd.scheduling.rounds import MOST_DEATHS

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@dataclass
class OneLane(FakeEngine):
    """Answers one task at a time."""

    lane: anyio.Lock = field(default_factory=anyio.Lock)

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        async with self.lane:
            await super().sample(requests, adapter, deliver)


class Options(TypedDict, total=False):
    """Fields of `Works`."""

    config: Config
    trainer: Trainer
    engine: type[FakeEngine]
    seconds_per_token: float
    calibrated: bool
    trainings: int


class Build(Protocol):
    def __call__(self, tasks: TaskSet, **options: Unpack[Options]) -> Works: ...


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes works on one home; whatever is made is closed."""
    made: list[Works] = []

    def build(tasks: TaskSet, **options: Unpack[Options]) -> Works:
        made.append(Works(tmp_path, tasks, **options))
        return made[-1]

    yield build
    for works in made:
        works.store.close()


def same(count: int, **shape: int) -> TaskSet:
    """Tasks that are all alike but for their names."""
    return task_set(*(task(f"t{i}", **shape) for i in range(count)))


TRAIN = 8.0
"""Seconds that the default trainer needs for one of these: four lessons."""


def answer_seconds(works: Works) -> float:
    """What the engine needs for one of these: their answers are alike."""
    (length,) = {event.candidate.length for event in works.of_kind(events.Sampled)}
    return length * works.seconds_per_token


# Forecasts.


async def test_each_task_is_begun_with_a_prediction_that_comes_true(build: Build) -> None:
    works = build(
        same(12), trainer=Trainer(tokens_per_second=500), seconds_per_token=0.2, calibrated=True
    )
    number = works.submit()
    await works.finish()
    accuracy = works.service.state.jobs[number].accuracy()
    for lane in ("train", "infer"):
        assert 0.8 < accuracy[lane]["p10"] <= accuracy[lane]["p90"] < 1.25


async def test_what_waits_is_predicted_before_it_starts_in_the_order_of_its_turn(
    build: Build,
) -> None:
    chosen = task_set(*(task(f"t{i}", side=3 + i) for i in range(6)))
    trainer = Trainer(seconds_per_step=0.1)
    works = build(chosen, trainer=trainer, seconds_per_token=0.001, calibrated=True)
    number = works.submit(settings=[*FEW, "order=file"])
    async with works.running():
        await works.until(lambda state: state.jobs[number].counts[Phase.answered] >= 1)
        found = works.scheduler.predicted(number)
        tasks = works.service.state.jobs[number].tasks.items()
        waiting = [name for name, each in tasks if each.phase is Phase.waiting]
        assert list(found) == waiting
        sizes = [times.train for times in found.values()]
        assert sizes == sorted(sizes)
        assert works.scheduler.left(number) == pytest.approx(sum(sizes), rel=0.01)
        await works.until(lambda state: state.jobs[number].finished)
        assert works.scheduler.predicted(number) == {}
        assert works.scheduler.left(number) == 0


@pytest.mark.parametrize("samples", [4, 8])
async def test_a_task_that_hangs_is_ended_after_a_time_that_follows_from_its_samples(
    build: Build, samples: int
) -> None:
    """Twice the samples, of which each is drawn for itself, are given twice the time."""

    class OneByOne(FakeEngine):
        async def sample(
            self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
        ) -> None:
            if requests[0].question.task == "t11":
                await anyio.sleep_forever()
            for request in requests:
                await super().sample([request], adapter, deliver)

    works = build(same(12), engine=OneByOne, config=resolve(settings=[*FEW, "lookahead=0"]))
    works.submit(settings=[*FEW, f"sample.samples={samples}"])
    await works.finish()
    begun, ended = (
        next(
            record.at
            for record in works.records()
            if isinstance(record.event, kind) and record.event.task == "t11"
        )
        for kind in (events.Trained, events.Answered)
    )
    alone = samples * answer_seconds(works)
    assert ended - begun == pytest.approx(TIMEOUT_FACTOR * alone + SETTLING_S, rel=0.2)


# Overlap and its bounds.


@pytest.mark.parametrize("lookahead", [0, 1, 2, 5])
async def test_never_more_in_hand_than_may_be_and_never_two_in_training(
    build: Build, lookahead: int
) -> None:
    settings = [*FEW, f"lookahead={lookahead}"]
    works = build(same(12), config=resolve(settings=settings), seconds_per_token=3.0)
    works.submit()
    await works.finish()
    assert works.most_in_flight() == lookahead + 1
    assert works.trainer.most == 1
    assert Counter(works.names(events.Answered)) == Counter(t.id for t in works.tasks.tasks)


@pytest.mark.parametrize("trainings", [1, 2, 3])
async def test_as_many_are_trained_at_once_as_the_rig_can(build: Build, trainings: int) -> None:
    works = build(same(12), trainings=trainings, seconds_per_token=0.001)
    works.submit()
    measured = await works.finish()
    assert works.trainer.most == trainings
    assert works.most_in_flight() <= 2 + trainings
    assert measured == pytest.approx(12 * TRAIN / trainings, rel=0.01)


async def test_training_and_inference_overlap(build: Build) -> None:
    works = build(same(20))
    works.submit()
    measured = await works.finish()
    infer = answer_seconds(works)
    serial, bound = 20 * (TRAIN + infer), 20 * TRAIN + infer
    assert serial > 1.3 * bound
    assert measured == pytest.approx(bound)


async def test_with_nothing_in_hand_beyond_the_one_in_training_nothing_overlaps(
    build: Build,
) -> None:
    works = build(same(5), config=resolve(settings=[*FEW, "lookahead=0"]))
    works.submit()
    measured = await works.finish()
    assert measured == pytest.approx(5 * (TRAIN + answer_seconds(works)))


def mixed() -> TaskSet:
    """Tasks of which some train long and are answered soon, and some the other way round."""
    shapes = [(3, 6, 1), (8, 2, 1), (2, 8, 2), (6, 3, 3), (4, 4, 1), (2, 2, 4), (7, 5, 1)]
    return task_set(
        *(
            task(f"t{i}", side=side, pairs=pairs, tests=tests)
            for i, (side, pairs, tests) in enumerate(shapes * 2)
        )
    )


@pytest.mark.parametrize("order", ["johnson", "file", "cheapest"])
async def test_two_lanes_are_as_fast_as_the_arithmetic_of_their_order(
    build: Build, order: Order
) -> None:
    works = build(
        mixed(),
        config=resolve(settings=[*FEW, "lookahead=99"]),
        trainer=Trainer(tokens_per_second=10),
        engine=OneLane,
    )
    works.submit(settings=[*FEW, f"order={order}"])
    measured = await works.finish()
    trained = {event.task: event.seconds for event in works.of_kind(events.Trained)}
    longest: Counter[str] = Counter()
    for event in works.of_kind(events.Sampled):
        found = event.candidate
        longest[found.task] = max(longest[found.task], found.length)
    begun = works.names(events.Started)
    actual = [Times(trained[name], longest[name] * works.seconds_per_token) for name in begun]
    assert measured == pytest.approx(makespan(actual))
    expected = [
        Item(1, each.id, times(work(each, resolve(settings=FEW)))) for each in works.tasks.tasks
    ]
    assert begun == [item.task for item in ordered(expected, order)]


# Several jobs.


async def test_two_jobs_share_by_their_priorities(build: Build) -> None:
    works = build(same(40))
    first, second = works.submit(priority=10), works.submit(priority=30)
    async with works.running():
        await works.until(lambda state: sum(map(begun, state.jobs.values())) == 40)
        shares = [begun(works.service.state.jobs[job]) for job in (first, second)]
        assert shares == [pytest.approx(10, abs=1), pytest.approx(30, abs=1)]
        works.service.cancel(first)
        works.service.cancel(second)


def begun(job: state.Job) -> int:
    return len(job.tasks) - job.counts[Phase.waiting]


async def test_a_job_that_comes_late_begins_soon_and_starves_nobody(build: Build) -> None:
    works = build(same(30))
    first = works.submit()
    async with works.running():
        await works.until(lambda state: begun(state.jobs[first]) == 20)
        second = works.submit()
        await works.until(lambda state: sum(map(begun, state.jobs.values())) == 30)
        assert abs(begun(works.service.state.jobs[second]) - 5) <= 1
        await works.until(lambda state: all(job.finished for job in state.jobs.values()))
    assert works.most_in_flight() <= works.config.lookahead + 1


async def test_a_job_that_comes_while_nothing_is_to_be_done_is_begun_at_once(build: Build) -> None:
    works = build(same(2))
    async with works.running():
        await anyio.sleep(100)
        assert not works.service.state.in_flight()
        job = works.submit()
        await works.until(lambda state: state.jobs[job].finished)
    assert works.records(events.Started)[0].at == works.records(events.Submitted)[0].at


async def test_jobs_of_the_same_task_names_do_not_meet(build: Build) -> None:
    works = build(same(3))
    works.submit()
    works.submit(settings=[*FEW, "seed=9"])
    await works.finish()
    for job in (1, 2):
        assert sorted(works.names(events.Answered, job)) == ["t0", "t1", "t2"]
        assert len(list(works.store.jobs.candidates(job))) == 12


# Pauses, cancellations, retries.


async def test_a_paused_job_finishes_what_is_in_hand_and_begins_nothing(build: Build) -> None:
    works = build(same(10))
    job = works.submit()
    async with works.running():
        await works.until(lambda state: begun(state.jobs[job]) == 4)
        works.service.pause(job)
        await anyio.sleep(1000)
        assert +works.service.state.jobs[job].counts == {Phase.answered: 4, Phase.waiting: 6}
        assert not works.service.state.in_flight()
        works.service.resume(job)
        await works.until(lambda state: state.jobs[job].finished)
    assert works.records(events.Released) == []


async def test_a_paused_job_leaves_the_machine_to_the_others(build: Build) -> None:
    works = build(same(6))
    first, second = works.submit(), works.submit()
    works.service.pause(first)
    async with works.running():
        await works.until(lambda state: state.jobs[second].finished)
        assert +works.service.state.jobs[first].counts == {Phase.waiting: 6}


async def test_a_cancelled_job_stops_at_once_and_the_others_go_on(build: Build) -> None:
    works = build(same(6))
    first, second = works.submit(), works.submit()
    async with works.running():
        await works.until(lambda state: state.jobs[first].counts[Phase.answered] == 1)
        in_flight = [name for job, name in works.service.state.in_flight() if job == first]
        assert in_flight
        works.service.cancel(first)
        await works.until(lambda state: state.jobs[second].finished)
    cancelled = works.records(events.Cancelled, first)[0]
    after = [r for r in works.records(job=first) if r.seq > cancelled.seq]
    assert [r.event for r in after] == [events.Released(name) for name in in_flight]
    assert {r.at for r in after} == {cancelled.at}
    assert works.service.state.jobs[first].state is JobState.cancelled
    assert works.most_in_flight() <= works.config.lookahead + 1


async def test_the_trainer_is_free_again_after_a_cancellation(build: Build) -> None:
    works = build(same(3))
    first = works.submit()
    async with works.running():
        await works.until(lambda state: bool(state.training))
        works.service.cancel(first)
        second = works.submit()
        cancelled = anyio.current_time()
        await works.until(lambda state: not state.training)
        await works.until(lambda state: bool(state.training))
        assert anyio.current_time() - cancelled == works.trainer.seconds_per_step
        await works.until(lambda state: state.jobs[second].finished)


async def test_a_job_that_is_held_waits_until_it_is_resumed(build: Build) -> None:
    works = build(same(2))
    job = works.submit()
    works.service.held.add(job)
    async with works.running():
        await anyio.sleep(100)
        assert works.records(events.Started) == []
        works.service.resume(job)
        await works.until(lambda state: state.jobs[job].finished)


class Stammering(FakeEngine):
    """Does not come to the end of the answers to the first four samples of t1."""

    async def _answer(self, request: Request, adapter: Adapter | None, deliver: Deliver) -> None:
        def cut(completion: Completion) -> None:
            bad = completion.request.question.task == "t1" and completion.request.sample < 4
            deliver(replace(completion, finish="length") if bad else completion)

        await super()._answer(request, adapter, cut)


async def test_a_failed_task_is_done_once_more_with_all_candidates(build: Build) -> None:
    works = build(same(3), engine=Stammering)
    job = works.submit()
    async with works.running():
        await works.until(lambda state: state.jobs[job].finished)
        assert works.service.state.jobs[job].retriable() == ["t1"]
        works.service.retry(job)
        await works.until(lambda state: state.jobs[job].finished)
    assert Counter(works.names(events.Answered)) == {"t0": 1, "t1": 2, "t2": 1}
    samples = [candidate.sample for candidate in works.store.jobs.candidates(job, "t1")]
    assert sorted(samples) == list(range(8))
    (verdict,) = [found for found in works.store.jobs.verdicts(job) if found.task == "t1"]
    assert verdict.samples == 8
    assert works.tasks.solutions["t1"][0] in verdict.attempts[0]
    assert works.service.state.jobs[job].tasks["t1"].round == 1


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


# Shared adapters.


SHARED = [*FEW, "train.share=3"]


def answered_by(works: Works, job: int = 1) -> dict[str, int | None]:
    return {name: t.answered_by for name, t in works.service.state.jobs[job].tasks.items()}


async def test_neighbours_share_an_adapter_that_is_there_until_the_last_is_answered(
    build: Build,
) -> None:
    works = build(same(8), config=resolve(settings=SHARED))
    works.submit(settings=SHARED)
    there: list[set[int]] = []

    def look(record: Record) -> None:
        if isinstance(record.event, events.Sampled):
            folders = (works.home / "adapters").iterdir()
            there.append({int(folder.name.removeprefix("adapter-")) for folder in folders})
            assert record.event.candidate.adapter in there[-1]

    works.service.subscribe(look)
    await works.finish()
    found = list(answered_by(works).values())
    assert [len(set(found[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(found)) == 3 == len(works.records(events.Trained))
    assert None not in found
    assert there
    assert not list((works.home / "adapters").iterdir())
    # As many steps for each task as if it had an adapter of its own.
    assert [event.steps for event in works.of_kind(events.Trained)] == [12, 12, 8]


async def test_where_the_first_cannot_be_trained_another_one_trains_for_all(build: Build) -> None:
    class Fussy(Trainer):
        async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
            if len(self.asked) == 0:
                self.asked.append("refused")
                raise TrainerFailed("not this one")
            return await super().train(wanted, progress)

    works = build(same(3), trainer=Fussy(seconds_per_step=2.0))
    works.submit(settings=SHARED)
    await works.finish()
    found = answered_by(works)
    assert sum(serial is None for serial in found.values()) == 1
    assert len(works.records(events.Trained)) == 1


async def test_a_new_life_trains_no_group_again_that_has_its_adapter(build: Build) -> None:
    first = build(same(6))
    first.submit(settings=SHARED)
    async with first.running(grace=0):
        await first.until(lambda state: state.jobs[1].counts[Phase.answered] >= 1)
    trained = len(first.records(events.Trained))
    first.store.close()
    second = build(same(6))
    second.trainer.trained = first.trainer.trained
    await second.finish()
    assert len(second.records(events.Trained)) == 2 >= trained >= 1
    assert len(set(answered_by(second).values())) == 2


async def test_a_task_that_is_retried_does_not_take_the_adapter_from_the_others(
    build: Build,
) -> None:
    works = build(same(3), config=resolve(settings=["lookahead=0"]))
    works.submit(settings=SHARED)
    async with works.running():
        await works.until(lambda state: state.jobs[1].counts[Phase.answered] == 1)
        works.service.emit(1, events.Retried(tuple(works.names(events.Answered)[:1])))
        works.service.wake()
        await works.until(lambda state: state.jobs[1].finished)
    again, *others = works.names(events.Answered)[:3]
    found = answered_by(works)
    assert found[again] != found[others[0]] == found[others[1]]


@given(
    share=st.integers(1, 5), count=st.integers(1, 9), lookahead=st.integers(0, 3), deaths=st.data()
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_task_is_answered_once_with_its_groups_adapter(
    tmp_path_factory: pytest.TempPathFactory,
    share: int,
    count: int,
    lookahead: int,
    deaths: st.DataObject,
) -> None:
    home = tmp_path_factory.mktemp("home")
    asked = [*FEW, f"train.share={share}"]
    trained: dict[int, str] = {}
    for life in range(3):
        works = Works(home, same(count), config=resolve(settings=[f"lookahead={lookahead}"]))
        works.trainer.trained = trained
        if not life:
            works.submit(settings=asked)
        if life < 2:
            async with works.running(grace=0):
                with anyio.move_on_after(deaths.draw(st.floats(0, 60))):
                    await works.until(lambda state: state.jobs[1].finished)
        else:
            await works.finish()
            found = list(answered_by(works).values())
            assert sorted(works.names(events.Answered)) == sorted(t.id for t in same(count).tasks)
            for i in range(0, count, share):
                assert len(set(found[i : i + share])) == 1
            assert len(works.records(events.Trained)) == -(-count // share)
            assert not list((home / "adapters").iterdir())
        works.store.close()


# Many tasks.

MANY = 10_000


@contextmanager
def profiled(
    profile: cProfile.Profile, service: JobService, first: int, last: int
) -> Iterator[None]:
    """The profile runs from the `first` answer to the `last` one."""
    answered = 0

    def listen(record: Record) -> None:
        nonlocal answered
        if isinstance(record.event, events.Answered):
            answered += 1
            if answered == first:
                profile.enable()
            elif answered == last:
                profile.disable()

    service.subscribe(listen)
    yield
    profile.disable()


def seconds_in(profile: cProfile.Profile, *modules: ModuleType) -> float:
    """Seconds in functions of these modules and in what is written in C that they call."""
    files = {module.__file__ for module in modules}
    return sum(
        entry.inlinetime
        for entry in profile.getstats()
        if not isinstance(entry.code, str) and entry.code.co_filename in files
    )


@pytest.mark.full
@pytest.mark.timing
@pytest.mark.timeout(600)
async def test_ten_thousand_tasks_take_neither_memory_nor_the_schedulers_time(build: Build) -> None:
    """With the real store, but for the disk's own time: nothing is waited for to reach it.

    The scheduler's time is that in the functions of scheduler, fair_queue, state and forecast, as
    cProfile tells it for a thousand tasks in the middle; profiling makes that rather too much.
    """
    tiny = ["train.steps=1", "train.batch_size=1", "sample.samples=1"]
    works = build(
        same(MANY, side=1, pairs=2),
        config=resolve(settings=tiny),
        trainer=Trainer(seconds_per_step=1.0),
    )
    works.store.database.connection.execute("PRAGMA synchronous = OFF")
    works.trainer.folder = None
    works.submit(settings=tiny)
    profile = cProfile.Profile(builtins=False)
    resident: dict[int, int] = {}

    async def measure(answered: int) -> None:
        await works.until(lambda state: state.jobs[1].counts[Phase.answered] >= answered)
        works.trainer.asked.clear()
        resident[answered] = resident_bytes()

    with profiled(profile, works.service, 4000, 5000):
        async with works.running():
            await measure(1000)
            await measure(MANY)
    per_task = seconds_in(profile, scheduler, fair_queue, state, forecast, config) / 1000
    grown = resident[MANY] - resident[1000]
    print(f"{per_task * 1e3:.3f} ms and {grown / (MANY - 1000):.0f} bytes for each task")
    assert works.service.state.jobs[1].state is JobState.done
    assert per_task < 1e-3
    assert grown < 16 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
