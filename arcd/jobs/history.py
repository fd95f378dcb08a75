"""The history of a job: when each task was trained and sampled, losses, answers, warnings.

A fold of the job's records, like the state that it contains; it keeps what the screen and the
report draw beyond that. `keep` limits how much of each kind it keeps. Knows nothing of where
records come from, nor of how anything is drawn.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from arcd.arc.selection import Verdict
from arcd.arc.tasks import Solutions
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.messages import Level, message
from arcd.jobs.state import Job, Phase, Stage, State

RATE_WINDOW_S = 10.0
"""Seconds over which the rate of sampling is averaged."""


@dataclass(slots=True)
class Span:
    """When a task was in a stage, in seconds since 1970; `end` is None while it still is.

    Spans of one stage that overlap have different tracks: a span takes the lowest free one.
    `number` counts the spans of a track.
    """

    stage: Stage
    task: str
    number: int
    track: int
    begin: float
    end: float | None = None

    def until(self, now: float) -> float:
        """Its end, or `now` while it goes on."""
        return now if self.end is None else self.end


@dataclass(slots=True)
class History:
    """Made empty and changed by `apply` alone."""

    job: int
    solutions: Solutions = field(default_factory=dict)
    keep: int | None = None
    points: int | None = None
    """Points of a curve of losses at most: at so many, every second one is dropped."""
    state: State = field(default_factory=State)
    at: float = 0.0
    """Time of the last record; it never goes back, even where a clock does."""
    open: dict[tuple[Stage, str], Span] = field(default_factory=dict)
    """The spans without an end."""
    over: deque[Span] = field(init=False)
    """The spans with an end, in the order of their ends."""
    losses: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """By task, (step, nats per token) of its last training; finite losses alone."""
    answers: dict[str, Verdict] = field(default_factory=dict)
    """The last verdict of each task, the newest last."""
    right: dict[str, float] = field(default_factory=dict)
    """By answered task whose solution is known: the share of its tests that is solved."""
    notices: deque[tuple[float, str]] = field(init=False)
    """(time, text) of the warnings."""
    ended: float | None = None
    """When the job was finished, if it is."""
    platform: events.DaemonStarted | None = None
    """The start of the last daemon."""
    ledger: dict[str, Any] | None = None
    """The account of the daemon that finished the job, or of the last one, once it has ended."""
    deaths: list[float] = field(default_factory=list)
    """When a daemon was started after one that had died."""
    _sampled: deque[tuple[float, int]] = field(default_factory=deque)
    _begun: Counter[tuple[Stage, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.over = deque(maxlen=self.keep)
        self.notices = deque(maxlen=self.keep)

    @classmethod
    def of(cls, job: int, records: Iterable[Record], solutions: Solutions) -> "History":
        """The history of all these records."""
        history = cls(job, solutions)
        for record in records:
            history.apply(record)
        return history

    @property
    def found(self) -> Job | None:
        """The job, once its first record is there."""
        return self.state.jobs.get(self.job)

    def until(self, now: float) -> float:
        """When the job was finished, or `now` while it is not."""
        return now if self.ended is None else self.ended

    def spans(self) -> list[Span]:
        """All spans that are kept, those without an end last."""
        return [*self.over, *self.open.values()]

    def sampling_rate(self, now: float) -> float:
        """Tokens generated in a second, of samples that finished lately."""
        return (
            sum(tokens for at, tokens in self._sampled if at > now - RATE_WINDOW_S) / RATE_WINDOW_S
        )

    def score(self) -> float | None:
        """Mean of `right`; None where no solution is known."""
        return sum(self.right.values()) / len(self.right) if self.right else None

    def apply(self, record: Record) -> None:
        """Take in one record, of the job or of the daemon."""
        match record.event:
            case events.Training():
                self.take_step(record.at, record.event)
            case events.Sampled(task=task, candidate=candidate):
                self.take_sample(record.at, task)
                self._sampled.append((self.at, candidate.length))
                while self._sampled[0][0] <= self.at - RATE_WINDOW_S:
                    self._sampled.popleft()
            case _:
                self._take(record)
        self.state.seq = record.seq

    def take_step(self, at: float, step: events.Training) -> None:
        """Take in a step of the job at this time."""
        self.at = max(self.at, at)
        self.state.training[self.job, step.task] = step
        self._learnt(step.task, step.step, step.loss)
        if ("train", step.task) not in self.open:
            self._move(step.task)

    def take_sample(self, at: float, task: str) -> None:
        """Take in that a sample of a task was finished at this time."""
        self.at = max(self.at, at)
        self.state.count_sample(self.job, task)
        if ("infer", task) not in self.open:
            self._move(task)

    def _take(self, record: Record) -> None:
        """Take in what is neither a step nor a sample: of these there are most."""
        before, self.at = self.at, max(self.at, record.at)
        self.state.apply(record)
        match record.event:
            case events.Trained(task=task, seconds=seconds):
                self._hold("train", task, self.at)
                span = self.open["train", task]
                # The first Training record comes after the first step.
                span.begin = min(span.begin, self.at - seconds)
            case events.Answered(task=task, verdict=verdict):
                self._answered(task, verdict)
            case events.DaemonStarted():
                self.platform = record.event
                if self.state.restarts:
                    self.deaths.append(self.at)
            case events.DaemonStopped(ledger=ledger) if self.ledger is None or self.ended is None:
                self.ledger = ledger
        if record.job is None:
            # A task in a stage when its daemon died left it then.
            self._let_go(self.open.keys(), before)
        elif isinstance(record.event, events.TaskEvent):
            self._move(record.event.task)
        if (job := self.found) is not None and job.finished != (self.ended is not None):
            self.ended = self.at if job.finished else None
            self.ledger = None  # an account from before is not of the daemon that finished it
        told = message(record, self.state, {})
        if told and told.level is Level.warning:
            self.notices.append((self.at, told.text))

    def _learnt(self, task: str, step: int, loss: float) -> None:
        curve = self.losses.setdefault(task, [])
        if curve and step <= curve[-1][0]:
            curve.clear()  # begun anew
        if math.isfinite(loss):
            if len(curve) == self.points:
                del curve[1::2]
            curve.append((step, loss))
        self._forget(self.losses)

    def _answered(self, task: str, verdict: Verdict) -> None:
        self.answers.pop(task, None)
        self.answers[task] = verdict
        self._forget(self.answers)
        if truth := self.solutions.get(task):
            self.right[task] = verdict.right(truth) / len(truth)

    def _forget(self, kept: dict[str, Any]) -> None:
        while self.keep is not None and len(kept) > self.keep:
            del kept[next(iter(kept))]

    def _move(self, task: str) -> None:
        """Open a span for the stage in which the task is now, close its others."""
        stage: Stage | None = None
        if (self.job, task) in self.state.training:
            stage = "train"
        elif self.state.jobs[self.job].tasks[task].phase is Phase.trained:
            stage = "infer"
        self._let_go([held for held in self.open if held[1] == task and held[0] != stage], self.at)
        if stage is not None:
            self._hold(stage, task, self.at)

    def _hold(self, stage: Stage, task: str, at: float) -> None:
        if (stage, task) not in self.open:
            taken = {span.track for (held, _), span in self.open.items() if held == stage}
            track = min(set(range(len(taken) + 1)) - taken)
            self.open[stage, task] = Span(stage, task, self._begun[stage, track], track, at)
            self._begun[stage, track] += 1

    def _let_go(self, held: Iterable[tuple[Stage, str]], at: float) -> None:
        for key in list(held):
            span = self.open.pop(key)
            span.end = at
            self.over.append(span)
