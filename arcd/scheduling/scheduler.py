"""The scheduler: gives waiting tasks to `solve`, as many at once as the runtime can use.

Tasks start in the order of the queue; training and inference overlap because several are in hand:
some train, the others are sampled or wait with a trained adapter. It hears of jobs through the
service's records only. Knows nothing of models, HTTP or processes.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from arcd import config as configuration
from arcd.arc.selection import NO_LIKELIHOODS, verdict
from arcd.backends.protocols import Adapter
from arcd.backends.runtime import Runtime
from arcd.config import Config
from arcd.jobs import events
from arcd.jobs.events import Record, Times
from arcd.jobs.service import JobService
from arcd.jobs.state import Job, Phase, TaskState
from arcd.scheduling.budget import Pace, Share, cheap, share
from arcd.scheduling.fair_queue import FairQueue, Item, ordered
from arcd.scheduling.forecast import Sizes, Work, times, work
from arcd.scheduling.rates import RateEstimator
from arcd.solver.assignment import Assignment
from arcd.solver.solve import solve

DEATHS = 3
"""A task that the daemon died with so often is answered from what it has."""

SUSPECT = DEATHS - 1
"""A task that the daemon died with so often runs alone: the next death tells whose fault it is."""

ROUNDS = 8
"""Times that a task of a job with a budget is done at most; by then its votes are what they are."""

NOTHING = Times(0.0, 0.0)

ROOM = 4 << 30
"""Bytes of the disk that adapters which may be gone on with leave free."""

TIME_IS_UP = "the time was up before this task was done"


@dataclass(slots=True)
class InFlight:
    """A task in hand: how to end it, what it was predicted to need of the lanes for itself."""

    item: Item
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    alone: Times = NOTHING
    trained: bool = False
    sampling: float | None = None
    """When it began to be sampled."""
    expected: float = 0.0
    """Seconds that this was thought to take then, beside the others."""


class Scheduler:
    """Works off a service's jobs with one runtime until it is stopped."""

    def __init__(
        self,
        service: JobService,
        runtime: Runtime,
        config: Config,
        adapters: Path,
        measured: RateEstimator,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`config` is the daemon's; each task's trained adapter is under `adapters`.

        `measured` goes on learning here. `wall` is the clock of the store's records, with which a
        deadline outlives a restart.
        """
        self._service, self._runtime, self._config, self._adapters = (
            service,
            runtime,
            config,
            adapters,
        )
        self._measured, self._wall = measured, wall
        self._sizes = Sizes(runtime.encoding)
        self._queue = FairQueue()
        self._pace = Pace()
        self._in_flight: dict[tuple[int, str], InFlight] = {}
        self._deadlines: dict[int, float] = {}
        """By job, in the event loop's time."""
        self._groups: dict[int, dict[str, tuple[str, ...]]] = {}
        """By job whose tasks share adapters: with whom each of them does."""
        self._leading: set[tuple[int, tuple[str, ...]]] = set()
        """Groups of which one task waits, or is in hand, that will train for all."""
        self._most_in_flight = config.lookahead + runtime.trainer.capacity
        self._answered = -math.inf  # when the last task was
        self._stopping = False
        for job in service.state.jobs.values():
            self._take_on(job, job.tasks)
        service.listeners.append(self._hear)

    def predicted(self, job: int) -> dict[str, Times]:
        """What the parts of each task that waits should take, in the order of their turn."""
        rates = self._measured.rates
        return {
            item.task: self._pace.of_task(times(item.work, rates))
            for item in self._queue.waiting(job)
        }

    def left(self, job: int) -> float:
        """Seconds that the longer lane should need for what waits of a job."""
        lanes = self._lanes(self._queue.work(job))
        return max(lanes.train, lanes.infer)

    def _lanes(self, waiting: Work) -> Times:
        """How long the lanes will be kept busy by it."""
        found = self._pace.of_lanes(times(waiting, self._measured.rates))
        return replace(found, train=found.train / self._runtime.trainer.capacity)

    async def run(self, grace: float = 30.0) -> None:
        """Work until `stop`; then give what is in hand `grace` seconds, and set the rest aside."""
        async with anyio.create_task_group() as solving:
            while not self._stopping:
                for number in self._deadlines.keys() - self._service.held:
                    self._keep_to_budget(self._service.state.jobs[number])
                self._begin_some(solving)
                with anyio.CancelScope(deadline=self._next_deadline()):
                    await self._service.changed()
            with anyio.move_on_after(grace):
                while self._in_flight:
                    await self._service.changed()
            for hand in self._in_flight.values():
                hand.scope.cancel()

    def stop(self) -> None:
        """Begin no task any more; `run` returns when nothing is in hand."""
        self._stopping = True
        self._service.wake()

    def _begin_some(self, solving: TaskGroup) -> None:
        while item := self._next():
            self._queue.take(item, times(item.work, self._measured.rates).total)
            hand = self._in_flight[item.job, item.task] = InFlight(item)
            solving.start_soon(self._work_on, hand)

    def _next(self) -> Item | None:
        """The task to begin now, if there is one and there is room for it."""
        if len(self._in_flight) >= self._most_in_flight:
            return None
        in_flight = [hand.item for hand in self._in_flight.values()]
        if any(self._suspect(each.job, each.task) for each in in_flight):
            return None
        item = self._queue.next(self._runnable)
        alone = item and self._suspect(item.job, item.task)
        return None if alone and self._in_flight else item

    def _suspect(self, job: int, task: str) -> bool:
        return self._service.state.jobs[job].tasks[task].deaths >= SUSPECT

    def _runnable(self, number: int) -> bool:
        job = self._service.state.jobs[number]
        return not (job.paused or job.cancelled or number in self._service.held)

    async def _work_on(self, hand: InFlight) -> None:
        item = hand.item
        with hand.scope:
            await self._answer(hand)
        del self._in_flight[item.job, item.task]
        job = self._service.state.jobs[item.job]
        task = job.tasks[item.task]
        if task.in_flight and self._late(job):
            self._answer_as_they_are(job, [item.task], TIME_IS_UP)
        elif task.in_flight:
            # Only a cancelled scope comes here with the task in hand.
            self._service.emit(job.id, events.Released(item.task))
            if job.cancelled:
                self._discard(task.adapter, task.answered_by)
        else:
            self._service.wake()

    async def _answer(self, hand: InFlight) -> None:
        job = self._service.state.jobs[hand.item.job]
        name = hand.item.task
        task = job.tasks[name]
        if task.deaths >= DEATHS:
            died = f"the daemon died {task.deaths} times with this task in hand"
            self._answer_as_they_are(job, [name], f"set aside: {died}")
            return
        before = task.answered_by
        assignment = self._assignment(job, hand)

        def emit(event: events.TaskEvent) -> None:
            with self._runtime.ledger.span("host", "record"):
                self._service.emit(job.id, event, *self._shared(job, event))

        done = await solve(assignment, self._runtime, emit)
        if before != done.adapter:
            self._discard_of(job, name, before)
        if not (job.id in self._deadlines and _improvable(task) and self._has_room()):
            self._discard_of(job, name, done.adapter)

    def _shared(self, job: Job, event: events.TaskEvent) -> list[events.Shared]:
        """Who gets the adapter that was just trained, beside the task that it was trained with."""
        if not isinstance(event, events.Trained):
            return []
        others = self._group(job, event.task)
        return [
            events.Shared(name, event.adapter)
            for name in others
            if name != event.task and _has_none(job.tasks[name])
        ]

    def _discard_of(self, job: Job, task: str, *adapters: int | None) -> None:
        """Adapters of a task, but for what another one is still to be answered with."""
        others = [job.tasks[name].adapter for name in self._group(job, task) if name != task]
        self._discard(*(adapter for adapter in adapters if adapter not in others))

    def _group(self, job: Job, task: str) -> tuple[str, ...]:
        """The tasks that share an adapter with this one, itself among them."""
        return self._groups.get(job.id, {}).get(task, (task,))

    def _patience(self, hand: InFlight) -> float:
        """How long a task may be sampled that is to be sampled from now on."""
        beside = [other.alone.infer for other in self._in_flight.values() if other is not hand]
        longest = max([hand.alone.infer, *beside])
        # As many as there may be until it is done, each as long as the longest.
        to_come = max(0, self._most_in_flight - 1 - len(beside))
        hand.expected = hand.alone.infer + sum(beside) + to_come * longest
        hand.sampling = anyio.current_time()
        return self._pace.patience(hand.expected)

    def _has_room(self) -> bool:
        """Whether the disk can take adapters that may be gone on with in a later round."""
        return self._adapters.is_dir() and shutil.disk_usage(self._adapters).free > ROOM

    def _answer_as_they_are(self, job: Job, names: Iterable[str], note: str) -> None:
        """Answer tasks from the candidates they have, all at once: thousands may have to end."""
        store, answers = self._service.store, []
        unneeded: list[tuple[str, int | None, int | None]] = []
        for name in names:
            task = job.tasks[name]
            tests = len(store.task(job.id, name).tests)
            notes = (*task.notes, note)
            known = next((v.likelihoods for v in store.verdicts(job.id, name)), NO_LIKELIHOODS)
            drawn = store.candidates(job.id, name)
            found = verdict(name, tests, drawn, task.adapter, notes, known)
            answers.append(events.Answered(name, found))
            unneeded.append((name, task.adapter, task.answered_by))
        if answers:
            self._service.emit(job.id, *answers)
        for name, *adapters in unneeded:
            self._discard_of(job, name, *adapters)

    def _keep_to_budget(self, job: Job) -> None:
        """Take a job with a budget to its next round, or end it."""
        if self._late(job):
            self._queue.drop(job.id)
            for (number, _), hand in self._in_flight.items():
                if number == job.id:
                    hand.scope.cancel()
            waiting = [n for n, task in job.tasks.items() if task.phase is Phase.waiting]
            self._answer_as_they_are(job, waiting, TIME_IS_UP)
        elif job.all_answered and not job.paused:
            cheap_only = [
                name for name, task in job.tasks.items() if task.round == 0 and task.deaths < DEATHS
            ]
            doubtful = (name for name, task in job.tasks.items() if _improvable(task))
            if again := cheap_only or list(doubtful):
                self._service.emit(job.id, events.Retried(tuple(again)))
        if job.cancelled:
            del self._deadlines[job.id]
        elif job.all_answered and (self._late(job) or not job.paused):
            del self._deadlines[job.id]
            self._service.emit(job.id, events.Finished())
            self._discard(*(task.answered_by for task in job.tasks.values()))

    def _late(self, job: Job) -> bool:
        return self._deadlines.get(job.id, math.inf) <= anyio.current_time()

    def _next_deadline(self) -> float:
        """When to look at the budgets again, if nothing happens before."""
        now = anyio.current_time()
        return min((at for at in self._deadlines.values() if at > now), default=math.inf)

    def _share(self, item: Item, config: Config) -> Share:
        """What a task of a job with a budget gets in the round that begins now."""
        left = self._deadlines[item.job] - anyio.current_time()
        # What is in hand already has its share, and the trainer before this one.
        before = sum(hand.alone.train for hand in self._in_flight.values() if not hand.trained)
        left -= before / self._runtime.trainer.capacity
        return share(left, self._lanes(item.work + self._queue.work(item.job)), config)

    def _assignment(self, job: Job, hand: InFlight) -> Assignment:
        item, number, name = hand.item, job.id, hand.item.task
        state, store = job.tasks[name], self._service.store
        config = self._config_of(number)
        first_sample = state.round * config.sample.samples
        if number in self._deadlines:
            part = self._share(item, config) if state.round else cheap(config)
            config = part.of(config)
        task = store.task(number, name)
        group = self._group(job, name)
        taught = tuple(task if other == name else store.task(number, other) for other in group)
        adapter = self._kept(state.adapter)
        start = self._kept(state.answered_by)
        hand.alone = times(work(task, config, self._sizes), self._measured.rates)
        if adapter:
            hand.alone, hand.trained = replace(hand.alone, train=0.0), True
        return Assignment(
            task=task,
            config=config,
            taught=taught,
            round=state.round,
            first_sample=first_sample,
            adapter=adapter,
            start=start.path if start else None,
            candidates=tuple(store.candidates(number, name)),
            notes=state.notes,
            predicted=self._pace.of_task(hand.alone),
            sampling_timeout_s=lambda: self._patience(hand),
        )

    def _kept(self, serial: int | None) -> Adapter | None:
        """The adapter of this number, if it is there."""
        if serial is None or not self._folder(serial).is_dir():
            return None
        return Adapter(serial, self._folder(serial))

    def _hear(self, record: Record) -> None:
        if record.job is None:
            return
        job = self._service.state.jobs[record.job]
        match record.event:
            case events.Submitted(_, _, names) | events.Retried(names):
                self._take_on(job, names)
            case events.Trained(name, _, steps, tokens, seconds):
                self._leading.discard((job.id, self._group(job, name)))
                self._measured.trained(steps, tokens, seconds)
                if hand := self._in_flight.get((job.id, name)):
                    hand.trained = True
            case events.Answered(name):
                self._measured.stepped(*self._runtime.engine.usage())
                hand = self._in_flight.get((job.id, name))
                now = anyio.current_time()
                if hand and hand.sampling is not None and not hand.scope.cancel_called:
                    # Before the last answer the engine worked for others, too.
                    lane = now - max(hand.sampling, self._answered)
                    wall = now - hand.sampling
                    self._pace.sampled(hand.alone.infer, hand.expected, lane=lane, wall=wall)
                self._answered = now
                self._led_to_nothing(job, name)
            case events.Shared(name):
                self._take_on(job, [name])
            case events.Released(name) if not job.cancelled:
                self._leading.discard((job.id, self._group(job, name)))
                self._take_on(job, [name])
            case events.Cancelled():
                self._queue.drop(job.id)
                for (number, _), hand in self._in_flight.items():
                    if number == job.id:
                        hand.scope.cancel()

    def _led_to_nothing(self, job: Job, task: str) -> None:
        """Where no adapter came of the task that was to train for others, let another one try."""
        group = self._group(job, task)
        if (job.id, group) in self._leading:
            self._leading.discard((job.id, group))
            self._take_on(job, group)

    def _ready(self, job: Job, names: Iterable[str]) -> list[str]:
        """Of tasks that share adapters those that have one, and of each group one that trains."""
        found = []
        for name in names:
            key = (job.id, self._group(job, name))
            if _has_none(job.tasks[name]) and key in self._leading:
                continue
            if _has_none(job.tasks[name]):
                self._leading.add(key)
            found.append(name)
        return found

    def _take_on(self, job: Job, names: Iterable[str]) -> None:
        waiting = [name for name in names if job.tasks[name].phase is Phase.waiting]
        if job.budget is not None and not job.finished:
            passed = max(0.0, self._wall() - job.submitted)
            end = anyio.current_time() + job.budget - passed
            self._deadlines.setdefault(job.id, end)
        if not waiting or job.cancelled:
            return
        config = self._config_of(job.id)
        if config.train.share > 1:
            self._groups.setdefault(job.id, _groups(list(job.tasks), config.train.share))
            waiting = self._ready(job, waiting)
        rates = self._measured.rates
        works = {name: self._work_of(name, job, config) for name in waiting}
        items = [Item(job.id, name, times(works[name], rates), works[name]) for name in waiting]
        # What was in hand before goes first: it is the nearest to an answer.
        begun = [item for item in items if job.tasks[item.task].wanted]
        fresh = [item for item in items if not job.tasks[item.task].wanted]
        # Johnson's rule makes the whole short; what has an end anyway shall hold many tasks.
        order = config.order if job.budget is None else "cheapest"
        self._queue.add(job.id, job.priority, begun + ordered(fresh, order))

    def _work_of(self, name: str, job: Job, config: Config) -> Work:
        """What a task will be, with the training of those that get its adapter."""

        def of(task: str) -> Work:
            return work(self._service.store.task(job.id, task), config, self._sizes)

        found = of(name)
        if not _has_none(job.tasks[name]):
            return found.untrained
        for other in self._group(job, name):
            if other != name:
                theirs = of(other)
                found += replace(theirs - theirs.untrained, trainings=0)
        return found

    def _config_of(self, number: int) -> Config:
        return configuration.on_daemon(self._service.store.config(number), self._config)

    def _discard(self, *adapters: int | None) -> None:
        """Adapters are as large as answers are small: none outlives its use."""
        for adapter in adapters:
            if adapter is not None:
                shutil.rmtree(self._folder(adapter), ignore_errors=True)

    def _folder(self, serial: int) -> Path:
        return self._adapters / f"adapter-{serial}"


def _has_none(task: TaskState) -> bool:
    """Whether a task waits that is still to be trained."""
    return task.phase is Phase.waiting and task.adapter is None


def _groups(names: list[str], share: int) -> dict[str, tuple[str, ...]]:
    """Neighbours, so many at a time."""
    found = [tuple(names[i : i + share]) for i in range(0, len(names), share)]
    return {name: group for group in found for name in group}


def _improvable(task: TaskState) -> bool:
    """Whether another round may do it good: one that was set aside has done enough harm."""
    return task.retriable and task.deaths < DEATHS and task.round < ROUNDS
