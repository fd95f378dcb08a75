"""The fair queue: which task of which job comes next.

Jobs share the machine in proportion to their priorities (stride scheduling, Waldspurger and Weihl
1995): each task that is taken is charged to its job in predicted seconds, divided by the priority,
and the job that has been charged least comes next. Inside a job the order is the one that its
configuration asks for. Pure; knows nothing of clocks or stores.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from arcd.jobs.events import Times
from arcd.scheduling.flow_shop import FlowShop
from arcd.scheduling.forecast import NO_WORK, Work

Order = Literal["johnson", "file", "cheapest"]


@dataclass(frozen=True, slots=True)
class Item:
    """A waiting task with its work, and the seconds that this was predicted to take."""

    job: int
    task: str
    times: Times
    work: Work = NO_WORK


def ordered(items: Iterable[Item], order: Order) -> list[Item]:
    """The items in this order; equals stay as they are.

    "johnson" is the rule alone: with short tasks in front it is `early_answers.early`.
    """
    match order:
        case "file":
            return list(items)
        case "cheapest":
            return sorted(items, key=lambda item: item.times.total)
        case "johnson":
            return johnson(items)


def johnson(items: Iterable[Item], trainings: int = 1) -> list[Item]:
    """The items in the order of Johnson's rule; equals stay as they are.

    The rule (S. M. Johnson, 1954) gives the shortest schedule of jobs that need a first and then a
    second machine: first the jobs that take less time on the first machine, the shortest first;
    then the others, the shortest on the second machine last. Several first machines count as one
    that is as many times as fast (C.-Y. Lee and G. L. Vairaktarakis, 1994).
    """

    def place(item: Item) -> tuple[bool, float]:
        first, second = item.times.train / trainings, item.times.infer
        return (False, first) if first < second else (True, -second)

    return sorted(items, key=place)


def makespan(times: Sequence[Times]) -> float:
    """Seconds until all are trained and sampled in this order, one at a time in each stage."""
    return FlowShop().makespan(times)


@dataclass(slots=True)
class _Queue:
    priority: int
    charged: float
    waiting: deque[Item]
    work: Work = NO_WORK


class FairQueue:
    """The waiting tasks of all jobs."""

    def __init__(self) -> None:
        self._queues: dict[int, _Queue] = {}
        self._charged = 0.0  # of the job that was served last, when it was

    def add(self, job: int, priority: int, items: Sequence[Item]) -> None:
        """Put tasks behind the waiting tasks of the job.

        A job that had no waiting task is charged as much as the job that was served last: it gets
        no compensation for the time in which it asked for nothing.
        """
        queue = self._queues.setdefault(job, _Queue(priority, self._charged, deque()))
        if not queue.waiting:
            queue.charged = max(queue.charged, self._charged)
        queue.waiting.extend(items)
        queue.work = sum((item.work for item in items), queue.work)

    def drop(self, job: int) -> None:
        """Forget a job and its waiting tasks."""
        self._queues.pop(job, None)

    def waiting(self, job: int) -> Sequence[Item]:
        """The waiting tasks of a job, in their order."""
        queue = self._queues.get(job)
        return tuple(queue.waiting) if queue else ()

    def work(self, job: int) -> Work:
        """The work of all waiting tasks of a job."""
        queue = self._queues.get(job)
        return queue.work if queue else NO_WORK

    def next(self, runnable: Callable[[int], bool] = lambda job: True) -> Item | None:
        """The task that comes next among the jobs that are runnable, if there is one.

        The other jobs get no compensation for the time in which they are not.
        """
        for job, each in self._queues.items():
            if not runnable(job):
                each.charged = max(each.charged, self._charged)
        queue = self._next(runnable)
        return queue.waiting[0] if queue else None

    def take(self, item: Item, seconds: float) -> None:
        """Take out the task that `next` gave, and charge its job `seconds`."""
        queue = self._queues[item.job]
        taken = queue.waiting.popleft()
        assert taken == item, "only the next item can be taken"
        queue.work -= item.work
        self._charged = queue.charged
        queue.charged += seconds / queue.priority

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    def _next(self, runnable: Callable[[int], bool]) -> _Queue | None:
        candidates = [
            (queue.charged, job)
            for job, queue in self._queues.items()
            if queue.waiting and runnable(job)
        ]
        return self._queues[min(candidates)[1]] if candidates else None
