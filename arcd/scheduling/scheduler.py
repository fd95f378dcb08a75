"""The scheduler: gives waiting tasks to `solve`, as many at once as trainer and engine can use.

    run        begins tasks in the order of the fair queue, until told to stop
    _begin     one task: its assignment, `solve`, what becomes of its adapter
    _hear      what happened to jobs, one method for each event

Training and sampling overlap because several tasks are in flight: some train, the others are
sampled or wait with a trained adapter. What is done to a job comes as records of the job service,
the scheduler's own events too. Knows nothing of models, HTTP or processes.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from arcd.backends.runtime import Runtime
from arcd.config import Config
from arcd.jobs import events
from arcd.jobs.events import Record, Times
from arcd.jobs.service import JobService
from arcd.jobs.state import Job
from arcd.scheduling.adapter_folder import AdapterFolder
from arcd.scheduling.fair_queue import FairQueue
from arcd.scheduling.flow_shop import FlowShop
from arcd.scheduling.intake import Intake
from arcd.scheduling.kept_adapters import KeptAdapters
from arcd.scheduling.planner import Planner
from arcd.scheduling.predictor import InFlight, Predictor
from arcd.scheduling.rates import RateEstimator
from arcd.scheduling.rounds import (
    MOST_DEATHS,
    BudgetRounds,
    answer_at_deadline,
    answer_early,
)
from arcd.scheduling.sharing import AdapterGroups
from arcd.solver.solve import solve

SUSPECT_DEATHS = MOST_DEATHS - 1
"""A task with which the daemon died so often runs alone: the next death tells whose fault it is."""


class Scheduler:
    """Works off the jobs of a service with one runtime until it is stopped."""

    def __init__(
        self,
        service: JobService,
        runtime: Runtime,
        config: Config,
        adapters: Path,
        estimator: RateEstimator,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`config` is the daemon's; trained adapters are in the folder `adapters`.

        `estimator` goes on learning here. `wall` is the clock of the store's records.
        """
        self._service, self._runtime = service, runtime
        self._most_in_flight = config.lookahead + runtime.trainer.capacity
        self._in_flight: dict[tuple[int, str], InFlight] = {}
        self._stopping = False
        self._queue = FairQueue()
        folder = AdapterFolder(adapters)
        self._groups = AdapterGroups()
        self._rounds = BudgetRounds(service, self._withdraw, wall)
        self._predictor = Predictor(service, runtime, estimator, self._groups, self._most_in_flight)
        self._planner = Planner(
            service,
            config,
            folder,
            self._groups,
            self._rounds,
            self._predictor,
            self._in_flight,
        )
        shop = FlowShop(runtime.trainer.capacity, self._most_in_flight)
        self._intake = Intake(
            service, self._planner, self._groups, self._queue, shop, runtime.background
        )
        for job in service.state.jobs.values():
            self._enqueue(job, job.tasks)
        self._kept = KeptAdapters(folder, self._groups, service.state.jobs)
        service.subscribe(self._hear)

    def predicted(self, job: int) -> dict[str, Times]:
        """The seconds that each waiting task of a job should take, in the order of their turn."""
        predictor = self._predictor
        return {
            item.task: predictor.beside_others(predictor.alone(item.work))
            for item in self._queue.waiting(job)
        }

    def left(self, job: int) -> float:
        """Seconds of work that wait of a job, for the trainer or the engine, who has more."""
        busy = self._predictor.busy(self._queue.work(job))
        return max(busy.train, busy.infer)

    async def run(self, grace: float = 30.0) -> None:
        """Work until `stop`; then give tasks in flight `grace` seconds, and set the rest aside."""
        async with anyio.create_task_group() as reading:
            reading.start_soon(self._intake.run)
            async with anyio.create_task_group() as solving:
                await self._begin_tasks(solving)
                with anyio.move_on_after(grace):
                    while self._in_flight:
                        await self._service.changed()
                for flight in self._in_flight.values():
                    flight.scope.cancel()
            reading.cancel_scope.cancel()

    async def _begin_tasks(self, solving: TaskGroup) -> None:
        """Begin one task after the other until `stop`."""
        while not self._stopping:
            self._rounds.advance()
            while flight := self._take_next():
                solving.start_soon(self._work_on, flight)
            with anyio.CancelScope(deadline=self._rounds.next_deadline()):
                await self._service.changed()

    def stop(self) -> None:
        """Begin no task any more; `run` returns when nothing is in flight."""
        self._stopping = True
        self._service.wake()

    def _take_next(self) -> InFlight | None:
        """The task to begin now, if one waits and there is room for it."""
        if len(self._in_flight) >= self._most_in_flight:
            return None
        if any(self._is_suspect(*key) for key in self._in_flight):
            return None
        item = self._queue.next(self._is_runnable)
        if item is None or (self._in_flight and self._is_suspect(item.job, item.task)):
            return None
        self._queue.take(item, self._predictor.alone(item.work).total)
        flight = self._in_flight[item.job, item.task] = InFlight(item)
        return flight

    def _is_suspect(self, job: int, task: str) -> bool:
        return self._service.state.jobs[job].tasks[task].deaths >= SUSPECT_DEATHS

    def _is_runnable(self, number: int) -> bool:
        job = self._service.state.jobs[number]
        return not (job.paused or job.cancelled or number in self._service.held)

    async def _work_on(self, flight: InFlight) -> None:
        """Solve a task, or end it early: in any case it is no longer in flight afterwards."""
        item = flight.item
        job = self._service.state.jobs[item.job]
        task = job.tasks[item.task]
        with flight.scope:
            await self._solve(job, flight)
        del self._in_flight[item.job, item.task]
        if not task.in_flight:
            self._service.wake()
        elif self._rounds.is_late(job):
            answer_at_deadline(self._service, job, [item.task])
        else:
            # Only a cancelled scope leaves a task unanswered.
            self._service.emit(job.id, events.Released(item.task))

    async def _solve(self, job: Job, flight: InFlight) -> None:
        name = flight.item.task
        task = job.tasks[name]
        if task.deaths >= MOST_DEATHS:
            died = f"the daemon died {task.deaths} times with this task in flight"
            answer_early(self._service, job, name, f"set aside: {died}")
            return
        planned = self._planner.assignment(job, flight, self._queue.work(job.id))
        assignment = replace(planned, make_room=self._kept.make_room)

        def emit(event: events.TaskEvent) -> None:
            with self._runtime.ledger.span("host", "record"):
                self._service.emit(job.id, event, *self._groups.hand_out(job, event))

        await solve(assignment, self._runtime, emit)

    def _enqueue(self, job: Job, names: Iterable[str]) -> None:
        """Put tasks of a job into the queue, those that wait."""
        self._rounds.add(job)
        self._intake.add(job, names)

    def _withdraw(self, job: int) -> None:
        """Take what waits of a job out of the queue, and end what is in flight."""
        self._intake.drop(job)
        for (number, _), flight in self._in_flight.items():
            if number == job:
                flight.scope.cancel()

    def _hear(self, record: Record) -> None:
        if record.job is None:
            return
        if isinstance(record.event, events.Forgotten):
            self._rounds.drop(record.job)
            self._groups.drop(record.job)
            return
        job = self._service.state.jobs[record.job]
        match record.event:
            case events.Submitted(tasks=names) | events.Retried(tasks=names):
                self._enqueue(job, names)
            case events.Shared(task=name):
                self._enqueue(job, [name])
            case events.Training(task=name):
                if flight := self._in_flight.get((job.id, name)):
                    self._predictor.learn_step(flight, record.event)
            case events.Trained():
                self._on_trained(job, record.event)
            case events.Answered(task=name):
                self._on_answered(job, name)
            case events.Released(task=name) if not job.cancelled:
                self._groups.stop_leading(job, name)
                self._enqueue(job, [name])
            case events.Cancelled():
                self._withdraw(job.id)
        self._kept.hear(job, record)

    def _on_trained(self, job: Job, event: events.Trained) -> None:
        self._groups.stop_leading(job, event.task)
        self._predictor.learn_training(event)
        if flight := self._in_flight.get((job.id, event.task)):
            flight.trained = True

    def _on_answered(self, job: Job, name: str) -> None:
        self._predictor.learn_sampling(self._in_flight.get((job.id, name)))
        if self._groups.stop_leading(job, name):
            # It has made no adapter for its group: another task of the group trains.
            self._enqueue(job, self._groups.of(job, name))
