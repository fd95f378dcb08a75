"""The flow shop: when tasks are answered that go through trainer and engine in a given order.

A simulation of the scheduler with predicted times. Pure; knows nothing of tasks, jobs or clocks.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

from arcd.jobs.events import Times


@dataclass(frozen=True, slots=True)
class FlowShop:
    """Some trainings at once, then one engine: a two-stage hybrid flow shop."""

    trainings: int = 1
    in_flight: int = sys.maxsize
    """Tasks at most that are begun and not answered."""

    def makespan(self, times: Sequence[Times]) -> float:
        """Seconds until all tasks are answered, if they are begun in this order."""
        return max(self.answered(times), default=0.0)

    def answered(self, times: Sequence[Times]) -> list[float]:
        """Seconds until each task is answered, if they are begun in this order.

        The engine samples one task at a time, in the order in which they are trained. That it
        samples several side by side changes when each is answered, but not when the last one is.
        """
        found = [0.0] * len(times)
        trainers = [0.0] * min(self.trainings, len(times))
        trained: list[tuple[float, int]] = []
        begun = engine = 0.0
        for index, task in enumerate(times):
            if index >= self.in_flight:
                # As many are in flight as may be: this one begins when one of them is answered.
                ready, first = heappop(trained)
                found[first] = begun = engine = max(ready, engine) + times[first].infer
            ready = begun
            if task.train:
                ready = max(begun, trainers[0]) + task.train
                heapreplace(trainers, ready)
            heappush(trained, (ready, index))
        for ready, first in sorted(trained):
            found[first] = engine = max(ready, engine) + times[first].infer
        return found
