"""The scheduler with the fakes on a virtual clock: forecasts, overlap and its bounds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from support import virtual
from support.small import task, task_set
from support.works import FEW, Build, Deliver, Trainer, Works, same

from arcd.arc.tasks import TaskSet, load
from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Adapter, Request
from arcd.config import resolve
from arcd.jobs import events
from arcd.jobs.events import Times
from arcd.jobs.state import Phase
from arcd.scheduling.budget import SETTLING_S, TIMEOUT_FACTOR
from arcd.scheduling.early_answers import TOLERANCE, early
from arcd.scheduling.fair_queue import Item, Order, johnson, ordered
from arcd.scheduling.flow_shop import FlowShop
from arcd.scheduling.forecast import Rates, times, work

pytestmark = pytest.mark.anyio

DEV100 = Path(__file__).parents[2] / "examples" / "dev100.json"


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


TRAIN = 8.0
"""Seconds that the default trainer needs for one of these: four lessons."""


def answer_seconds(works: Works) -> float:
    """What the engine needs for one of these: their answers are alike."""
    (length,) = {event.candidate.length for event in works.of_kind(events.Sampled)}
    return length * works.seconds_per_token


# Forecasts.


async def test_each_task_is_begun_with_a_prediction_that_comes_true(build: Build) -> None:
    """Once a few tasks have been done: before them nothing is known of the machine."""
    works = build(same(12), trainer=Trainer(tokens_per_second=500), seconds_per_token=0.2)
    first = works.submit(*works.tasks.tasks[:3])
    async with works.running():
        await works.until(lambda state: state.jobs[first].finished)
        number = works.submit(*works.tasks.tasks[3:])
        await works.until(lambda state: state.jobs[number].finished)
    accuracy = works.service.state.jobs[number].accuracy()
    for lane in ("train", "infer"):
        assert 0.8 < accuracy[lane]["p10"] <= accuracy[lane]["p90"] < 1.25


async def test_what_waits_is_predicted_before_it_starts_in_the_order_of_its_turn(
    build: Build,
) -> None:
    chosen = task_set(*(task(f"t{i}", side=3 + i) for i in range(6)))
    trainer = Trainer(seconds_per_step=0.1)
    works = build(chosen, trainer=trainer, seconds_per_token=0.001)
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
@pytest.mark.parametrize(("trainings", "lookahead"), [(1, 99), (1, 2), (2, 2), (3, 1)])
async def test_trainer_and_engine_are_as_fast_as_the_arithmetic_of_their_order(
    build: Build, order: Order, trainings: int, lookahead: int
) -> None:
    works = build(
        mixed(),
        config=resolve(settings=[*FEW, f"lookahead={lookahead}"]),
        trainer=Trainer(tokens_per_second=10),
        engine=OneLane,
        trainings=trainings,
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
    shop = FlowShop(trainings, trainings + lookahead)
    assert measured == pytest.approx(shop.makespan(actual))
    expected = [
        Item(1, each.id, times(work(each, resolve(settings=FEW)))) for each in works.tasks.tasks
    ]
    asked = early(expected, shop) if order == "johnson" else ordered(expected, order)
    assert begun == [item.task for item in asked]


async def test_the_first_answers_of_evaluation_tasks_come_early(build: Build) -> None:
    """Beside the order of Johnson's rule, with two trainings at once, as on two cores."""
    rates = Rates(task=0, step=0, token=1 / 400, round=0.01, prompt=0, row=0)
    chosen = {each.id: each for each in load(f"arc1-eval@{DEV100}").tasks[:40]}
    config = resolve(settings=FEW)
    items = [Item(1, name, times(work(each, config), rates)) for name, each in chosen.items()]
    rule = task_set(*(chosen[item.task] for item in johnson(items)))

    async def first_and_last(order: str) -> tuple[float, float]:
        works = build(
            rule,
            trainer=Trainer(tokens_per_second=1 / rates.token),
            engine=OneLane,
            trainings=2,
            seconds_per_token=rates.round,
        )
        job = works.submit(settings=[*FEW, f"order={order}"])
        await works.finish()
        begun = works.records(events.Started, job)[0].at
        at = [record.at - begun for record in works.records(events.Answered, job)]
        return at[0], at[-1]

    first, last = await first_and_last("file")
    early_first, early_last = await first_and_last("johnson")
    assert early_first < first / 5
    assert early_last <= TOLERANCE * last
