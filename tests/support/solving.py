"""One task solved on a runtime of fakes, and engines that refuse or never end.

`Bench` solves its task and keeps the events, what the trainer was asked for, and the engines. Knows
nothing of jobs, the scheduler and the store.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TypedDict, Unpack

import anyio

from arcd.arc.selection import Candidate, Verdict
from arcd.arc.tasks import Task
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import Adapter, Request, Trained, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.config import Config, resolve
from arcd.errors import SampleRefused
from arcd.jobs import events
from arcd.model.encoding import CellEncoding
from arcd.model.lessons import build_lessons
from arcd.model.prompts import Lesson, Question, TooLong, build_questions
from arcd.solver.assignment import Assignment
from arcd.solver.solve import solve
from arcd.system.ledger import Ledger
from support.small import solutions, task
from support.works import Deliver, Progress


@dataclass
class Recorded(FakeTrainer):
    """Remembers what it was asked for."""

    asked: list[TrainRequest] = field(default_factory=list)

    async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        # As a list, which can be compared.
        self.asked.append(replace(wanted, lessons=list(wanted.lessons)))
        return await super().train(wanted, progress)


class Left(TypedDict, total=False):
    """What earlier attempts have left: fields of an assignment."""

    round: int
    first_sample: int
    adapter: Adapter
    start: Path
    answered_by: int
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    sampling_timeout_s: Callable[[], float]
    make_room: Callable[[], bool]


@dataclass
class Bench:
    """A task on a runtime of fakes, with the events that were emitted."""

    task: Task = field(default_factory=task)
    config: Config = field(default_factory=lambda: resolve(settings=["train.steps=4"]))
    trainer: Recorded = field(default_factory=Recorded)
    engine: type[FakeEngine] = FakeEngine
    seen: list[events.Event] = field(default_factory=list)
    serials: Iterator[int] = field(default_factory=count)
    engines: list[FakeEngine] = field(default_factory=list)
    """Those that were made."""

    async def solve(self, **left: Unpack[Left]) -> Verdict:
        """The verdict, with what earlier attempts have left."""
        assignment = Assignment(self.task, self.config, **left)
        return await solve(assignment, self.runtime(), self.seen.append)

    def runtime(self) -> Runtime:
        engine = self.engine(CellEncoding(), solutions([self.task]), self.trainer.trained)
        self.engines.append(engine)
        return Runtime(
            self.trainer, engine, CellEncoding(), Ledger(), serial=lambda: next(self.serials)
        )

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(e.candidate for e in self.seen if isinstance(e, events.Sampled))


def lessons_of(tasks: list[Task], config: Config, limit: int = 4096) -> list[Lesson]:
    lessons = build_lessons(tasks, config, CellEncoding(), limit)
    assert not isinstance(lessons, TooLong)
    return list(lessons)


def questions_of(asked: Task, config: Config) -> list[Question]:
    """They all fit."""
    questions = list(build_questions(asked, config, CellEncoding()))
    fitting = [each for each in questions if isinstance(each, Question)]
    assert len(fitting) == len(questions)
    return fitting


@dataclass
class Asked(FakeEngine):
    """Remembers what it was asked for."""

    requests: list[Request] = field(default_factory=list)

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        self.requests += requests
        await super().sample(requests, adapter, deliver)


class Unending(FakeEngine):
    """Answers all but the last request, and that one never."""

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        await super().sample(requests[:-1], adapter, deliver)
        await anyio.sleep_forever()


class RefusesAll(FakeEngine):
    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        raise SampleRefused("no")
