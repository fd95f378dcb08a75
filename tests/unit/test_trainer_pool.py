"""The pool: as many trainings at once as it has trainers; one that hangs is noticed."""

from dataclasses import dataclass, field

import anyio
import pytest
from support import virtual
from support.small import task

from arcd.backends.fake import FakeTrainer
from arcd.backends.protocols import Trained, TrainRequest
from arcd.backends.runtime import _CoreSplit
from arcd.backends.trainer_pool import TrainerPool
from arcd.config import resolve
from arcd.errors import TrainerFailed
from arcd.model.encoding import CellEncoding
from arcd.model.lessons import build_lessons
from arcd.model.prompts import TooLong

pytestmark = pytest.mark.anyio

CONFIG = resolve(settings=["train.steps=10", "train.batch_size=1"])


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


def request(serial: int, name: str = "t") -> TrainRequest:
    lessons = build_lessons([task(name)], CONFIG, CellEncoding(), 4096)
    assert not isinstance(lessons, TooLong)
    return TrainRequest(lessons, CONFIG.train, 0, serial)


@dataclass
class Pool:
    trainers: list[FakeTrainer] = field(
        default_factory=lambda: [FakeTrainer(1.0, broken=frozenset({"bad"})) for _ in range(2)]
    )
    done: list[Trained] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = TrainerPool(self.trainers)

    async def train(self, serial: int) -> None:
        self.done.append(await self.pool.train(request(serial), lambda _: None))


async def test_trainings_are_side_by_side() -> None:
    pool = Pool()
    async with anyio.create_task_group() as group:
        for serial in range(2):
            group.start_soon(pool.train, serial)
    assert anyio.current_time() == 10
    assert {done.adapter.serial for done in pool.done} == {0, 1}
    assert [len(trainer.trained) for trainer in pool.trainers] == [1, 1]


async def test_one_after_the_other_the_first_has_them_all() -> None:
    pool = Pool()
    for serial in range(3):
        await pool.train(serial)
    assert [len(trainer.trained) for trainer in pool.trainers] == [3, 0]
    assert not pool.pool.busy


async def test_a_trainer_that_failed_is_free_again() -> None:
    pool = Pool()
    for _ in range(3):
        with pytest.raises(TrainerFailed):
            await pool.pool.train(request(0, "bad"), lambda _: None)
    await pool.train(1)
    assert len(pool.done) == 1


async def test_it_is_known_who_is_alone() -> None:
    pool = Pool()
    async with anyio.create_task_group() as group:
        assert pool.pool.alone(0)
        group.start_soon(pool.train, 0)
        await anyio.sleep(0.5)
        assert pool.pool.alone(0)
        assert not pool.pool.alone(1)
        group.start_soon(pool.train, 1)
        await anyio.sleep(0.5)
        assert not pool.pool.alone(0)


async def test_steps_go_on_while_all_go_on_and_stand_still_when_one_hangs() -> None:
    pool = Pool()

    async def beats(count: int) -> int:
        """Of so many seconds, those in which the steps went on."""
        found = 0
        for _ in range(count):
            before = pool.pool.steps
            await anyio.sleep(1.0)
            found += pool.pool.steps != before
        return found

    async with anyio.create_task_group() as group:
        group.start_soon(pool.train, 0)
        await anyio.sleep(0.5)
        assert await beats(2) == 2
        group.start_soon(pool.train, 1)
        await anyio.sleep(0.1)
        assert await beats(4) >= 3
        pool.trainers[1].seconds_per_step = 1e6
        await beats(2)
        assert await beats(1) == 0, "the other one still makes steps"
        await anyio.sleep(10)
        group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("cores", "trainings"),
    [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (6, 3), (8, 4), (16, 8), (3, 2)],
)
def test_threads_never_outnumber_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, trainings: int
) -> None:
    """OpenMP counts the threads of all teams that were ever made, less the first of each."""
    monkeypatch.setattr("arcd.backends.runtime.cores", lambda: cores)
    split = _CoreSplit(trainings)
    largest = [
        max(
            split.of_trainer(i, alone=alone, engine_busy=busy)
            for alone in (True, False)
            for busy in (True, False)
        )
        for i in range(trainings)
    ]
    assert 1 + sum(n - 1 for n in [*largest, split.of_engine]) <= cores
    together = sum(split.of_trainer(i, alone=False, engine_busy=True) for i in range(trainings))
    assert together + split.of_engine <= max(cores, trainings + 1)
    alone = split.of_trainer(0, alone=True, engine_busy=False)
    assert alone >= split.of_trainer(0, alone=False, engine_busy=False)
    if trainings == 1:
        assert alone == cores - split.of_engine + 1
