"""The ledger: where the wall time of a run went, by resource: trainer, engine, host.

What a resource does not spend is idle. Where several adapters are trained at once, the trainer is
in a step while any of them is.
Training steps and engine steps are what the run is for; the ledger also knows how long at least
one resource was in a step, so that everything else can be held against the wall time. Constant in
size, safe to use from several threads. Knows nothing of who works.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

Resource = Literal["trainer", "engine", "host"]
Kind = Literal["load", "step", "hand-over", "build", "parse", "select", "record"]
RESOURCES: tuple[Resource, ...] = ("trainer", "engine", "host")
ANY: Literal["any"] = "any"


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds of wall time up to some moment, by resource and kind of work, and inside any step."""

    wall: float
    seconds: dict[Resource, dict[Kind, float]]
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

    def idle(self, resource: Resource) -> float:
        """Seconds after the start-up in which a resource did nothing."""
        busy = sum(s for kind, s in self.seconds[resource].items() if kind != "load")
        return max(0.0, self.solving - busy)

    @classmethod
    def from_json(cls, value: "dict[str, Any]") -> "Account":
        """The account that `to_json` made the object from."""
        resources = value["lanes"]
        seconds: dict[Resource, dict[Kind, float]] = {
            resource: {kind: s for kind, s in resources[resource].items() if kind != "idle"}
            for resource in RESOURCES
        }
        solving = value["wall"] - value["loading"]
        return cls(value["wall"], seconds, (1 - value["outside_steps"]) * solving)

    def to_json(self) -> dict[str, object]:
        """Seconds by resource, `idle` included, and the shares that are printed."""
        return {
            "wall": self.wall,
            "loading": self.loading,
            "solving": self.solving,
            "outside_steps": self.outside_steps,
            "lanes": {
                resource: {**self.seconds[resource], "idle": self.idle(resource)}
                for resource in RESOURCES
            },
        }


class Ledger:
    """Counts from its making; what goes on in a `load` is start-up, whatever it is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begun = clock()
        self._seconds: dict[Resource, dict[Kind, float]] = {
            resource: defaultdict(float) for resource in RESOURCES
        }
        self._loads_open = 0
        self._steps_open: Counter[Resource | Literal["any"]] = Counter()
        self._steps_since: dict[Resource | Literal["any"], float] = {}
        self._in_steps = 0.0

    @contextmanager
    def span(self, resource: Resource, kind: Kind) -> Iterator[None]:
        """Account the time spent in the block."""
        begun = self._enter(resource, kind)
        try:
            yield
        finally:
            self._leave(resource, kind, begun)

    def account(self) -> Account:
        """What has been accounted up to now; spans that are still open are not in it."""
        with self._lock:
            seconds = {resource: dict(kinds) for resource, kinds in self._seconds.items()}
            return Account(self._clock() - self._begun, seconds, self._in_steps)

    def _enter(self, resource: Resource, kind: Kind) -> float:
        with self._lock:
            now = self._clock()
            if kind == "load":
                self._loads_open += 1
            elif kind == "step":
                for which in (resource, ANY):
                    if not self._steps_open[which]:
                        self._steps_since[which] = now
                    self._steps_open[which] += 1
            return now

    def _leave(self, resource: Resource, kind: Kind, begun: float) -> None:
        with self._lock:
            now = self._clock()
            closed = self._close_steps(resource) if kind == "step" else ()
            if kind == "load":
                self._loads_open -= 1
            if self._loads_open:
                return
            if kind != "step":
                self._seconds[resource][kind] += now - begun
            if resource in closed:
                self._seconds[resource]["step"] += now - self._steps_since[resource]
            if ANY in closed:
                self._in_steps += now - self._steps_since[ANY]

    def _close_steps(self, resource: Resource) -> tuple[Resource | Literal["any"], ...]:
        """Of the resource and of any resource, those in which no step is open any more."""
        for which in (resource, ANY):
            self._steps_open[which] -= 1
        return tuple(which for which in (resource, ANY) if not self._steps_open[which])
