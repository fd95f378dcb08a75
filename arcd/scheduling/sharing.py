"""Adapter groups: tasks of a job that share one adapter, and which of them trains it.

With `train.share` above 1, neighbours in the task file form a group. The first task of a group
that begins, its leader, trains on the demonstrations of all; the others wait until its adapter is
there. Without groups, every task is a group of its own. Knows nothing of models or of time.
"""

from collections.abc import Iterable

from arcd.jobs import events
from arcd.jobs.state import Job
from arcd.scheduling.adapter_folder import AdapterFolder

Group = tuple[str, ...]


class AdapterGroups:
    """The groups of all jobs; deletes an adapter when no task of its group needs it."""

    def __init__(self, folder: AdapterFolder) -> None:
        self._folder = folder
        self._groups: dict[int, dict[str, Group]] = {}
        """By job, for each task its group."""
        self._led: set[tuple[int, Group]] = set()
        """Groups with a leader that waits or trains."""

    def add(self, job: Job, size: int) -> None:
        """Group the tasks of a job, `size` neighbours at a time."""
        if size > 1 and job.id not in self._groups:
            names = list(job.tasks)
            found = [tuple(names[i : i + size]) for i in range(0, len(names), size)]
            self._groups[job.id] = {name: group for group in found for name in group}

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
                if key in self._led:
                    continue
                self._led.add(key)
            found.append(name)
        return found

    def stop_leading(self, job: Job, task: str) -> bool:
        """The task no longer leads its group; returns whether it did."""
        key = (job.id, self.of(job, task))
        led = key in self._led
        self._led.discard(key)
        return led

    def hand_out(self, job: Job, event: events.TaskEvent) -> list[events.Shared]:
        """After a Trained: the events that give the adapter to the tasks that wait for it."""
        if not isinstance(event, events.Trained):
            return []
        others = (name for name in self.of(job, event.task) if name != event.task)
        return [
            events.Shared(name, event.adapter) for name in others if job.tasks[name].needs_training
        ]

    def discard(self, job: Job, task: str, *adapters: int | None) -> None:
        """Delete adapters of a task, except those that others of its group are answered with."""
        others = [job.tasks[name].adapter for name in self.of(job, task) if name != task]
        self._folder.discard(*(adapter for adapter in adapters if adapter not in others))
