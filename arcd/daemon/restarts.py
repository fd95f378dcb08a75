"""Restarts: whether another daemon is started after one has ended, and how soon.

A daemon that dies of a task leaves the others to be done, so it is started again at once. One that
dies of its home would die for ever: daemons in a row that get nothing done are started later and
later, and given up in the end. Beats and times come in; no clock, no process. Knows nothing of how
a daemon ends.
"""

from arcd.daemon.heartbeat import Beat, Failure

MOST_UNREADY = 3
"""Daemons in a row that may end before they are ready: another one would end as well."""

MOST_FRUITLESS = 10
"""Daemons in a row that may end without having done anything. More than the deaths that set a few
tasks aside, each of which kills the daemon that begins it."""

CALM_S = 60.0
"""Seconds after which a daemon without work has proved that it can live."""

FIRST_PAUSE_S = 1.0
"""Seconds before the third of daemons in a row that get nothing done; twice as many before each
after it."""

LONGEST_PAUSE_S = 30.0

RELEASE_S = 10.0
"""Seconds before the second try after a failure that may pass: the driver returns the memory of a
process that is dead, which takes as long as its last kernels run."""


class Life:
    """What the beats of one daemon tell of its work; times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.fruitful = False
        """Whether trainer or engine made a step for a task, or there was nothing to be done."""
        self._ready_at: float | None = None

    @property
    def ready(self) -> bool:
        """Whether its models were loaded."""
        return self._ready_at is not None

    def hear(self, beat: Beat, now: float) -> None:
        """Take in a beat."""
        if not beat.ready:
            return
        if self._ready_at is None:
            self._ready_at = now
        stepped = beat.engine.steps + beat.trainer.steps > 0
        idle = not (beat.engine.busy or beat.trainer.busy)
        self.fruitful |= stepped or (idle and now >= self._ready_at + CALM_S)


class Restarts:
    """Counts the daemons in a row that got nothing done."""

    def __init__(self) -> None:
        self.any_ready = False
        """Whether a daemon was ready that then ended: tasks may have been in flight."""
        self._died = False
        self._waits = False
        self._unready = 0
        self._fruitless = 0

    def may_pass(self, failure: Failure) -> bool:
        """Whether a daemon that has told this failure is worth a second try.

        Only after a death, whose process may still hold the GPU, and only once in a row.
        """
        return failure.passing and self._died and not self._waits

    def count(self, life: Life, failure: Failure | None = None) -> None:
        """A daemon has ended although nobody had asked it to."""
        self.any_ready |= life.ready
        self._died, self._waits = True, failure is not None
        self._unready = 0 if life.ready else self._unready + 1
        self._fruitless = 0 if life.fruitful else self._fruitless + 1

    @property
    def pause(self) -> float:
        """Seconds before the next daemon."""
        if self._waits:
            return RELEASE_S
        later = self._fruitless - 2
        return min(FIRST_PAUSE_S * 2**later, LONGEST_PAUSE_S) if later >= 0 else 0.0

    @property
    def hopeless(self) -> str | None:
        """Why there shall be no next daemon, if so."""
        if self._unready >= MOST_UNREADY:
            return f"the daemon ended {self._unready} times before it was ready"
        if self._fruitless >= MOST_FRUITLESS:
            return f"the daemon ended {self._fruitless} times in a row and got nothing done"
        return None
