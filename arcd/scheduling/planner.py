"""The planner: how a task is to be solved, from its job and from what earlier rounds have left.

Knows nothing of the order of tasks, and begins nothing.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from arcd import config as configuration
from arcd.backends.runtime import Runtime
from arcd.config import Config
from arcd.jobs.service import JobService
from arcd.jobs.state import Job
from arcd.scheduling.adapter_folder import AdapterFolder
from arcd.scheduling.fair_queue import Item
from arcd.scheduling.forecast import Work
from arcd.scheduling.predictor import InFlight, Predictor
from arcd.scheduling.rounds import BudgetRounds
from arcd.scheduling.sharing import AdapterGroups
from arcd.solver.assignment import Assignment


class Planner:
    """Makes queue items of waiting tasks, and assignments of tasks that begin."""

    def __init__(
        self,
        service: JobService,
        runtime: Runtime,
        config: Config,
        folder: AdapterFolder,
        groups: AdapterGroups,
        rounds: BudgetRounds,
        predictor: Predictor,
    ) -> None:
        """`config` is the daemon's."""
        self._service, self._runtime, self._config = service, runtime, config
        self._folder, self._groups = folder, groups
        self._rounds, self._predictor = rounds, predictor

    def config_of(self, job: Job) -> Config:
        """The configuration of a job on this daemon."""
        return configuration.on_daemon(self._service.store.jobs.config(job.id), self._config)

    def items(self, job: Job, names: Sequence[str], config: Config) -> list[Item]:
        """The queue items of waiting tasks."""
        works = [self._predictor.work_of(job, name, config) for name in names]
        return [
            Item(job.id, name, self._predictor.alone(work), work)
            for name, work in zip(names, works, strict=True)
        ]

    def assignment(
        self, job: Job, flight: InFlight, in_flight: Collection[InFlight], behind: Work
    ) -> Assignment:
        """The assignment of a task that begins; notes in `flight` what it should take.

        `in_flight` are all tasks in flight, this one among them; `behind` is the work of the job
        that still waits.
        """
        name = flight.item.task
        state, store = job.tasks[name], self._service.store
        config = self.config_of(job)
        first_sample = state.round * config.sample.samples
        if job in self._rounds:
            config = self._allot(job, flight, in_flight, behind, config)
        task = store.jobs.task(job.id, name)
        group = self._groups.of(job, name)
        adapter = self._folder.find(state.adapter)
        start = self._folder.find(state.answered_by)
        flight.alone = self._predictor.task_alone(task, config)
        if adapter:
            flight.alone, flight.trained = replace(flight.alone, train=0.0), True
        return Assignment(
            task=task,
            config=config,
            taught=tuple(task if o == name else store.jobs.task(job.id, o) for o in group),
            round=state.round,
            first_sample=first_sample,
            adapter=adapter,
            start=start.path if start else None,
            candidates=tuple(store.jobs.candidates(job.id, name)),
            notes=state.notes,
            predicted=self._predictor.beside_others(flight.alone),
            sampling_timeout_s=lambda: self._predictor.start_sampling(flight, in_flight),
        )

    def _allot(
        self,
        job: Job,
        flight: InFlight,
        in_flight: Collection[InFlight],
        behind: Work,
        config: Config,
    ) -> Config:
        """The configuration with the steps and samples that the budget leaves for a task."""
        training = sum(other.alone.train for other in in_flight if not other.trained)
        return self._rounds.allotment(
            job,
            job.tasks[flight.item.task],
            training / self._runtime.trainer.capacity,
            self._predictor.busy(flight.item.work + behind),
            config,
        ).of(config)
