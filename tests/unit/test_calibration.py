"""Calibration with the fakes on a virtual clock: it finds their speed and leaves nothing behind."""

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import anyio
import pytest
from support import virtual
from support.small import task

from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.runtime import Runtime
from arcd.backends.trainer_pool import TrainerPool
from arcd.config import resolve
from arcd.model.encoding import CellEncoding
from arcd.scheduling.calibration import TIMEOUT_S, calibrate
from arcd.scheduling.forecast import COLD, times, work
from arcd.scheduling.rates import RateEstimator
from arcd.system.ledger import Ledger

pytestmark = pytest.mark.anyio

NOTHING: frozenset[str] = frozenset()
CALIBRATION = frozenset({"calibration"})
"""The tasks that are trained and sampled to calibrate."""


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@dataclass
class Machine:
    """A runtime of fakes at a certain speed."""

    folder: Path
    seconds_per_step: float = 0.01
    seconds_per_token: float = 0.002
    broken: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    settings: list[str] = field(default_factory=list)
    trainings: int = 1

    async def calibrate(self) -> RateEstimator:
        trained: dict[int, str] = {}
        trainers = [
            FakeTrainer(
                self.seconds_per_step, broken=self.broken, folder=self.folder, trained=trained
            )
            for _ in range(self.trainings)
        ]
        engine = FakeEngine(CellEncoding(), {}, trained, self.seconds_per_token, self.refused)
        serials = count()
        runtime = Runtime(
            TrainerPool(trainers),
            engine,
            CellEncoding(),
            Ledger(),
            lambda: next(serials),
        )
        return await calibrate(runtime, resolve(settings=self.settings))


async def test_the_speed_of_the_machine_is_known_afterwards(tmp_path: Path) -> None:
    settings = ["train.steps=10", "train.batch_size=1"]
    measured = await Machine(tmp_path, settings=settings).calibrate()
    assert measured.known
    found = times(work(task(), resolve(settings=settings)), measured.rates)
    # The fake takes its time for each lesson, and for each token of the longest answer.
    assert found.train == pytest.approx(10 * 0.01, rel=0.3)
    assert found.infer == pytest.approx(13 * 0.002, rel=0.3)


async def test_a_machine_a_hundred_times_slower_is_found_to_be_so(tmp_path: Path) -> None:
    fast = await Machine(tmp_path / "a").calibrate()
    slow = await Machine(tmp_path / "b", 0.2, 0.04).calibrate()
    for rate in ("step", "token", "round"):
        before, after = getattr(fast.rates, rate), getattr(slow.rates, rate)
        assert after == pytest.approx(20 * before, rel=0.01)


async def test_it_leaves_no_adapter_behind(tmp_path: Path) -> None:
    await Machine(tmp_path).calibrate()
    assert list(tmp_path.iterdir()) == []


async def test_it_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    begun = anyio.current_time()
    measured = await Machine(tmp_path, seconds_per_step=5.0).calibrate()
    assert anyio.current_time() - begun == pytest.approx(TIMEOUT_S)
    assert not measured.known
    assert list(tmp_path.iterdir()) == []


async def test_without_training_only_the_engine_is_measured(tmp_path: Path) -> None:
    measured = await Machine(tmp_path, settings=["train.steps=0"]).calibrate()
    assert measured.rates.token == COLD.token
    assert measured.rates.round != COLD.round


async def test_as_many_trainings_as_there_will_be_at_once_are_measured_at_once(
    tmp_path: Path,
) -> None:
    begun = anyio.current_time()
    await Machine(tmp_path / "a").calibrate()
    one, begun = anyio.current_time() - begun, anyio.current_time()
    measured = await Machine(tmp_path / "b", trainings=3).calibrate()
    assert anyio.current_time() - begun == pytest.approx(one)
    assert len(measured.to_json()["trainer"]) == 12
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize("trainings", [1, 2])
@pytest.mark.parametrize(
    ("broken", "refused"),
    [(CALIBRATION, NOTHING), (NOTHING, CALIBRATION)],
    ids=["broken", "refused"],
)
async def test_where_nothing_works_the_daemon_starts_all_the_same(
    tmp_path: Path, broken: frozenset[str], refused: frozenset[str], trainings: int
) -> None:
    machine = Machine(tmp_path, broken=broken, refused=refused, trainings=trainings)
    assert not (await machine.calibrate()).known
    assert list(tmp_path.iterdir()) == []
