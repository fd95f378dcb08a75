"""The rounds of jobs with a budget: which task is done once more, and when the time is up.

Round 0 is a cheap answer for every task, by the base alone; round 1 each task in full; then, while
there is time, the tasks whose votes disagree once more. At the deadline every task is answered from
the candidates it has: a task that was done in full stays so, and what an extra round has drawn is
voted in. Knows nothing of how tasks are solved.
"""

import math
from collections.abc import Callable, Iterable

import anyio

from arcd.arc.selection import NO_LIKELIHOODS, taught, verdict
from arcd.jobs import events
from arcd.jobs.service import JobService
from arcd.jobs.state import Job, Phase, TaskState

MOST_DEATHS = 3
"""A task with which the daemon died so often is answered from the candidates it has."""

MOST_ROUNDS = 8
"""Rounds of a task at most: its votes have settled by then."""

TIME_IS_UP = "the time was up before this task was done"


class BudgetRounds:
    """The deadlines of jobs with a budget, and what is to be done about them."""

    def __init__(
        self,
        service: JobService,
        withdraw: Callable[[int], None],
        wall: Callable[[], float],
    ) -> None:
        """`withdraw` ends what waits and what is in flight of a job.

        `wall` is the clock of the store's records, so that a deadline outlives a restart.
        """
        self._service, self._withdraw, self._wall = service, withdraw, wall
        self._deadlines: dict[int, float] = {}
        """By job, in the event loop's time."""

    def __contains__(self, job: Job) -> bool:
        """Whether the job has a budget that is not used up."""
        return job.id in self._deadlines

    def add(self, job: Job) -> None:
        """Watch a job's budget, if it has one."""
        if job.budget is not None and not job.finished:
            passed = max(0.0, self._wall() - job.submitted)
            end = anyio.current_time() + job.budget - passed
            self._deadlines.setdefault(job.id, end)

    def drop(self, job: int) -> None:
        """Watch a job's budget no longer: the job is forgotten."""
        self._deadlines.pop(job, None)

    def is_late(self, job: Job) -> bool:
        """Whether the job has a budget and its time is up."""
        return self._deadlines.get(job.id, math.inf) <= anyio.current_time()

    def next_deadline(self) -> float:
        """When to call `advance` again if nothing happens before, in the event loop's time."""
        now = anyio.current_time()
        return min((at for at in self._deadlines.values() if at > now), default=math.inf)

    def seconds_left(self, job: Job) -> float:
        """Until the deadline of a job with a budget."""
        return self._deadlines[job.id] - anyio.current_time()

    def advance(self) -> None:
        """Take each job to its next round, or end it."""
        for number in self._deadlines.keys() - self._service.held:
            self._advance(self._service.state.jobs[number])

    def _advance(self, job: Job) -> None:
        if self.is_late(job):
            self._withdraw(job.id)
            waiting = [n for n, task in job.tasks.items() if task.phase is Phase.waiting]
            answer_at_deadline(self._service, job, waiting)
        elif job.all_answered and not job.paused and (names := next_round(job)):
            self._service.emit(job.id, events.Retried(names))
        if job.cancelled:
            del self._deadlines[job.id]
        elif job.all_answered and (self.is_late(job) or not job.paused):
            del self._deadlines[job.id]
            self._service.emit(job.id, events.Finished())


def next_round(job: Job) -> tuple[str, ...]:
    """The tasks of an answered job that are worth another round: all after round 0."""
    first = tuple(
        name for name, task in job.tasks.items() if task.round == 0 and task.deaths < MOST_DEATHS
    )
    return first or tuple(name for name, task in job.tasks.items() if can_improve(task))


def can_improve(task: TaskState) -> bool:
    """Whether a task that was answered is worth another round."""
    return task.retriable and task.deaths < MOST_DEATHS and task.round < MOST_ROUNDS


def answer_at_deadline(service: JobService, job: Job, names: Iterable[str]) -> None:
    """Answer tasks of a job whose time is up from the candidates they have.

    All in one transaction: there may be thousands. A note is due to those that were never done in
    full: rounds 0 and 1 were not.
    """
    notes = {name: () if job.tasks[name].round > 1 else (TIME_IS_UP,) for name in names}
    if answers := [_answer(service, job, name, note) for name, note in notes.items()]:
        service.emit(job.id, *answers)


def answer_early(service: JobService, job: Job, name: str, note: str) -> None:
    """Answer a task from the candidates it has, with a note that says why."""
    service.emit(job.id, _answer(service, job, name, (note,)))


def _answer(service: JobService, job: Job, name: str, noted: tuple[str, ...]) -> events.Answered:
    """The answer from all candidates; it is by the adapter of an earlier answer if that had one."""
    task, store = job.tasks[name], service.store
    tests = len(store.jobs.task(job.id, name).tests)
    verdicts = store.jobs.verdicts(job.id, name)
    likelihoods = next((found.likelihoods for found in verdicts), NO_LIKELIHOODS)
    drawn = list(store.jobs.candidates(job.id, name))
    serials = [s for s in (task.answered_by, task.adapter) if s is not None]
    adapter = serials[0] if serials and taught(drawn) else None
    notes = (*task.notes, *noted)
    return events.Answered(name, verdict(name, tests, drawn, adapter, notes, likelihoods))
