"""The scheduler: gives waiting tasks to `solve`, as many at once as the rig can use.

Tasks start in the order of the agenda; training and inference overlap because several are in hand:
one trains, the others are sampled or wait with a trained adapter. It hears of jobs through the
desk's records only. Knows nothing of models, HTTP or processes.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from arcd import config as configuration
from arcd import events
from arcd.agenda import Agenda, Item, ordered
from arcd.backends import Adapter
from arcd.config import Config
from arcd.desk import Desk
from arcd.events import Record
from arcd.forecast import times, work
from arcd.selection import verdict
from arcd.solver import Assignment, Rig, solve
from arcd.state import Job, Phase

DEATHS = 3
"""A task that the daemon died with so often is answered from what it has."""

SUSPECT = DEATHS - 1
"""A task that the daemon died with so often runs alone: the next death tells whose fault it is."""


class Scheduler:
    """Works off a desk's jobs with one rig until it is stopped."""

    def __init__(self, desk: Desk, rig: Rig, config: Config, adapters: Path) -> None:
        """`config` is the daemon's; each task's trained adapter is under `adapters`."""
        self._desk, self._rig, self._config, self._adapters = desk, rig, config, adapters
        self._agenda = Agenda()
        self._in_hand: dict[tuple[int, str], anyio.CancelScope] = {}
        self._stopping = False
        for job in desk.state.jobs.values():
            self._take_on(job, job.tasks)
        desk.listeners.append(self._hear)

    async def run(self, grace: float = 30.0) -> None:
        """Work until `stop`; then give what is in hand `grace` seconds, and set the rest aside."""
        async with anyio.create_task_group() as solving:
            while not self._stopping:
                self._begin_some(solving)
                await self._desk.changed()
            with anyio.move_on_after(grace):
                while self._in_hand:
                    await self._desk.changed()
            for scope in self._in_hand.values():
                scope.cancel()

    def stop(self) -> None:
        """Begin no task any more; `run` returns when nothing is in hand."""
        self._stopping = True
        self._desk.wake()

    @property
    def busy(self) -> bool:
        """Whether a task is in hand."""
        return bool(self._in_hand)

    def _begin_some(self, solving: TaskGroup) -> None:
        while item := self._next():
            self._agenda.take(item)
            scope = self._in_hand[item.job, item.task] = anyio.CancelScope()
            solving.start_soon(self._work_on, item, scope)

    def _next(self) -> Item | None:
        """The task to begin now, if there is one and there is room for it."""
        if len(self._in_hand) > self._config.lookahead:
            return None
        if any(self._suspect(job, task) for job, task in self._in_hand):
            return None
        item = self._agenda.next(self._runnable)
        if item and self._suspect(item.job, item.task) and self._in_hand:
            return None
        return item

    def _suspect(self, job: int, task: str) -> bool:
        return self._desk.state.jobs[job].tasks[task].deaths >= SUSPECT

    def _runnable(self, number: int) -> bool:
        job = self._desk.state.jobs[number]
        return not (job.paused or job.cancelled or number in self._desk.held)

    async def _work_on(self, item: Item, scope: anyio.CancelScope) -> None:
        with scope:
            await self._answer(item.job, item.task)
        del self._in_hand[item.job, item.task]
        job = self._desk.state.jobs[item.job]
        task = job.tasks[item.task]
        if task.in_hand:
            # Only a cancelled scope comes here with the task in hand.
            self._desk.emit(job.id, events.Released(item.task))
            if job.cancelled:
                self._discard(task.adapter)
        else:
            self._desk.wake()

    async def _answer(self, number: int, name: str) -> None:
        task = self._desk.state.jobs[number].tasks[name]
        assignment = self._assignment(number, name)

        def emit(event: events.TaskEvent) -> None:
            with self._rig.ledger.span("host", "record"):
                self._desk.emit(number, event)

        if task.deaths < DEATHS:
            done = await solve(assignment, self._rig, emit)
        else:
            note = f"set aside: the daemon died {task.deaths} times with this task in hand"
            tests = len(assignment.task.tests)
            notes = (*assignment.notes, note)
            done = verdict(name, tests, assignment.candidates, task.adapter, notes)
            emit(events.Answered(name, done))
        self._discard(done.adapter)

    def _assignment(self, number: int, name: str) -> Assignment:
        state = self._desk.state.jobs[number].tasks[name]
        store = self._desk.store
        adapter = None
        if state.adapter is not None and self._folder(state.adapter).is_dir():
            adapter = Adapter(state.adapter, self._folder(state.adapter))
        return Assignment(
            task=store.task(number, name),
            config=self._config_of(number),
            round=state.round,
            adapter=adapter,
            candidates=tuple(store.candidates(number, name)),
            notes=state.notes,
        )

    def _hear(self, record: Record) -> None:
        if record.job is None:
            return
        job = self._desk.state.jobs[record.job]
        match record.event:
            case events.Submitted(_, _, names) | events.Retried(names):
                self._take_on(job, names)
            case events.Released(name) if not job.cancelled:
                self._take_on(job, [name])
            case events.Cancelled():
                self._agenda.drop(job.id)
                for (number, _), scope in self._in_hand.items():
                    if number == job.id:
                        scope.cancel()

    def _take_on(self, job: Job, names: Iterable[str]) -> None:
        waiting = [name for name in names if job.tasks[name].phase is Phase.waiting]
        if not waiting or job.cancelled:
            return
        config = self._config_of(job.id)
        tasks = {task.id: task for task in self._desk.store.tasks(job.id).tasks}
        items = [Item(job.id, name, times(work(tasks[name], config))) for name in waiting]
        # What was in hand before goes first: it is the nearest to an answer.
        begun = [item for item in items if job.tasks[item.task].wanted]
        fresh = [item for item in items if not job.tasks[item.task].wanted]
        self._agenda.add(job.id, job.priority, begun + ordered(fresh, config.order))

    def _config_of(self, number: int) -> Config:
        return configuration.on_daemon(self._desk.store.config(number), self._config)

    def _discard(self, adapter: int | None) -> None:
        """Adapters are as large as answers are small: none outlives its task."""
        if adapter is not None:
            shutil.rmtree(self._folder(adapter), ignore_errors=True)

    def _folder(self, serial: int) -> Path:
        return self._adapters / f"adapter-{serial}"
