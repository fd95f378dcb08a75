"""Backends without a model: deterministic, instant, for tests, demonstrations and simulations.

The fake trainer remembers which task an adapter was trained for; the fake engine answers a question
rightly only with the adapter of its task. They wait by the event loop's clock, so a test can run
them on a virtual one. Knows nothing of torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import anyio

from arcd.arc.tasks import Solutions
from arcd.backends.protocols import (
    Adapter,
    Completion,
    EngineUsage,
    Request,
    Trained,
    TrainingStep,
    TrainRequest,
)
from arcd.errors import OutOfMemory, SampleRefused, TrainerFailed
from arcd.model.encoding import Encoding
from arcd.model.lessons import lengths
from arcd.model.prompts import Question


@dataclass
class FakeTrainer:
    """Waits `seconds_per_step` for each lesson and trains nothing."""

    seconds_per_step: float = 0.0
    memory: int = 1 << 30
    """Tokens of the longest lesson before OutOfMemory; a frugal training takes twice as many."""
    broken: frozenset[str] = frozenset()
    """Tasks that raise TrainerFailed."""
    capacity: int = 1
    """Trainings at once."""
    folder: Path | None = None
    """If given, each adapter has a folder under it, with its task's name in the file `task`."""
    trained: dict[int, str] = field(default_factory=dict)
    """By an adapter's serial its task."""
    steps: int = 0
    under_way: int = 0

    def __post_init__(self) -> None:
        self.slots = anyio.Semaphore(self.capacity)

    @property
    def busy(self) -> bool:
        return self.under_way > 0

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        self.under_way += 1
        try:
            return await self._train(wanted, progress)
        finally:
            self.under_way -= 1

    def step_seconds(self, wanted: TrainRequest) -> float:
        """Seconds that each lesson of this training takes."""
        return self.seconds_per_step

    async def _train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        lessons, tokens = wanted.lessons, lengths(wanted.lessons)
        task = lessons[0].task
        if task in self.broken:
            raise TrainerFailed
        if max(tokens) > self.memory * (1 + wanted.frugal):
            raise OutOfMemory
        for step in range(1, len(lessons) + 1):
            await anyio.sleep(self.step_seconds(wanted))
            self.steps += 1
            progress(TrainingStep(step, len(lessons), 1 / step, 1000.0))
        self.trained[wanted.serial] = task
        adapter = Adapter(wanted.serial, self._save(wanted.serial, task))
        seconds = self.step_seconds(wanted) * len(lessons)
        return Trained(adapter, len(lessons), sum(tokens), seconds, 0.0)

    def _save(self, serial: int, task: str) -> Path:
        path = (self.folder or Path()) / f"adapter-{serial}"
        if self.folder:
            path.mkdir(parents=True)
            (path / "task").write_text(task)
        return path


@dataclass
class FakeEngine:
    """Answers from `solutions` with the adapter of the task; with any other it repeats the prompt.

    A repetition ends where the prompt has an end token, else at the limit. A token of the answer
    that it would give has a logprob of -0.1, of any other answer -1. Requests are answered side by
    side.
    """

    encoding: Encoding
    solutions: Solutions
    adapters: Mapping[int, str]
    """By an adapter's serial its task: `FakeTrainer.trained`."""
    seconds_per_token: float = 0.0
    """Seconds that each token of an answer takes; a given answer takes as long as one token."""
    broken: frozenset[str] = frozenset()
    """Tasks whose adapters are refused."""
    steps: int = 0
    open: int = 0
    unread_usage: list[EngineUsage] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return self.open > 0

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        if adapter is not None and self._task_of(adapter) in self.broken:
            raise SampleRefused
        generated: list[int] = []

        def note(completion: Completion) -> None:
            generated.append(len(completion.tokens))
            deliver(completion)

        self.open += 1
        try:
            async with anyio.create_task_group() as answers:
                for request in requests:
                    answers.start_soon(self._answer, request, adapter, note)
        finally:
            self.open -= 1
        prompt = sum(len(request.question.tokens) for request in requests)
        rounds = max(generated, default=0)
        seconds = rounds * self.seconds_per_token
        self.unread_usage.append(EngineUsage(rounds, prompt, sum(generated), seconds))

    def usage(self) -> list[EngineUsage]:
        usage, self.unread_usage = self.unread_usage, []
        return usage

    async def _answer(
        self, request: Request, adapter: Adapter | None, deliver: Callable[[Completion], None]
    ) -> None:
        question = request.question
        adapted = adapter is not None and self._task_of(adapter) == question.task
        knows = adapted and question.task in self.solutions
        likely = self._solution(question) if knows else self._repetition(question)
        likely = likely[: question.max_new_tokens]
        tokens = likely if request.answer is None else request.answer
        await anyio.sleep(self.seconds_per_token * (len(tokens) if request.answer is None else 1))
        self.steps += 1
        closed = request.answer is not None or tokens[-1] == self.encoding.end
        finish: Literal["stop", "length"] = "stop" if closed else "length"
        logprob = -0.1 if list(tokens) == likely else -1.0
        deliver(Completion(request, tuple(tokens), (logprob,) * len(tokens), finish))

    def _task_of(self, adapter: Adapter) -> str | None:
        """The task of an adapter; one of an earlier process is known by the file in its folder."""
        left = adapter.path / "task"
        known = self.adapters.get(adapter.serial)
        return left.read_text() if known is None and left.is_file() else known

    def _solution(self, question: Question) -> list[int]:
        grid = self.solutions[question.task][question.test]
        return self.encoding.answer(question.view.apply(grid))

    def _repetition(self, question: Question) -> list[int]:
        end = self.encoding.end
        if end in question.tokens:
            return list(question.tokens[: question.tokens.index(end) + 1])
        return list(islice(cycle(question.tokens), question.max_new_tokens))
