"""The trainer pool: several trainers of one adapter at a time as one `Trainer`.

On a CPU two trainings with a core each get more done than one training with two cores. Knows
nothing of what the trainers are.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from arcd.backends.protocols import Trained, TrainingStep, TrainRequest


class SingleTrainer(Protocol):
    """Trains one adapter at a time, and calls `progress` after each step."""

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        """See `Trainer.train`."""
        ...


class TrainerPool:
    """A `Trainer` that gives each training to the first of its trainers that is idle."""

    def __init__(self, trainers: Sequence[SingleTrainer]) -> None:
        """Make a pool of one trainer or more."""
        self.capacity = len(trainers)
        self.slots = anyio.Semaphore(self.capacity)
        self.steps = 0
        """See `Trainer.steps`: a training that hangs stops it, whatever the others do."""
        self._trainers = trainers
        self._stepped: dict[int, bool] = {}
        """By trainer at work, whether it has made a step since `steps` last rose."""

    @property
    def busy(self) -> bool:
        """See `Trainer.busy`."""
        return bool(self._stepped)

    def alone(self, index: int) -> bool:
        """Whether no trainer other than this one is busy."""
        # Trainers ask in their threads; one look at the keys is atomic under the GIL.
        return not self._stepped.keys() - {index}

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        """See `Trainer.train`; called with a slot held."""
        index = min(set(range(self.capacity)) - self._stepped.keys())

        def count(step: TrainingStep) -> None:
            self._count(index)
            progress(step)

        self._stepped[index] = False
        try:
            return await self._trainers[index].train(wanted, count)
        finally:
            del self._stepped[index]
            self.steps += 1  # the end of a training is progress

    def _count(self, index: int) -> None:
        self._stepped[index] = True
        if all(self._stepped.values()):
            self.steps += 1
            self._stepped = dict.fromkeys(self._stepped, False)
