"""The ledger: where the wall time of a run went, lane by lane.

What a lane (trainer, engine, host) does not spend is idle. Of several trainings at once the trainer
lane is in a step while any of them is.
Training steps and engine steps are what the run is for; the ledger also knows how long at least
one lane was in a step, so that everything else can be held against the wall time. Constant in
size, safe to use from several threads. Knows nothing of who works.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Lane = Literal["trainer", "engine", "host"]
Kind = Literal["load", "step", "hand-over", "build", "parse", "select", "record"]
LANES: tuple[Lane, ...] = ("trainer", "engine", "host")
ANY: Literal["any"] = "any"


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds of wall time up to some moment, by lane and kind of work, and inside any step."""

    wall: float
    seconds: dict[Lane, dict[Kind, float]]
    in_steps: float

    @property
    def loading(self) -> float:
        """Seconds of start-up: models read, trainer and engine made."""
        return sum(kinds.get("load", 0.0) for kinds in self.seconds.values())

    @property
    def solving(self) -> float:
        """Seconds of wall time after the start-up."""
        return self.wall - self.loading

    @property
    def outside_steps(self) -> float:
        """Share of the solving time in which neither trainer nor engine was in a step."""
        return 1 - self.in_steps / self.solving if self.solving > 0 else 0.0

    def idle(self, lane: Lane) -> float:
        """Seconds after the start-up in which a lane did nothing."""
        busy = sum(s for kind, s in self.seconds[lane].items() if kind != "load")
        return max(0.0, self.solving - busy)

    @classmethod
    def from_json(cls, value: "dict[str, Any]") -> "Account":
        """The account that `to_json` made the object from."""
        lanes = value["lanes"]
        seconds: dict[Lane, dict[Kind, float]] = {
            lane: {kind: s for kind, s in lanes[lane].items() if kind != "idle"} for lane in LANES
        }
        solving = value["wall"] - value["loading"]
        return cls(value["wall"], seconds, (1 - value["outside_steps"]) * solving)

    def to_json(self) -> dict[str, object]:
        """Seconds by lane, `idle` included, and the shares that are printed."""
        return {
            "wall": self.wall,
            "loading": self.loading,
            "solving": self.solving,
            "outside_steps": self.outside_steps,
            "lanes": {lane: {**self.seconds[lane], "idle": self.idle(lane)} for lane in LANES},
        }


class Ledger:
    """Counts from its making; what goes on in a `load` is start-up, whatever it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._seconds: dict[Lane, dict[Kind, float]] = {lane: defaultdict(float) for lane in LANES}
        self._loads_open = 0
        self._steps_open: Counter[Lane | Literal["any"]] = Counter()
        self._steps_since: dict[Lane | Literal["any"], float] = {}
        self._in_steps = 0.0

    @contextmanager
    def span(self, lane: Lane, kind: Kind) -> Iterator[None]:
        """Account the time spent in the block."""
        begun = self._enter(lane, kind)
        try:
            yield
        finally:
            self._leave(lane, kind, begun)

    def account(self) -> Account:
        """What has been accounted up to now; spans that are still open are not in it."""
        with self._lock:
            seconds = {lane: dict(kinds) for lane, kinds in self._seconds.items()}
            return Account(self._clock() - self._begun, seconds, self._in_steps)

    def _enter(self, lane: Lane, kind: Kind) -> float:
        with self._lock:
            now = self._clock()
            if kind == "load":
                self._loads_open += 1
            elif kind == "step":
                for which in (lane, ANY):
                    if not self._steps_open[which]:
                        self._steps_since[which] = now
                    self._steps_open[which] += 1
            return now

    def _leave(self, lane: Lane, kind: Kind, begun: float) -> None:
        with self._lock:
            now = self._clock()
            closed = self._close_steps(lane) if kind == "step" else ()
            if kind == "load":
                self._loads_open -= 1
            if self._loads_open:
                return
            if kind != "step":
                self._seconds[lane][kind] += now - begun
            if lane in closed:
                self._seconds[lane]["step"] += now - self._steps_since[lane]
            if ANY in closed:
                self._in_steps += now - self._steps_since[ANY]

    def _close_steps(self, lane: Lane) -> tuple[Lane | Literal["any"], ...]:
        """Of the lane and of any lane, those in which no step is open any more."""
        for which in (lane, ANY):
            self._steps_open[which] -= 1
        return tuple(which for which in (lane, ANY) if not self._steps_open[which])
