"""An assignment: a task, how it is to be solved, and what earlier attempts have left.

From it follow the lessons that are trained on and the requests that are sampled, the same for the
same seed on every machine. Knows nothing of trainers and engines but their messages.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from arcd.arc.selection import Candidate
from arcd.arc.tasks import Task
from arcd.backends.protocols import Adapter, Request
from arcd.config import Config
from arcd.jobs.events import Times
from arcd.model.encoding import Encoding
from arcd.model.prompts import Lesson, Question, TooLong, build_lessons
from arcd.system.seeds import seed_of


@dataclass(frozen=True)
class Assignment:
    """A task, how it is to be solved, and what earlier attempts at it have left.

    In round 0 a task is solved for the first time, in each later one with other lessons, views and
    samples, which are numbered from `first_sample` on. `adapter` was trained in this round already,
    `start` in an earlier one, to go on from; `candidates` are those of all rounds. The adapter
    learns from the demonstrations of all tasks in `taught`.
    """

    task: Task
    config: Config
    taught: tuple[Task, ...] = ()
    """By default the task alone."""
    round: int = 0
    first_sample: int = 0
    adapter: Adapter | None = None
    start: Path | None = None
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    predicted: Times | None = None
    patience: Callable[[], float] = lambda: math.inf
    """Asked when sampling begins: seconds until it is ended, and the samples there are voted on."""

    def lessons(self, encoding: Encoding, limit: int) -> list[Lesson] | TooLong:
        """What the adapter is to learn, each lesson of at most `limit` tokens."""
        return build_lessons(self.taught or (self.task,), self.settings, encoding, limit)

    @property
    def settings(self) -> Config:
        """The configuration with the seed of this round."""
        if self.round == 0:
            return self.config
        return self.config.model_copy(
            update={"seed": seed_of(self.config.seed, "round", self.round)}
        )


def build_requests(
    task: Task, questions: Sequence[Question | TooLong], config: Config, first: int = 0
) -> list[Request]:
    """The samples of each test dealt out to its questions in turn, numbered from `first` on."""
    requests = []
    count = config.sample.samples
    for test in range(len(task.tests)):
        asked = [q for q in questions if isinstance(q, Question) and q.test == test]
        for i in range(count if asked else 0):
            seed = seed_of(config.seed, task.id, "sample", test, i)
            question = asked[i % len(asked)]
            requests.append(Request(question, first + i, seed, config.sample.temperature))
    return requests


def open_requests(requests: list[Request], candidates: Iterable[Candidate]) -> list[Request]:
    """The requests of which there is no candidate yet."""
    done = {(candidate.test, candidate.sample) for candidate in candidates}
    return [r for r in requests if (r.question.test, r.sample) not in done]
