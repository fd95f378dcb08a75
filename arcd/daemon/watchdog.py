"""The watchdog: decides when a daemon counts as stalled.

Beats and times come in, a reason and a deadline come out; no clock, no process, no I/O. It learns
how long steps of trainer and engine take here, so that a slow machine does not count as stalled.
Knows nothing of what happens to a daemon that has stalled.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from arcd.daemon.heartbeat import Activity, Beat

QUANTILE = 0.99
"""The quantile of the gaps between steps that counts as the usual gap."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long trainer or engine may go without a step, in seconds; `floor` <= `ceiling`."""

    factor: float = 20
    """A stall is this many times the usual gap between steps: an engine that becomes ten times
    slower, for example because the machine is shared, is left alone."""

    floor: float = 60
    """No stall before this: a step can take seconds once, to compile a kernel."""

    ceiling: float = 900
    """A stall at the latest; also the limit before the first step was seen."""

    loading: float = 1800
    """A stall at the latest while a stage of the start-up neither ends nor begins. A stage reads a
    base (60 GB at 50 MB/s take 20 minutes) or compiles and measures (vLLM's first start takes
    minutes where the processor is slow); a hang lasts for ever (vllm issue 17676)."""

    window: int = 1000
    """Gaps that are remembered: minutes of engine steps, hours of training steps."""


class Watchdog:
    """Watches one daemon after the other; times are seconds of a monotonic clock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._engine = _Gaps("engine", limits)
        self._trainer = _Gaps("trainer", limits)
        self.begin(-math.inf)

    def begin(self, now: float) -> None:
        """A new daemon: no gap is open; what was learnt of gaps stays."""
        self._heard = self._loading_since = now
        self._loading = ""
        self._ready = False
        self._engine.close()
        self._trainer.close()

    def hear(self, beat: Beat, now: float) -> None:
        """Take in a beat; it says which of trainer and engine have made steps."""
        self._heard = now
        self._ready = beat.ready
        if beat.ready:
            self._engine.hear(beat.engine, now)
            self._trainer.hear(beat.trainer, now)
        else:
            self._engine.close()
            self._trainer.close()
        if beat.loading != self._loading:
            self._loading, self._loading_since = beat.loading, now

    def stalled(self, now: float) -> str | None:
        """Why the daemon counts as stalled at this time; None if it does not."""
        for what, since, limit in self._clocks():
            if now >= since + limit:
                return f"no {what} for {_seconds(now - since)} (limit {_seconds(limit)})"
        return None

    def deadline(self) -> float:
        """When the daemon will count as stalled if no beat arrives before."""
        return min(since + limit for _, since, limit in self._clocks())

    def _clocks(self) -> Iterator[tuple[str, float, float]]:
        """(what must come, since when it is awaited, within how many seconds)."""
        if not self._ready:
            # While a model is read, one native call can take minutes.
            yield "sign of life", self._heard, self._limits.ceiling
            where = f" ({self._loading})" if self._loading else ""
            patience = max(self._limits.loading, self._limits.floor)
            yield f"progress in loading{where}", self._loading_since, patience
            return
        yield "sign of life", self._heard, self._limits.floor
        for gaps in (self._engine, self._trainer):
            if gaps.since is not None:
                yield f"{gaps.what} step", gaps.since, gaps.limit


class _Gaps:
    """The gaps between the steps of the trainer, or of the engine, while it is busy.

    `since`: when the open gap began, None while it is idle. `limit`: how long the gap may last.
    """

    def __init__(self, what: str, limits: Limits) -> None:
        self.what = what
        self.since: float | None = None
        self.limit = limits.ceiling
        self._limits = limits
        self._steps = 0
        self._seen: deque[float] = deque(maxlen=limits.window)

    def close(self) -> None:
        self.since = None

    def hear(self, activity: Activity, now: float) -> None:
        stepped = activity.steps != self._steps
        if stepped and self.since is not None:
            self._learn(now - self.since)
        if not activity.busy:
            self.since = None
        elif stepped or self.since is None:
            self.since = now
        self._steps = activity.steps

    def _learn(self, gap: float) -> None:
        self._seen.append(gap)
        usual = sorted(self._seen)[math.ceil(QUANTILE * len(self._seen)) - 1]
        wanted = self._limits.factor * usual
        self.limit = min(max(wanted, self._limits.floor), self._limits.ceiling)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
