"""The predictor: how many seconds tasks will take here, from their grids and what was measured.

It holds what is learnt while tasks are solved: the rates of trainer and engine, and how much slower
a task is sampled beside others. Knows nothing of the order of tasks or of budgets.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import anyio

from arcd.arc.tasks import Task
from arcd.backends.runtime import Runtime
from arcd.config import Config
from arcd.jobs import events
from arcd.jobs.events import Times
from arcd.jobs.service import JobService
from arcd.jobs.state import Job
from arcd.scheduling.budget import Pace
from arcd.scheduling.fair_queue import Item
from arcd.scheduling.forecast import NO_WORK, Sizes, Work, times, work
from arcd.scheduling.rates import RateEstimator
from arcd.scheduling.sharing import AdapterGroups


@dataclass(slots=True, eq=False)
class InFlight:
    """A task that was begun and is not answered: how to end it, and what it should take."""

    item: Item
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    work: Work = NO_WORK
    """What it was given to do."""
    trained: bool = False
    sampling_since: float | None = None
    """In the event loop's time."""
    alone: float = 0.0
    """Predicted seconds of sampling, when it began, with the engine for itself."""
    expected: float = 0.0
    """The same beside the tasks in flight then."""


class Predictor:
    """Predicts before a task is begun, learns when it is answered."""

    def __init__(
        self,
        service: JobService,
        runtime: Runtime,
        estimator: RateEstimator,
        groups: AdapterGroups,
        most_in_flight: int,
    ) -> None:
        self._service, self._runtime, self._groups = service, runtime, groups
        self._estimator, self._most_in_flight = estimator, most_in_flight
        self._sizes = Sizes(runtime.encoding)
        self._pace = Pace()
        self._last_answer = -math.inf

    def work_of(self, job: Job, task: str, config: Config) -> Work:
        """The work that a waiting task will be, with the training for those of its group."""
        found = self._task_work(job, task, config)
        if not job.tasks[task].needs_training:
            return found.untrained
        for other in self._groups.of(job, task):
            if other != task:
                theirs = self._task_work(job, other, config)
                found += replace(theirs - theirs.untrained, trainings=0)
        return found

    def _task_work(self, job: Job, task: str, config: Config) -> Work:
        return work(self._service.store.jobs.task(job.id, task), config, self._sizes)

    def alone(self, amount: Work) -> Times:
        """Seconds of this work with trainer and engine for itself."""
        return times(amount, self._estimator.rates)

    def work_as_planned(self, task: Task, config: Config) -> Work:
        """The work of a task that begins with this configuration."""
        return work(task, config, self._sizes)

    def beside_others(self, alone: Times) -> Times:
        """Seconds from the first step to the last of what takes these alone."""
        return self._pace.of_task(alone)

    def busy(self, amount: Work) -> Times:
        """Seconds that all this work keeps the trainer, and the engine, busy."""
        found = self._pace.of_work(self.alone(amount))
        return replace(found, train=found.train / self._runtime.trainer.capacity)

    def training_left(self, in_flight: Iterable[InFlight]) -> float:
        """Seconds that the trainer still needs for tasks in flight."""
        training = sum(self.alone(each.work).train for each in in_flight if not each.trained)
        return training / self._runtime.trainer.capacity

    def start_sampling(self, flight: InFlight, others: Iterable[InFlight]) -> float:
        """Called when a task begins to be sampled; returns after how many seconds to end it."""
        flight.alone = self.alone(flight.work).infer
        beside = [self.alone(other.work).infer for other in others if other is not flight]
        longest = max([flight.alone, *beside])
        # As many tasks as can still join it, each as long as the longest.
        joining = max(0, self._most_in_flight - 1 - len(beside))
        flight.expected = flight.alone + sum(beside) + joining * longest
        flight.sampling_since = anyio.current_time()
        return self._pace.timeout(flight.expected)

    def learn_step(self, flight: InFlight, event: events.Training) -> None:
        """Measure by a training that goes on: the first predictions need not wait for its end."""
        if math.isfinite(event.tokens_per_second) and event.tokens_per_second > 0:
            tokens = flight.work.train * event.step / event.steps
            self._estimator.training(event.step, tokens, tokens / event.tokens_per_second)

    def learn_training(self, event: events.Trained) -> None:
        """Measure by a training that is done."""
        self._estimator.trained(event.steps, event.tokens, event.seconds)

    def learn_sampling(self, flight: InFlight | None) -> None:
        """Measure by a task that was answered; None if nobody worked on it."""
        self._estimator.stepped(*self._runtime.engine.usage())
        now = anyio.current_time()
        if flight and flight.sampling_since is not None and not flight.scope.cancel_called:
            # Before the last answer the engine worked for that task, too.
            engine = now - max(flight.sampling_since, self._last_answer)
            wall = now - flight.sampling_since
            # By the rates as they are known now: of the first tasks nothing was known before. The
            # pace is what is left, how much slower a task is beside others.
            alone = self.alone(flight.work).infer
            expected = flight.expected * (alone / flight.alone if flight.alone else 1.0)
            self._pace.sampled(alone, expected, engine=engine, wall=wall)
        self._last_answer = now
