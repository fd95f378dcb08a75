"""Training speed: which lessons it is measured on, and which of their steps count."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.small import task

from arcd.backends.protocols import Adapter, Trained, TrainingStep, TrainRequest
from arcd.cli import bench_speed
from arcd.cli.bench_speed import TIMED_STEPS, WARM_STEPS, quartiles, rate, trainer_rate
from arcd.config import Config, resolve
from arcd.model.encoding import CellEncoding
from arcd.model.lessons import Lessons, build_lessons

STEPS = WARM_STEPS + TIMED_STEPS
CONFIG = resolve(settings=[f"train.steps={STEPS}", "train.batch_size=2"])


def taught(name: str, side: int, config: Config = CONFIG) -> Lessons:
    lessons = build_lessons([task(name, side=side)], config, CellEncoding(), 4096)
    assert isinstance(lessons, Lessons)
    return lessons


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, ["t0"]), (2, ["t0", "t1"]), (4, ["t1", "t2", "t3"]), (9, ["t2", "t4", "t6"])],
)
def test_lessons_are_those_at_the_quartiles_of_length(count: int, expected: list[str]) -> None:
    found = quartiles({f"t{side}": taught(f"t{side}", side + 1) for side in reversed(range(count))})
    assert list(found) == expected


def test_the_first_steps_are_not_counted() -> None:
    slow, quick = 100.0, 0.5
    ends = [slow * (i + 1) for i in range(WARM_STEPS)]
    ends += [ends[-1] + quick * (i + 1) for i in range(TIMED_STEPS)]
    lengths = [1000] * 2 * WARM_STEPS + [10] * 2 * TIMED_STEPS
    assert rate(lengths, 2, ends) == 20 / quick


class Clock:
    """Moves when a step is made."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class SteadyTrainer:
    """Makes each step in half a second, after a start of a minute."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        self.clock.now += 60
        steps = len(wanted.lessons) // wanted.config.batch_size
        for step in range(steps):
            self.clock.now += 0.5
            progress(TrainingStep(step + 1, steps, 0.1, 1.0))
        self.clock.now += 60  # saving is no training
        adapter = Adapter(wanted.serial, Path("adapter"))
        return Trained(adapter, steps, 0, self.clock.now, 0.1)


@pytest.mark.anyio
async def test_a_trainer_is_timed_by_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(bench_speed, "time", clock)
    lessons = taught("t", 3)
    tokens = sum(lessons.lengths[2 * WARM_STEPS :])
    found = await trainer_rate(SteadyTrainer(clock), CONFIG, lessons, serial=0)
    assert found == pytest.approx(tokens / (0.5 * TIMED_STEPS))
