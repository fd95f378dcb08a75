"""The ledger: where the wall time of a daemon went, by resource (trainer, engine, host) and kind.

Code runs inside `span(resource, kind)`; an `Account` sums the seconds. Time outside of all spans is
idle. Training steps and engine steps are the useful work: the ledger also counts how long at least
one of them was open, so that `outside_steps` is the share of time lost. Where several adapters are
trained at once, the trainer is in a step while any of them is. Constant in size; safe to use from
several threads. Knows nothing of tasks or jobs.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

Resource = Literal["trainer", "engine", "host"]
"""What works; `host` is the daemon's own Python code."""

Kind = Literal["load", "step", "hand-over", "build", "parse", "select", "record"]
"""What it does: read models, train or infer, pass an adapter on (set it up, save, load, remove it),
build prompts, read completions, choose answers, write to the store."""

RESOURCES: tuple[Resource, ...] = ("trainer", "engine", "host")
"""All of them, in the order in which they are shown."""

ANY: Literal["any"] = "any"
"""Key beside the resources: steps of any of them."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a ledger has counted up to a moment."""

    wall: float
    """Seconds since the ledger was made."""
    seconds: dict[Resource, dict[Kind, float]]
    """Seconds by resource and kind of work."""
    in_steps: float
    """Seconds in which at least one step was open."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of the start-up by stage, in their order."""

    @property
    def loading(self) -> float:
        """Seconds of start-up: models are read, trainer and engine are made."""
        return sum(kinds.get("load", 0.0) for kinds in self.seconds.values())

    @property
    def solving(self) -> float:
        """Seconds of wall time after the start-up."""
        return self.wall - self.loading

    @property
    def outside_steps(self) -> float:
        """Share of the solving time, 0 to 1, in which neither trainer nor engine was in a step."""
        return 1 - self.in_steps / self.solving if self.solving > 0 else 0.0

    @property
    def hand_over(self) -> float:
        """Seconds in which adapters were passed on: set up and saved by trainers, loaded and
        removed by the engine. Those of trainers that work at once add up."""
        return sum(kinds.get("hand-over", 0.0) for kinds in self.seconds.values())

    @property
    def hand_over_share(self) -> float:
        """Seconds of hand-over as a share of the solving time.

        Where tasks are solved one at a time, this is the share of a task.
        """
        return self.hand_over / self.solving if self.solving > 0 else 0.0

    def idle(self, resource: Resource) -> float:
        """Seconds after the start-up in which a resource did nothing."""
        busy = sum(s for kind, s in self.seconds[resource].items() if kind != "load")
        return max(0.0, self.solving - busy)

    @classmethod
    def from_json(cls, value: "dict[str, Any]") -> "Account":
        """The inverse of `to_json`."""
        resources = value["lanes"]
        seconds: dict[Resource, dict[Kind, float]] = {
            resource: {kind: s for kind, s in resources[resource].items() if kind != "idle"}
            for resource in RESOURCES
        }
        solving = value["wall"] - value["loading"]
        in_steps = (1 - value["outside_steps"]) * solving
        return cls(value["wall"], seconds, in_steps, value.get("stages", {}))

    def to_json(self) -> dict[str, object]:
        """Seconds by resource and kind, with `idle`, and the numbers that are printed.

        The key `lanes` is part of the HTTP API: it keeps its name.
        """
        return {
            "wall": self.wall,
            "loading": self.loading,
            "solving": self.solving,
            "outside_steps": self.outside_steps,
            "hand_over": self.hand_over,
            "hand_over_share": self.hand_over_share,
            "lanes": {
                resource: {**self.seconds[resource], "idle": self.idle(resource)}
                for resource in RESOURCES
            },
            "stages": self.stages,
        }


class Ledger:
    """Counts seconds from its making on; what a `load` holds counts as start-up only."""

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
        self._stages: dict[str, float] = {}
        self._stages_open: list[str] = []

    @property
    def stages_open(self) -> str:
        """The stages of the start-up that are under way now."""
        with self._lock:
            return ", ".join(self._stages_open)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Account the time spent in the block, a stage of the start-up."""
        begun = self._clock()
        with self._lock:
            self._stages_open.append(name)
        try:
            yield
        finally:
            with self._lock:
                self._stages_open.remove(name)
            self.add_stage(name, self._clock() - begun)

    def add_stage(self, name: str, seconds: float) -> None:
        """Account a stage of the start-up that was measured elsewhere."""
        with self._lock:
            self._stages[name] = seconds

    @contextmanager
    def span(self, resource: Resource, kind: Kind) -> Iterator[None]:
        """Account the time spent in the block."""
        begun = self._enter(resource, kind)
        try:
            yield
        finally:
            self._leave(resource, kind, begun)

    def account(self) -> Account:
        """What was counted up to now; spans that are still open are not in it."""
        with self._lock:
            seconds = {resource: dict(kinds) for resource, kinds in self._seconds.items()}
            wall = self._clock() - self._begun
            return Account(wall, seconds, self._in_steps, dict(self._stages))

    def _enter(self, resource: Resource, kind: Kind) -> float:
        """Open a span; its beginning in seconds of the clock."""
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
        """Close one step; of `resource` and ANY, those that have no open step left."""
        for which in (resource, ANY):
            self._steps_open[which] -= 1
        return tuple(which for which in (resource, ANY) if not self._steps_open[which])
