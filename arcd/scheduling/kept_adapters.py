"""Kept adapters: which adapters are on the disk; each is deleted when no task needs it any more.

What a task needs follows from the state alone (`needed`, `start`). So it does not matter how a task
came to its end: answered by its adapter, or by the base because the engine refused that, at a
deadline, or not at all because its job was cancelled. Knows nothing of who uses an adapter.
"""

from collections.abc import Iterable, Mapping

from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.state import Job, Phase, TaskState
from arcd.scheduling.adapter_folder import AdapterFolder
from arcd.scheduling.rounds import can_improve
from arcd.scheduling.sharing import AdapterGroups

Serials = frozenset[int]

NONE: Serials = frozenset()


def needed(job: Job, name: str) -> Serials:
    """The adapter that a task is, or is going to be, sampled with."""
    task = job.tasks[name]
    waits = task.phase is Phase.waiting and not job.cancelled
    if task.adapter is None or not (task.in_flight or waits):
        return NONE
    return frozenset({task.adapter})


def start(job: Job, name: str) -> Serials:
    """The adapter from which the training of a task's next round goes on, in a job with a budget.

    It saves time: without it the round begins with a fresh adapter.
    """
    task = job.tasks[name]
    goes_on = task.phase is not Phase.answered or can_improve(task)
    if task.answered_by is None or job.budget is None or job.finished or not goes_on:
        return NONE
    return frozenset({task.answered_by})


def _left(job: Job, task: TaskState) -> Serials:
    """The adapters of a task that an earlier life may have left: see `recovery.plan`."""
    before = task.answered_by if job.budget is not None else None
    return frozenset(serial for serial in (task.adapter, before) if serial is not None)


class KeptAdapters:
    """The adapters on the disk; hears of each record, after the state has taken it in."""

    def __init__(
        self, folder: AdapterFolder, groups: AdapterGroups, jobs: Mapping[int, Job]
    ) -> None:
        """`jobs` are all jobs at any time; the groups of those of earlier lives are known."""
        self._folder, self._groups, self._jobs = folder, groups, jobs
        self._kept: dict[tuple[int, str], Serials] = {}
        """By job and task."""
        for job in jobs.values():
            if not job.finished:
                for name, task in job.tasks.items():
                    self._keep(job, name, _left(job, task))
                # A death may have come between an answer and the end of its adapter.
                self._settle(job, list(job.tasks))

    def hear(self, job: Job, record: Record) -> None:
        """Delete what is not needed after this record."""
        match record.event:
            case events.Trained(task=name, adapter=adapter):
                self._keep(job, name, frozenset({adapter}))
                self._settle(job, [name])
            case events.Answered(task=name):
                self._settle(job, [name])
                if start(job, name) and not self._folder.has_room():
                    self._discard(job, name, start(job, name))
            case events.Released(task=name):
                self._settle(job, [name])
            case events.Cancelled() | events.Finished():
                self._settle(job, [name for number, name in self._kept if number == job.id])

    def make_room(self) -> bool:
        """Delete the adapters that only a later round would begin with; whether there were any."""
        there = [key for key in self._kept if key[0] in self._jobs]
        return any(
            [self._discard(self._jobs[n], name, self._kept_of(n, name)) for n, name in there]
        )

    def _kept_of(self, job: int, name: str) -> Serials:
        return self._kept.get((job, name), NONE)

    def _keep(self, job: Job, name: str, serials: Serials) -> None:
        if serials:
            self._kept[job.id, name] = self._kept_of(job.id, name) | serials

    def _settle(self, job: Job, names: Iterable[str]) -> None:
        """Delete what no task of the groups of these tasks needs."""
        for group in {self._groups.of(job, name) for name in names}:
            wanted = NONE.union(*(needed(job, other) | start(job, other) for other in group))
            for other in group:
                self._discard(job, other, self._kept_of(job.id, other) - wanted)

    def _discard(self, job: Job, name: str, serials: Serials) -> bool:
        """Delete those of these adapters of a task that nothing in its group works with now."""
        if not serials:
            return False
        group = self._groups.of(job, name)
        in_use = [
            needed(job, other) | (start(job, other) if job.tasks[other].in_flight else NONE)
            for other in group
        ]
        gone = serials.difference(*in_use)
        self._folder.discard(*gone)
        for other in group:
            left = self._kept.pop((job.id, other), NONE) - gone
            self._keep(job, other, left)
        return bool(gone)
