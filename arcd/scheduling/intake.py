"""The intake: puts waiting tasks into the queue, in their order, with the work that each will be.

A task must be read to tell its work. A large job is read in slices, between which others have
their turn, and ordered in the background; its tasks wait until all are read, because only then is
their order known. Knows nothing of how tasks are begun.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import anyio
from anyio.lowlevel import checkpoint

from arcd.backends.runtime import Background
from arcd.config import Config
from arcd.jobs.service import JobService
from arcd.jobs.state import Job, Phase
from arcd.scheduling.early_answers import early
from arcd.scheduling.fair_queue import FairQueue, Item, ordered
from arcd.scheduling.flow_shop import FlowShop
from arcd.scheduling.planner import Planner
from arcd.scheduling.sharing import AdapterGroups

SLICE = 64
"""Tasks that are read at once: 10 to 20 ms."""


@dataclass(slots=True, eq=False)
class _Delivery:
    """Waiting tasks of a large job that are not in the queue yet."""

    job: Job
    names: Sequence[str]
    config: Config
    dropped: bool = False


class Intake:
    """Fills the queue of a scheduler."""

    def __init__(
        self,
        service: JobService,
        planner: Planner,
        groups: AdapterGroups,
        queue: FairQueue,
        shop: FlowShop,
        background: Background,
    ) -> None:
        """Order the tasks for `shop`; those of a large job in the `background`."""
        self._service, self._planner = service, planner
        self._groups, self._queue = groups, queue
        self._shop, self._background = shop, background
        self._deliveries: deque[_Delivery] = deque()
        self._arrived = anyio.Event()

    def add(self, job: Job, names: Iterable[str]) -> None:
        """Put tasks of a job into the queue, those that wait: a few at once, many in `run`."""
        waiting = [name for name in names if job.tasks[name].phase is Phase.waiting]
        if not waiting or job.cancelled:
            return
        config = self._planner.config_of(job)
        self._groups.add(job, config.train.share)
        ready = self._groups.ready(job, waiting)
        if len(ready) <= SLICE:
            items = self._planner.items(job, ready, config)
            self._queue.add(job.id, job.priority, self._ordered(job, config, items))
            return
        self._deliveries.append(_Delivery(job, ready, config))
        self._arrived.set()

    def drop(self, job: int) -> None:
        """Forget the tasks of a job, in the queue and on their way to it."""
        self._queue.drop(job)
        for delivery in self._deliveries:
            delivery.dropped = delivery.dropped or delivery.job.id == job

    async def run(self) -> None:
        """Read the tasks of large jobs, for ever."""
        while True:
            while self._deliveries:
                await self._take_in(self._deliveries[0])
                self._deliveries.popleft()
            self._arrived = anyio.Event()
            await self._arrived.wait()

    async def _take_in(self, delivery: _Delivery) -> None:
        items: list[Item] = []
        for begin in range(0, len(delivery.names), SLICE):
            if delivery.dropped:
                return
            names = delivery.names[begin : begin + SLICE]
            items += self._planner.items(delivery.job, names, delivery.config)
            await checkpoint()
        job, config = delivery.job, delivery.config
        found = await self._background(lambda _: self._ordered(job, config, items))
        if not delivery.dropped:
            self._queue.add(job.id, job.priority, found)
            self._service.wake()

    def _ordered(self, job: Job, config: Config, items: Sequence[Item]) -> list[Item]:
        # Tasks that were begun before go first: they are the nearest to an answer.
        begun = [item for item in items if job.tasks[item.task].wanted]
        fresh = [item for item in items if not job.tasks[item.task].wanted]
        # Johnson's rule makes the whole short; with a deadline, short tasks first answer more.
        order = config.order if job.budget is None else "cheapest"
        return begun + (early(fresh, self._shop) if order == "johnson" else ordered(fresh, order))
