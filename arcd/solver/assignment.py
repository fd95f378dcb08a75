"""An assignment: a task, how it is to be solved, and what earlier attempts have left.

It gives the lessons to train on and the requests to sample, the same for the same seed on every
machine. Knows nothing of trainers and engines but their messages.
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
from arcd.model.lessons import Lessons, build_lessons
from arcd.model.prompts import Question, TooLong, build_questions
from arcd.system.seeds import seed_of


@dataclass(frozen=True)
class Assignment:
    """A task, how it is to be solved, and what earlier attempts at it have left.

    In round 0 a task is solved for the first time; each later round has other lessons, views and
    samples, because its seed is another.
    """

    task: Task
    config: Config
    taught: tuple[Task, ...] = ()
    """The tasks whose demonstrations the adapter learns; by default this task alone."""
    round: int = 0
    first_sample: int = 0
    """The number of the round's first sample of each test."""
    adapter: Adapter | None = None
    """The adapter, if it was trained in this round already."""
    start: Path | None = None
    """The folder of an earlier round's adapter, from which training goes on."""
    answered_by: int | None = None
    """The number of the adapter that an earlier round's answer is from."""
    candidates: tuple[Candidate, ...] = ()
    """Those of all rounds."""
    notes: tuple[str, ...] = ()
    predicted: Times | None = None
    sampling_timeout_s: Callable[[], float] = lambda: math.inf
    """Called when sampling begins. After so many seconds it is ended, and the candidates there are
    are voted on."""
    make_room: Callable[[], bool] = lambda: False
    """Called when the disk is full: deletes what can be done without, and tells whether there was
    anything."""

    @property
    def round_config(self) -> Config:
        """The configuration with the seed of this round."""
        if self.round == 0:
            return self.config
        return self.config.model_copy(
            update={"seed": seed_of(self.config.seed, "round", self.round)}
        )

    @property
    def planned_lessons(self) -> int:
        """The lessons of its training, if all fit; 0 if it is trained already."""
        train, tasks = self.config.train, len(self.taught or (self.task,))
        return 0 if self.adapter else train.steps * train.batch_size * tasks

    @property
    def planned_samples(self) -> int:
        """The samples of this round of which there is no candidate yet, if all questions fit."""
        count = self.config.sample.samples
        mine = range(self.first_sample, self.first_sample + count)
        done = {(c.test, c.sample) for c in self.candidates if c.sample in mine}
        return count * len(self.task.tests) - len(done)

    def lessons(
        self,
        encoding: Encoding,
        max_tokens: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Lessons | TooLong:
        """What the adapter learns, in training order.

        A lesson has at most `max_tokens`, by default `train.max_seq_len`. `check` is called before
        each, and may raise.
        """
        limit = self.config.train.max_seq_len if max_tokens is None else max_tokens
        tasks = self.taught or (self.task,)
        return build_lessons(tasks, self.round_config, encoding, limit, check)

    def questions(
        self, encoding: Encoding, check: Callable[[], None] = lambda: None
    ) -> list[Question | TooLong]:
        """Each test of the task in several views; `check` is called before each, and may raise."""
        found = []
        for question in build_questions(self.task, self.round_config, encoding):
            check()
            found.append(question)
        return found

    def requests(self, questions: Sequence[Question | TooLong]) -> list[Request]:
        """The samples of this round of which there is no candidate yet."""
        planned = build_requests(self.task, questions, self.round_config, self.first_sample)
        return open_requests(planned, self.candidates)


def build_requests(
    task: Task, questions: Sequence[Question | TooLong], config: Config, first: int = 0
) -> list[Request]:
    """`sample.samples` requests for each test, dealt out to its questions in turn.

    They are numbered from `first` on. A test of which no question fits the context has none.
    """
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
