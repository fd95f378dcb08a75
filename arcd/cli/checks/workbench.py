"""What the checks of trainer and engine share: a runtime, small tasks, two trained adapters.

Everything beyond the protocols is given to it, so that a test can put faults in. Knows nothing of
processes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache

from arcd.arc.tasks import Task, load
from arcd.backends.protocols import Adapter, Completion, Request, TrainingStep, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.config import Config, TrainConfig
from arcd.errors import ArcdError
from arcd.model.device import Device
from arcd.model.lessons import build_lessons
from arcd.model.prompts import Lesson, Question, build_questions

TAUGHT = ("25ff71a9", "a85d4709")
"""Tasks of 3 x 3 cells: a lesson takes 100 tokens in cells, and an adapter for each is trained."""

MEASURED = "6d75e8bb"
"""A task of grids from 7 x 8 to 14 x 10, on whose lessons and questions speed is measured."""

TRIAL_STEPS = 12
"""Steps of a trial adapter: enough for its answers to be other ones than those of the base."""

TRIAL_LR = 4e-3
"""Its learning rate, whatever the user's: a wrong or missing adapter has to be seen."""


@dataclass
class Workbench:
    """A runtime that is open, and what else the checks need."""

    runtime: Runtime
    config: Config
    device: Device
    window: float
    """Seconds that a measurement lasts."""
    memory: Callable[[], Mapping[str, int]]
    """Bytes in use: of the "process" in RAM, on a GPU of its "tensors" there."""
    pressure: Callable[[], AbstractContextManager[str]]
    """While it is open, the engine gets no memory."""
    fallbacks: Callable[[], int] = lambda: 0
    """How often the engine has found no memory and begun again with fewer requests at once."""
    compiled: Callable[[], bool | None] = lambda: None
    """Whether the trainer's functions are compiled; None if they never will be."""
    reading: Callable[[], bool] = lambda: False
    """Whether they are being read, which the first training after that begins."""
    clock: Callable[[], float] = time.monotonic
    _adapters: list[Adapter] = field(default_factory=list)

    @property
    def trial(self) -> TrainConfig:
        """The user's settings of adapters, with what a check needs in place of the rest."""
        changed = {"steps": TRIAL_STEPS, "lr": TRIAL_LR, "start": None, "share": 1, "dropout": 0.0}
        return self.config.train.model_copy(update=changed)

    def lessons(self, task: Task, steps: int) -> Sequence[Lesson]:
        """Those of so many steps. Raises ArcdError where none fits the context."""
        train = self.trial.model_copy(update={"steps": steps})
        config = self.config.model_copy(update={"train": train})
        found = build_lessons([task], config, self.runtime.encoding, train.max_seq_len)
        if isinstance(found, Sequence):
            return found
        raise ArcdError(str(found))

    def questions(self, task: Task, count: int, max_new_tokens: int) -> list[Question]:
        """A test of the task in so many views, with answers of at most so many tokens.

        Raises ArcdError where none fits the context.
        """
        sample = self.config.sample.model_copy(update={"samples": count, "views": None})
        config = self.config.model_copy(update={"sample": sample})
        found = [
            replace(each, max_new_tokens=min(each.max_new_tokens, max_new_tokens))
            for each in build_questions(task, config, self.runtime.encoding)
            if isinstance(each, Question) and each.test == 0
        ]
        if not found:
            raise ArcdError(f"{task.id}: no question fits engine.max_model_len")
        return found

    async def train(
        self,
        lessons: Sequence[Lesson],
        config: TrainConfig,
        start: Adapter | None = None,
        progress: Callable[[TrainingStep], None] = lambda _: None,
    ) -> Adapter:
        """Train an adapter, with a slot of the trainer held."""
        path = None if start is None else start.path
        wanted = TrainRequest(lessons, config, seed=1, serial=self.runtime.serial(), start=path)
        async with self.runtime.trainer.slots:
            return (await self.runtime.trainer.train(wanted, progress)).adapter

    async def adapters(self) -> tuple[Adapter, Adapter]:
        """One for each of the TAUGHT tasks; they are trained when they are first asked for."""
        for name in TAUGHT[len(self._adapters) :]:
            lessons = self.lessons(task_of(name), TRIAL_STEPS)
            self._adapters.append(await self.train(lessons, self.trial))
        first, second = self._adapters
        return first, second

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None
    ) -> dict[int, Completion]:
        """The completions by the numbers of their requests, which must differ.

        Raises ArcdError if not each request was answered once.
        """
        found: list[Completion] = []
        await self.runtime.engine.sample(requests, adapter, found.append)
        numbers = sorted(each.request.sample for each in found)
        if numbers != sorted(request.sample for request in requests):
            raise ArcdError(f"{len(requests)} requests had {len(numbers)} answers")
        return {each.request.sample: each for each in found}


@cache
def task_of(name: str) -> Task:
    """A training task of ARC-AGI-1."""
    return load(f"arc1-train:{name}").tasks[0]


def greedy(questions: Sequence[Question]) -> list[Request]:
    """A request of the likeliest answer to each question, numbered from 0."""
    return [Request(question, index, seed=0) for index, question in enumerate(questions)]
