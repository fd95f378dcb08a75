"""The figures of a bench: what follows from the times of each round, and their medians.

Pure functions of values: nothing here runs anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean, median
from typing import Any

from arcd.jobs.events import Times
from arcd.scheduling.fair_queue import Item, makespan, ordered
from arcd.system.ledger import RESOURCES, Account

PEFT = "peft"
"""The usual script among those whose training speed is measured."""

PEFT_LABELLED = "peft_labelled"
"""The same script with logits only where a token has a label."""


@dataclass(frozen=True)
class Cold:
    """The run without arcd: seconds of each part over all tasks, and to the first answer."""

    wall: float
    train: float
    """Of the processes that train, with their starts."""
    sample: float
    """Of the processes that sample, with their starts."""
    first: float
    steps: Times
    """Of both without their starts."""


@dataclass(frozen=True)
class Resident:
    """A run of arcd: seconds in all and to the first answer, its ledger, each task's stages."""

    wall: float
    first: float
    account: Account
    times: Mapping[str, Times]

    @property
    def solving(self) -> float:
        """Seconds after start-up."""
        return self.account.solving

    def to_json(self) -> dict[str, Any]:
        """Its numbers, in seconds."""
        seconds = self.account.seconds
        return {
            "wall": self.wall,
            "first": self.first,
            "loading": self.account.loading,
            "solving": self.solving,
            "steps": {resource: seconds[resource].get("step", 0.0) for resource in RESOURCES},
            "hand_over": self.account.hand_over,
        }


@dataclass(frozen=True)
class LessonSpeed:
    """Tokens a second on the lessons of one task, by who trained."""

    task: str
    tokens: float
    """Of a lesson, in the mean."""
    rates: Mapping[str, float]

    def over(self, other: str) -> dict[str, float]:
        """How many times as fast each mode of arcd's trainer is as another script."""
        ours = self.rates.keys() - {PEFT, PEFT_LABELLED}
        return {mode: self.rates[mode] / self.rates[other] for mode in sorted(ours)}


@dataclass(frozen=True)
class Speeds:
    """Training speeds on lessons of several lengths; at least one."""

    threads: int
    """OpenMP threads of each training, on a CPU."""
    lessons: tuple[LessonSpeed, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Speeds":
        """The inverse of `asdict`."""
        return cls(value["threads"], tuple(LessonSpeed(**each) for each in value["lessons"]))

    def over(self, other: str) -> dict[str, float]:
        """The geometric mean over the lengths of `LessonSpeed.over`."""
        each = [speed.over(other) for speed in self.lessons]
        return {mode: geometric_mean([ratios[mode] for ratios in each]) for mode in each[0]}

    def to_json(self) -> dict[str, Any]:
        """Rates and ratios of each length."""
        lengths = [{**asdict(each), "over_peft": each.over(PEFT)} for each in self.lessons]
        return {"threads": self.threads, "lengths": lengths}


@dataclass(frozen=True)
class Round:
    """One run of each kind, one after the other, and what follows from them."""

    cold: Cold
    resident: Resident
    arcd: Resident
    speeds: Speeds

    @property
    def contention(self) -> Times:
        """How many times as long the steps of trainer and engine took because both worked."""
        together, alone = self.arcd.account.seconds, self.resident.account.seconds
        trainer, engine = (
            together[resource]["step"] / alone[resource]["step"] for resource in RESOURCES[:2]
        )
        return Times(trainer, engine)

    @property
    def overlap_efficiency(self) -> float | None:
        """(serial - measured) / (serial - bound): 1 is perfect overlap, 0 none; None for one task.

        Serial: the tasks one after the other. Bound: a trainer and an engine that never wait for
        each other beyond the order of the tasks. Both are computed from the times of the resident
        run, multiplied by the contention. So this number says how well trainer and engine are kept
        busy, and the contention says what it costs that both work at once.
        """
        slower = self.contention
        return self._efficiency(
            [Times(t.train * slower.train, t.infer * slower.infer) for t in self._times]
        )

    @property
    def overlap_uncorrected(self) -> float | None:
        """The same without contention, as if trainer and engine had a machine each."""
        return self._efficiency(self._times)

    @property
    def bound(self) -> float:
        """Seconds that a trainer and an engine with a machine each would take at least."""
        return _bound(self._times)

    @property
    def _times(self) -> list[Times]:
        return list(self.resident.times.values())

    def _efficiency(self, times: list[Times]) -> float | None:
        serial, bound = sum(each.total for each in times), _bound(times)
        # One task has nothing to overlap with.
        return (serial - self.arcd.solving) / (serial - bound) if serial > bound else None

    def to_json(self) -> dict[str, Any]:
        """All figures of the round: ratios, shares from 0 to 1, seconds, tokens a second."""
        account = self.arcd.account
        return {
            "cold_over_arcd": self.cold.wall / self.arcd.wall,
            "resident_over_arcd": self.resident.wall / self.arcd.wall,
            "trainer_over_peft": self.speeds.over(PEFT),
            "trainer_over_peft_labelled": self.speeds.over(PEFT_LABELLED),
            "overlap_efficiency": self.overlap_efficiency,
            "overlap_uncorrected": self.overlap_uncorrected,
            "outside_compute_share": account.outside_steps,
            "hand_over_share": {
                "resident": self.resident.account.hand_over_share,
                "arcd": account.hand_over_share,
            },
            "contention": {"trainer": self.contention.train, "engine": self.contention.infer},
            "idle": {resource: account.idle(resource) / account.solving for resource in RESOURCES},
            "bound": self.bound,
            "cold": {
                **asdict(self.cold),
                "steps": {"trainer": self.cold.steps.train, "engine": self.cold.steps.infer},
            },
            "resident": self.resident.to_json(),
            "arcd": self.arcd.to_json(),
            "speeds": self.speeds.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """The rounds of a bench; at least one."""

    tasks: int
    cores: int
    rounds: tuple[Round, ...]

    def to_json(self) -> dict[str, Any]:
        """The median of each figure over the rounds; `rounds` has the walls of each.

        A ratio is that of runs of one round: the median of ratios, not the ratio of medians.
        """
        walls = [
            {kind: getattr(each, kind).wall for kind in ("cold", "resident", "arcd")}
            for each in self.rounds
        ]
        figures = medians([each.to_json() for each in self.rounds])
        return {**figures, "tasks": self.tasks, "cores": self.cores, "rounds": walls}


def medians(values: Sequence[Any]) -> Any:
    """The median of each number in values of one shape; other leaves are those of the first."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: medians([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [medians(each) for each in zip(*values, strict=True)]
    return median(values) if isinstance(first, float) else first


def _bound(times: Sequence[Times]) -> float:
    items = [Item(0, str(i), each) for i, each in enumerate(times)]
    return makespan([item.times for item in ordered(items, "johnson")])
