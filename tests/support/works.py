"""One life of a daemon's inner parts, with fakes, for tests on a virtual clock.

`Works` opens the store of a home folder and runs its jobs to the end with a fake trainer and a fake
engine. A second `Works` on the same home is the next life. Knows nothing of processes and HTTP.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypedDict, TypeVar, Unpack

import anyio

from arcd.arc.tasks import Task, TaskSet
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import Completion, Trained, TrainingStep, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.config import Config, resolve
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.journal import new_job
from arcd.jobs.service import JobService
from arcd.jobs.state import Job, Phase, State
from arcd.jobs.store import Store
from arcd.model.encoding import CellEncoding
from arcd.scheduling.rates import RateEstimator
from arcd.scheduling.scheduler import Scheduler
from arcd.system.ledger import Ledger
from support import virtual
from support.small import task, task_set
from support.stores import take_on

Progress = Callable[[TrainingStep], None]
Deliver = Callable[[Completion], None]
E = TypeVar("E", bound=events.Event)

FEW = ["train.steps=4", "train.batch_size=1", "sample.samples=4"]


@dataclass
class Trainer(FakeTrainer):
    """Takes its time by the tokens of the lessons; knows how many trainings there are at once."""

    tokens_per_second: float = 0.0
    asked: list[str] = field(default_factory=list)
    open: int = 0
    most: int = 0

    async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        self.asked.append(wanted.lessons[0].task)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            return await super().train(wanted, progress)
        finally:
            self.open -= 1

    def step_seconds(self, wanted: TrainRequest) -> float:
        if not self.tokens_per_second:
            return super().step_seconds(wanted)
        tokens = sum(len(lesson.tokens) for lesson in wanted.lessons)
        return tokens / self.tokens_per_second / len(wanted.lessons)


@dataclass
class Works:
    """One life of a daemon's inner parts on a home folder."""

    home: Path
    tasks: TaskSet
    config: Config = field(default_factory=lambda: resolve(settings=FEW))
    trainer: Trainer = field(default_factory=lambda: Trainer(seconds_per_step=2.0))
    engine: type[FakeEngine] = FakeEngine
    seconds_per_token: float = 0.5
    trainings: int = 1

    def __post_init__(self) -> None:
        self.store = Store(self.home, clock=anyio.current_time)
        self.service = JobService(self.store)
        for job, name in self.service.state.in_flight():
            self.service.emit(job, events.Interrupted(name))
        self.trainer.folder = self.home / "adapters"
        self.trainer.capacity = self.trainings
        self.trainer.slots = anyio.Semaphore(self.trainings)
        self.scheduler: Scheduler  # from `running` on

    def submit(self, *tasks: Task, priority: int = 10, settings: list[str] = FEW) -> int:
        chosen = TaskSet("some", tasks or self.tasks.tasks, {})
        return take_on(
            self.service, new_job("job", priority, chosen, resolve(settings=settings))
        ).id

    @asynccontextmanager
    async def running(self, grace: float = 1e6) -> AsyncIterator[None]:
        """Working; stopped, with so much grace, at the end of the block."""
        trained = self.trainer.trained
        engine = self.engine(CellEncoding(), self.tasks.solutions, trained, self.seconds_per_token)
        runtime = Runtime(
            self.trainer,
            engine,
            CellEncoding(),
            Ledger(),
            self.store.facts.serial,
            background=virtual.at_once,
        )
        self.scheduler = Scheduler(
            self.service,
            runtime,
            self.config,
            self.home / "adapters",
            RateEstimator(),
            wall=anyio.current_time,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(self.scheduler.run, grace)
            yield
            self.scheduler.stop()

    async def until(self, reached: Callable[[State], bool]) -> None:
        while not reached(self.service.state):
            await self.service.changed()

    async def finish(self) -> float:
        """Work until all jobs are over; the seconds it took."""
        begun = anyio.current_time()
        async with self.running():
            await self.until(lambda state: all(job.finished for job in state.jobs.values()))
        return anyio.current_time() - begun

    def records(
        self, kind: type[events.Event] | None = None, job: int | None = None
    ) -> list[Record]:
        return [
            record
            for record in self.store.journal.records()
            if (kind is None or isinstance(record.event, kind))
            and (job is None or record.job == job)
        ]

    def of_kind(self, kind: type[E], job: int | None = None) -> list[E]:
        """All events of a kind."""
        found = (record.event for record in self.records(job=job))
        return [event for event in found if isinstance(event, kind)]

    def names(self, kind: type[events.TaskEvent], job: int | None = None) -> list[str]:
        """The tasks of all events of a kind."""
        return [event.task for event in self.of_kind(kind, job)]

    def most_in_flight(self) -> int:
        state, most = State(), 0
        for record in self.store.journal.records():
            state.apply(record)
            most = max(most, len(state.in_flight()))
        return most


class Options(TypedDict, total=False):
    """Fields of `Works`."""

    config: Config
    trainer: Trainer
    engine: type[FakeEngine]
    seconds_per_token: float
    trainings: int


class Build(Protocol):
    def __call__(self, tasks: TaskSet, **options: Unpack[Options]) -> Works: ...


@contextmanager
def building(home: Path) -> Iterator[Build]:
    """Makes works on one home; whatever is made is closed."""
    made: list[Works] = []

    def build(tasks: TaskSet, **options: Unpack[Options]) -> Works:
        made.append(Works(home, tasks, **options))
        return made[-1]

    yield build
    for works in made:
        works.store.close()


def same(count: int, **shape: int) -> TaskSet:
    """Tasks that are all alike but for their names."""
    return task_set(*(task(f"t{i}", **shape) for i in range(count)))


def begun(job: Job) -> int:
    """How many of its tasks were begun."""
    return len(job.tasks) - job.counts[Phase.waiting]
