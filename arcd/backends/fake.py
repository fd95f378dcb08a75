"""Backends without a model: deterministic, instant, for tests, demonstrations and simulations.

The fake trainer remembers which task its adapter was made for; the fake engine answers a question
well only with the adapter of that task. Time is the event loop's, so a test may run it virtually.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import anyio

from arcd.backends import Adapter, Completion, Request, Trained, TrainingStep
from arcd.encoding import Encoding
from arcd.errors import OutOfMemory, TrainerFailed
from arcd.prompts import Lesson, Question
from arcd.tasks import Solutions


@dataclass
class FakeTrainer:
    """Trains nothing, in `seconds_per_step` for each lesson.

    Lessons of more than `memory` tokens raise OutOfMemory, in frugal mode those of more than
    twice as many; tasks in `broken` raise TrainerFailed.
    """

    seconds_per_step: float = 0.0
    memory: int = 1 << 30
    broken: frozenset[str] = frozenset()
    trained: dict[int, str] = field(default_factory=dict)
    """The task of each adapter's serial."""

    async def train(
        self,
        lessons: Sequence[Lesson],
        seed: int,
        progress: Callable[[TrainingStep], None],
        *,
        frugal: bool = False,
    ) -> Trained:
        if lessons[0].task in self.broken:
            raise TrainerFailed
        if max(len(lesson.tokens) for lesson in lessons) > self.memory * (1 + frugal):
            raise OutOfMemory
        for step in range(1, len(lessons) + 1):
            await anyio.sleep(self.seconds_per_step)
            progress(TrainingStep(step, len(lessons), 1 / step, 1000.0))
        serial = len(self.trained)
        self.trained[serial] = lessons[0].task
        tokens = sum(len(lesson.tokens) for lesson in lessons)
        adapter = Adapter(serial, Path(f"fake-{serial}"))
        return Trained(adapter, len(lessons), tokens, self.seconds_per_step * len(lessons), 0.0)


@dataclass
class FakeEngine:
    """Answers from `solutions` with the adapter of the task; else it repeats the prompt.

    A repetition ends where the prompt has an end token, or at the limit. Every answer takes
    `seconds_per_token` times its length, all requests side by side.
    """

    encoding: Encoding
    solutions: Solutions
    adapters: Mapping[int, str]
    """The task of each adapter's serial, as the trainer made them."""
    seconds_per_token: float = 0.0

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        async with anyio.create_task_group() as answers:
            for request in requests:
                answers.start_soon(self._answer, request, adapter, deliver)

    async def _answer(
        self, request: Request, adapter: Adapter | None, deliver: Callable[[Completion], None]
    ) -> None:
        question = request.question
        knows = adapter is not None and self.adapters.get(adapter.serial) == question.task
        tokens = self._solution(question) if knows else self._repetition(question)
        tokens = tokens[: question.max_new_tokens]
        await anyio.sleep(self.seconds_per_token * len(tokens))
        closed = tokens[-1] == self.encoding.end
        finish: Literal["stop", "length"] = "stop" if closed else "length"
        deliver(Completion(request, tuple(tokens), (-0.1,) * len(tokens), finish))

    def _solution(self, question: Question) -> list[int]:
        grid = self.solutions[question.task][question.test]
        return self.encoding.answer(question.view.apply(grid))

    def _repetition(self, question: Question) -> list[int]:
        end = self.encoding.end
        if end in question.tokens:
            return list(question.tokens[: question.tokens.index(end) + 1])
        return list(islice(cycle(question.tokens), question.max_new_tokens))
