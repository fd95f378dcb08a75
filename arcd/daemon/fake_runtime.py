"""A daemon's runtime of fakes: `arcd run TASKS --backend fake`, for demonstrations without torch.

The fake engine answers with the tasks' known solutions, which it reads from the store of the home
as soon as a job brings them; a task without known solutions gets a grid of a likely shape.
Everything else of the daemon is real. Knows nothing of models.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace

from arcd.arc.grids import Grid
from arcd.arc.tasks import Task
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import (
    Adapter,
    Completion,
    Request,
    Trained,
    TrainingStep,
    TrainRequest,
)
from arcd.backends.runtime import Runtime
from arcd.daemon.options import Options
from arcd.daemon.phases import Platform
from arcd.jobs.store import Store
from arcd.model.device import Device
from arcd.model.encoding import CellEncoding
from arcd.system.home import Home
from arcd.system.ledger import Ledger

STEP_S = 0.0015
"""Seconds of a training step: with 60 steps, 12 tasks are trained in little more than a second."""

TOKEN_S = 0.001
"""Seconds of a token: a grid of 10x10 takes 0.1 s, so that training and sampling overlap."""

REPORTED_STEPS = 10
"""Every so many steps progress is reported: each report is a write to the disk (1 to 7 ms)."""


def find_platform(options: Options) -> Platform:
    """The fakes run anywhere; nothing is read of the base."""
    return Platform("fake", Device("cpu", "float32", "fake"))


@asynccontextmanager
async def open_runtime(
    options: Options,
    platform: Platform,
    *,
    rank: int,
    ledger: Ledger,
    serial: Callable[[], int],
) -> AsyncIterator[Runtime]:
    """A fake trainer and a fake engine at a pace that can be watched."""
    home = Home(options.home)
    encoding = CellEncoding()
    trainer = _Trainer(STEP_S, folder=home.adapters, ledger=ledger)
    with closing(Store(home.path, "read")) as store:
        answers = StoredAnswers(store, options.base_name)
        engine = _Engine(encoding, answers, trainer.trained, TOKEN_S, ledger=ledger)
        yield Runtime(trainer, engine, encoding, ledger, serial)


@dataclass(kw_only=True)
class _Trainer(FakeTrainer):
    """Makes a step of each batch, reports some of them, and keeps the ledger."""

    ledger: Ledger

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        def report(now: TrainingStep) -> None:
            if now.step % REPORTED_STEPS == 0 or now.step == now.steps:
                progress(now)

        batches = wanted.lessons[:: wanted.config.batch_size]
        with self.ledger.span("trainer", "step"):
            return await super().train(replace(wanted, lessons=batches), report)


@dataclass(kw_only=True)
class _Engine(FakeEngine):
    """Keeps the ledger."""

    ledger: Ledger

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        with self.ledger.span("engine", "step"):
            await super().sample(requests, adapter, deliver)


class StoredAnswers(Mapping[str, tuple[Grid, ...]]):
    """What to answer to each task of the jobs that a store has for a base, also of later jobs.

    By task id one grid for each test: the solution where it is known, else `guess`. A task that
    stands in several jobs is answered as in the last of them. Tasks are read one by one, when they
    are asked for.
    """

    def __init__(self, store: Store, base: str) -> None:
        self._store, self._base = store, base

    def __getitem__(self, task: str) -> tuple[Grid, ...]:
        for job in sorted(self._jobs(), reverse=True):
            if (found := self._store.jobs.solved(job, task)) is not None:
                return found[1] or guess(found[0])
        raise KeyError(task)

    def __iter__(self) -> Iterator[str]:
        return iter({task: None for job in self._jobs() for task in self._store.jobs.names(job)})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _jobs(self) -> list[int]:
        return [job for job, base in self._store.jobs.bases().items() if base == self._base]


def guess(task: Task) -> tuple[Grid, ...]:
    """A grid of a likely shape for each test of a task.

    The test input itself where every demonstration keeps the shape of its input, else the output
    of the first demonstration.
    """
    if all(_shape(pair.input) == _shape(pair.output) for pair in task.train):
        return task.tests
    return (task.train[0].output,) * len(task.tests)


def _shape(grid: Grid) -> tuple[int, int]:
    return len(grid), len(grid[0])
