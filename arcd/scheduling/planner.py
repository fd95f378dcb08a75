"""The planner: how a task is to be solved, from its job and from what earlier rounds have left.

Knows nothing of the order of tasks, and begins nothing.
"""

from collections.abc import Mapping, Sequence

from arcd import config as configuration
from arcd.config import Config
from arcd.jobs.service import JobService
from arcd.jobs.state import Job
from arcd.scheduling.adapter_folder import AdapterFolder
from arcd.scheduling.budget import allot, cheap
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
        config: Config,
        folder: AdapterFolder,
        groups: AdapterGroups,
        rounds: BudgetRounds,
        predictor: Predictor,
        in_flight: Mapping[tuple[int, str], InFlight],
    ) -> None:
        """`config` is the daemon's; `in_flight` are the tasks in flight at any time."""
        self._service, self._config, self._in_flight = service, config, in_flight
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

    def assignment(self, job: Job, flight: InFlight, behind: Work) -> Assignment:
        """The assignment of a task that begins; notes in `flight` what it should take.

        `behind` is the work of the job that still waits.
        """
        name = flight.item.task
        state, store = job.tasks[name], self._service.store
        config = self.config_of(job)
        first_sample = state.round * config.sample.samples
        if job in self._rounds:
            config = self._allot(job, flight, behind, config)
        task = store.jobs.task(job.id, name)
        group = self._groups.of(job, name)
        adapter = self._folder.find(state.adapter)
        start = self._folder.find(state.answered_by)
        flight.work = self._predictor.work_as_planned(task, config)
        if adapter:
            flight.work, flight.trained = flight.work.untrained, True
        return Assignment(
            task=task,
            config=config,
            taught=tuple(task if o == name else store.jobs.task(job.id, o) for o in group),
            round=state.round,
            first_sample=first_sample,
            adapter=adapter,
            start=start.path if start else None,
            answered_by=state.answered_by,
            candidates=tuple(store.jobs.candidates(job.id, name)),
            notes=state.notes,
            predicted=self._predictor.beside_others(self._predictor.alone(flight.work)),
            sampling_timeout_s=lambda: self._predictor.start_sampling(
                flight, self._in_flight.values()
            ),
        )

    def _allot(self, job: Job, flight: InFlight, behind: Work, config: Config) -> Config:
        """The configuration with the steps and samples that the budget leaves for a task."""
        if job.tasks[flight.item.task].round == 0:
            return cheap(config).of(config)
        before = self._predictor.training_left(self._in_flight.values())
        left = self._rounds.seconds_left(job) - before
        return allot(left, self._predictor.busy(flight.item.work + behind), config).of(config)
