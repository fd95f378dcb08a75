"""Adapter groups: tasks of a job that share one adapter, and which of them trains it.

With `train.share` above 1, neighbours in the task file form a group. The first task of a group
that begins, its leader, trains on the demonstrations of all; the others wait until its adapter is
there. Without groups, every task is a group of its own. Knows nothing of models or of time.
"""

from collections.abc import Iterable

from arcd.jobs import events
from arcd.jobs.state import Job

Group = tuple[str, ...]


class AdapterGroups:
    """The groups of all jobs."""

    def __init__(self) -> None:
        self._groups: dict[int, dict[str, Group]] = {}
        """By job, for each task its group."""
        self._leaders: dict[tuple[int, Group], str] = {}
        """By group the task that waits or trains to make its adapter."""

    def add(self, job: Job, size: int) -> None:
        """Group the tasks of a job, `size` neighbours at a time."""
        if size > 1 and job.id not in self._groups:
            names = list(job.tasks)
            found = [tuple(names[i : i + size]) for i in range(0, len(names), size)]
            self._groups[job.id] = {name: group for group in found for name in group}

    def drop(self, job: int) -> None:
        """Forget the groups of a job."""
        self._groups.pop(job, None)
        self._leaders = {key: name for key, name in self._leaders.items() if key[0] != job}

    def of(self, job: Job, task: str) -> Group:
        """The group of a task, itself among it."""
        return self._groups.get(job.id, {}).get(task, (task,))

    def ready(self, job: Job, names: Iterable[str]) -> list[str]:
        """Those of these waiting tasks that may begin: with an adapter, or as a leader."""
        if job.id not in self._groups:
            return list(names)
        found = []
        for name in names:
            if job.tasks[name].needs_training:
                key = (job.id, self.of(job, name))
                if key in self._leaders:
                    continue
                self._leaders[key] = name
            found.append(name)
        return found

    def stop_leading(self, job: Job, task: str) -> bool:
        """The task no longer leads its group; returns whether it did."""
        key = (job.id, self.of(job, task))
        if self._leaders.get(key) != task:
            return False
        del self._leaders[key]
        return True

    def hand_out(self, job: Job, event: events.TaskEvent) -> list[events.Shared]:
        """After a Trained: the events that give the adapter to the tasks that wait for it."""
        if not isinstance(event, events.Trained):
            return []
        others = (name for name in self.of(job, event.task) if name != event.task)
        return [
            events.Shared(name, event.adapter) for name in others if job.tasks[name].needs_training
        ]
