"""The pool: several trainers as one, so that several adapters can be trained at once.

On a CPU, two trainings with a core each get through more than one with two. Knows nothing of what
the trainers are.
"""

from collections.abc import Callable, Sequence

from arcd.backends.protocols import Trained, Trainer, TrainingStep, TrainRequest


class TrainerPool:
    """Gives each training to the first of its trainers that is idle; there must be one."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self._trainers = trainers
        self._steps = 0
        self._seen = [0] * len(trainers)
        self._taken = [False] * len(trainers)

    @property
    def busy(self) -> bool:
        """See `Trainer.busy`."""
        return any(self._taken)

    @property
    def steps(self) -> int:
        """See `Trainer.steps`; goes on only when each training under way has made a step.

        So a training that hangs is noticed whatever the others do.
        """
        taken = [i for i, taken in enumerate(self._taken) if taken]
        if taken and all(self._trainers[i].steps != self._seen[i] for i in taken):
            self._steps += 1
            for i in taken:
                self._seen[i] = self._trainers[i].steps
        return self._steps

    def alone(self, index: int) -> bool:
        """Whether no other trainer than this one is busy."""
        return not any(taken for i, taken in enumerate(self._taken) if i != index)

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        """See `Trainer.train`."""
        index = self._taken.index(False)
        self._taken[index] = True
        self._seen[index] = self._trainers[index].steps
        try:
            return await self._trainers[index].train(wanted, progress)
        finally:
            self._taken[index] = False
            self._steps += 1  # one that ends has got on
