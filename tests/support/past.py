"""Made-up pasts of jobs, for the tests of what is drawn of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from arcd.arc.grids import Grid
from arcd.arc.selection import verdict
from arcd.arc.tasks import Solutions, Task, TaskSet
from arcd.config import resolve
from arcd.jobs import events
from arcd.jobs.events import Record, Times
from arcd.jobs.history import History
from arcd.jobs.journal import new_job
from arcd.jobs.store import Store
from support.small import candidate

BEGIN = 1_800_000_000.0
DAEMON = events.DaemonStarted(7, "0.1.0", "models/base", "f", "cpu", "bfloat16")


@dataclass
class Past:
    """Records one after the other, on a clock that is set by hand."""

    at: float = BEGIN
    records: list[Record] = field(default_factory=list)

    def add(self, *happened: events.Event, job: int | None = 1, after: float = 0.0) -> "Past":
        """What happened `after` seconds, all at once."""
        self.at += after
        for event in happened:
            owner = None if isinstance(event, events.DaemonEvent) else job
            self.records.append(Record(len(self.records) + 1, self.at, owner, event))
        return self

    def submitted(
        self, names: Iterable[str], *, name: str = "small", budget: float | None = None
    ) -> "Past":
        return self.add(DAEMON, events.Submitted(name, 10, tuple(names), budget))

    def started(self, name: str, samples: int = 4) -> "Past":
        return self.add(events.Started(name, 3, samples, Times(9.0, 2.0)))

    def training(self, name: str, steps: int, of: int = 10, every: float = 1.0) -> "Past":
        """Some steps, each lower in its loss."""
        for step in range(1, steps + 1):
            loss = 2.0 / (step + 1)
            self.add(events.Training(name, step, of, loss, 2400.0), after=every)
        return self

    def trained(self, name: str, serial: int = 3, steps: int = 10) -> "Past":
        self.training(name, steps, steps)
        return self.add(events.Trained(name, serial, steps, 2400 * steps, float(steps), 0.2))

    def sampled(
        self, task: Task, found: Sequence[Grid | None], *, every: float = 0.5, serial: int = 3
    ) -> "Past":
        for i, grid in enumerate(found):
            made = replace(candidate(task, 0, i, grid, serial), length=60)
            self.add(events.Sampled(task.id, made), after=every)
        return self

    def answered(
        self,
        task: Task,
        found: Sequence[Grid | None],
        *,
        serial: int | None = 3,
        notes: tuple[str, ...] = (),
    ) -> "Past":
        """With these samples of each of its tests."""
        made = [
            candidate(task, test, i, grid, serial)
            for test in range(len(task.tests))
            for i, grid in enumerate(found)
        ]
        result = verdict(task.id, len(task.tests), made, serial, notes)
        return self.add(events.Answered(task.id, result))

    def solved(self, task: Task, found: Sequence[Grid | None], serial: int = 3) -> "Past":
        """A task from its start to its answer."""
        self.started(task.id, len(found)).trained(task.id, serial)
        return self.sampled(task, found, serial=serial).answered(task, found, serial=serial)

    def history(self, solutions: Solutions | None = None, keep: int | None = None) -> History:
        history = History(1, solutions or {}, keep)
        for record in self.records:
            history.apply(record)
        return history

    def store(self, home: Path, tasks: TaskSet) -> Store:
        """The store of a home in which all this is written, open; `tasks` are those of the job."""
        times = (record.at for record in self.records)
        store = Store(home, clock=times.__next__)
        store.database.connection.execute("PRAGMA synchronous = OFF")  # thousands of records
        for record in self.records:
            match record.event:
                case events.Submitted(name=name, priority=priority):
                    store.journal.submit(new_job(name, priority, tasks, resolve()))
                case event:
                    store.journal.append(record.job, event)
        return store
