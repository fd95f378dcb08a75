"""The state of all jobs and of the daemon, folded from the records by `State.apply`.

The one reducer: the daemon decides with it, `status` and the screen show it, and a daemon that
starts folds the store to get it back. It holds no grids, so that 100 000 tasks fit into memory.
Knows nothing of where records come from.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from arcd.arc.selection import Verdict
from arcd.jobs import events
from arcd.jobs.events import Record, Times

Stage = Literal["train", "infer"]


class Phase(StrEnum):
    """How far a task is."""

    waiting = "waiting"
    started = "started"
    """In flight: it trains, or waits for the trainer."""
    trained = "trained"
    """In flight: it has what it is sampled with."""
    answered = "answered"


class JobState(StrEnum):
    """How far a job is."""

    queued = "queued"
    running = "running"
    paused = "paused"
    done = "done"
    cancelled = "cancelled"
    failed = "failed"


FINISHED = frozenset({JobState.done, JobState.cancelled, JobState.failed})
"""States that a job leaves only on request."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A verdict without its grids.

    `best` is the number of votes for the best grid of each test, 0 where no sample is valid;
    `asked` is the number of samples of each test.
    """

    best: tuple[int, ...]
    asked: int
    samples: int
    invalid: int

    @classmethod
    def of(cls, verdict: Verdict) -> "Answer":
        best = tuple(test[0].count if test else 0 for test in verdict.ranked)
        return cls(best, verdict.samples // len(best), verdict.samples, verdict.invalid)

    @property
    def failed(self) -> bool:
        """Whether a test has no attempt at all."""
        return 0 in self.best

    @property
    def doubtful(self) -> bool:
        """Whether the best grid of a test has less than half of the votes."""
        return any(2 * votes < self.asked for votes in self.best)


@dataclass(slots=True)
class TaskState:
    """A task of a job."""

    phase: Phase = Phase.waiting
    round: int = 0
    """0 at first, one more after each retry."""
    deaths: int = 0
    """How often the daemon died while it was in flight."""
    adapter: int | None = None
    """Serial number of its trained adapter, until it is answered."""
    wanted: int = 0
    """Samples that were to be drawn at its last start."""
    sampled: int = 0
    """How many of these are finished."""
    answer: Answer | None = None
    begun: float = 0.0
    """When it was started last, in seconds since 1970."""
    seconds: float = 0.0
    """From its last start to its answer."""
    sampling: float = 0.0
    """When sampling began, in seconds since 1970."""
    predicted: Times | None = None
    """Seconds that it should take, predicted at its last start."""
    taken: Times | None = None
    """Seconds that it took; 0 for a stage that was not finished."""
    answered_by: int | None = None
    """Serial number of the adapter that its answer is from; None: the base."""
    notes: tuple[str, ...] = ()

    @property
    def in_flight(self) -> bool:
        return self.phase in (Phase.started, Phase.trained)

    @property
    def needs_training(self) -> bool:
        """Whether it waits and has no adapter yet."""
        return self.phase is Phase.waiting and self.adapter is None

    @property
    def retriable(self) -> bool:
        """Whether it is answered, but failed or doubtful."""
        answer = self.answer
        poor = answer is None or answer.failed or answer.doubtful
        return self.phase is Phase.answered and poor


@dataclass(slots=True)
class Job:
    """A job: its tasks in the order of their file."""

    id: int
    name: str
    priority: int
    submitted: float
    tasks: dict[str, TaskState]
    asked: int
    """Number of its last record that asks for work: Submitted, Resumed, Retried."""
    counts: Counter[Phase] = field(default_factory=Counter)
    """Tasks in each phase."""
    budget: float | None = None
    """Seconds from its submission to its end."""
    touched: float = 0.0
    """When it was last asked for or answered, in seconds since 1970."""
    changed: int = 0
    """Number of its last Answered record."""
    over: bool = False
    """Whether its budget has ended."""
    begun: bool = False
    paused: bool = False
    cancelled: bool = False

    @property
    def state(self) -> JobState:
        if self.cancelled:
            return JobState.cancelled
        if self.all_answered and (self.budget is None or self.over):
            answers = (task.answer for task in self.tasks.values())
            failed = all(answer is None or answer.samples == answer.invalid for answer in answers)
            return JobState.failed if failed else JobState.done
        if self.paused:
            return JobState.paused
        return JobState.running if self.begun else JobState.queued

    @property
    def all_answered(self) -> bool:
        """Whether each task has the answer of its last round."""
        return self.counts[Phase.answered] == len(self.tasks)

    @property
    def finished(self) -> bool:
        return self.state in FINISHED

    @property
    def in_flight(self) -> int:
        """How many of its tasks are in flight."""
        return self.counts[Phase.started] + self.counts[Phase.trained]

    @property
    def at_rest(self) -> bool:
        """Whether it is paused and has no task in flight any more."""
        return self.paused and not self.in_flight

    def retriable(self) -> list[str]:
        """The answered tasks that failed or are doubtful."""
        return [name for name, task in self.tasks.items() if task.retriable]

    def accuracy(self) -> dict[Stage, dict[str, float]]:
        """Predicted / taken seconds over the answered tasks: deciles 1, 5 and 9, by stage."""
        done = [
            (task.predicted, task.taken)
            for task in self.tasks.values()
            if task.phase is Phase.answered and task.predicted and task.taken
        ]
        stages: dict[Stage, list[tuple[float, float]]] = {
            "train": [(p.train, t.train) for p, t in done],
            "infer": [(p.infer, t.infer) for p, t in done],
        }
        ratios = {
            stage: sorted(predicted / taken for predicted, taken in pairs if predicted and taken)
            for stage, pairs in stages.items()
        }
        return {
            stage: {f"p{10 * d}": found[round(d / 10 * (len(found) - 1))] for d in (1, 5, 9)}
            for stage, found in ratios.items()
            if found
        }

    def to_json(self) -> dict[str, Any]:
        """What `status --json` shows."""
        counts = {phase.value: self.counts[phase] for phase in Phase}
        return {
            "job": self.id,
            "name": self.name,
            "priority": self.priority,
            "state": self.state.value,
            "submitted": self.submitted,
            "touched": self.touched,
            "tasks": len(self.tasks),
            **counts,
            "retriable": len(self.retriable()),
        }


@dataclass(slots=True)
class State:
    """Everything that is known; made empty, changed by `apply` alone."""

    jobs: dict[int, Job] = field(default_factory=dict)
    training: dict[tuple[int, str], events.Training] = field(default_factory=dict)
    """The last step of each training under way, by job and task."""
    daemon: events.DaemonStarted | None = None
    """The daemon that has the home, until it ends in order."""
    ready: bool = False
    restarts: int = 0
    """Daemons in a row that were started after one that had not ended in order."""
    left: int = 0
    """Number of the last DaemonStopped record."""
    seq: int = 0
    """The last record applied."""

    def apply(self, record: Record) -> None:
        """Take one record in."""
        self.seq = record.seq
        if record.job is None:
            self._daemon(record.event)
        elif isinstance(record.event, events.Forgotten):
            self.jobs.pop(record.job, None)
        elif isinstance(record.event, events.Submitted):
            self._submitted(record.job, record, record.event)
        elif isinstance(record.event, events.JobEvent):
            _control(self.jobs[record.job], record.seq, record.event)
            self.jobs[record.job].touched = record.at
        elif isinstance(record.event, events.TaskEvent):
            self._task(self.jobs[record.job], record.at, record.event)

    def count_sample(self, job: int, task: str) -> None:
        """Take in a Sampled record, of which only the task matters here."""
        state = self.jobs[job].tasks[task]
        state.sampled += 1
        _move(self.jobs[job], state, Phase.trained)

    def in_flight(self) -> list[tuple[int, str]]:
        """(job, task) of all tasks in flight."""
        return [
            (job.id, name)
            for job in self.jobs.values()
            if job.in_flight
            for name, task in job.tasks.items()
            if task.in_flight
        ]

    def _daemon(self, event: events.Event) -> None:
        self.training.clear()
        self.ready = isinstance(event, events.DaemonReady)
        match event:
            case events.DaemonStarted():
                self.restarts += self.daemon is not None
                self.daemon = event
            case events.DaemonStopped():
                self.daemon = None
                self.restarts = 0
                self.left = self.seq

    def _submitted(self, job: int, record: Record, event: events.Submitted) -> None:
        tasks = {name: TaskState() for name in event.tasks}
        counts = Counter({Phase.waiting: len(tasks)})
        self.jobs[job] = Job(
            job,
            event.name,
            event.priority,
            record.at,
            tasks,
            record.seq,
            counts,
            event.budget,
            record.at,
        )

    def _task(self, job: Job, at: float, event: events.TaskEvent) -> None:
        task = job.tasks[event.task]
        match event:
            case events.Started(samples=samples, predicted=predicted):
                job.begun = True
                task.wanted, task.sampled, task.begun = samples, 0, at
                task.sampling, task.predicted, task.taken = at, predicted, Times(0.0, 0.0)
                _move(job, task, Phase.trained if task.adapter is not None else Phase.started)
            case events.Training():
                self.training[job.id, event.task] = event
                return
            case events.Trained(adapter=adapter, seconds=seconds):
                task.adapter = adapter
                task.sampling, task.taken = at, Times(seconds, 0.0)
                _move(job, task, Phase.trained)
            case events.Shared(adapter=adapter):
                task.adapter = adapter
            case events.Sampled():
                self.count_sample(job.id, event.task)
                return
            case events.Noted(note=note):
                task.notes += (note,)
            case events.Answered(verdict=verdict):
                task.answer = Answer.of(verdict)
                job.changed, job.touched = self.seq, at
                if task.in_flight:
                    # A clock that is set back must not make a time negative.
                    task.seconds = max(0.0, at - task.begun)
                if task.taken and task.wanted and task.sampled == task.wanted:
                    task.taken = Times(task.taken.train, max(0.0, at - task.sampling))
                task.answered_by = verdict.adapter
                task.adapter, task.notes = None, verdict.notes
                _move(job, task, Phase.answered)
            case events.Interrupted():
                task.deaths += 1
                _move(job, task, Phase.waiting)
            case events.Released():
                _move(job, task, Phase.waiting)
        self.training.pop((job.id, event.task), None)


def _move(job: Job, task: TaskState, phase: Phase) -> None:
    if task.phase is phase:
        return
    job.counts[task.phase] -= 1
    job.counts[phase] += 1
    task.phase = phase


def _control(job: Job, seq: int, event: events.JobEvent) -> None:
    if isinstance(event, events.Resumed | events.Retried):
        job.asked = seq
    match event:
        case events.Paused():
            job.paused = True
        case events.Resumed():
            job.paused = False
        case events.Cancelled():
            job.cancelled = True
        case events.Finished():
            job.over = True
        case events.Retried(tasks=names):
            job.paused = False
            if job.over:
                # A retry after the end of the budget asks for more than the budget.
                job.over, job.budget = False, None
            for name in names:
                task = job.tasks[name]
                task.round += 1
                task.deaths = 0
                task.adapter = None
                task.wanted = 0
                _move(job, task, Phase.waiting)
