"""`arcd bench`: the same tasks done in three ways, and what residency and overlap gain.

    cold       for each task a process that trains, then a process that samples: two starts a task
    resident   arcd with one task in flight at a time: one start, nothing overlaps
    arcd       arcd as it is

Times are from the start of a command to its end. Uses arcd only as a user does.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arcd.arc.tasks import TaskSet
from arcd.daemon import foreground, schema
from arcd.daemon.options import Options
from arcd.daemon.supervisor import Incident
from arcd.daemon.watchdog import Limits
from arcd.errors import ArcdError, BadConfig
from arcd.jobs import events
from arcd.jobs.events import Record, Times
from arcd.scheduling.fair_queue import Item, makespan, ordered
from arcd.system.ledger import RESOURCES, Account
from arcd.system.processes import cores


@dataclass(frozen=True)
class Cold:
    """The run without arcd: seconds of each part over all tasks, and to the first answer."""

    wall: float
    train: float
    sample: float
    first: float


@dataclass(frozen=True)
class Resident:
    """A run of arcd: seconds in all and to the first answer, its ledger, each task's stages."""

    wall: float
    first: float
    account: Account
    times: dict[str, Times]

    @property
    def solving(self) -> float:
        """Seconds after start-up."""
        return self.account.solving


@dataclass(frozen=True)
class Comparison:
    """The fastest run of each kind, and what follows from the three."""

    tasks: int
    cores: int
    cold: Cold
    resident: Resident
    arcd: Resident

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
        """All numbers, seconds and ratios; the last line that the command prints."""
        account = self.arcd.account
        return {
            "cold_over_arcd": self.cold.wall / self.arcd.wall,
            "resident_over_arcd": self.resident.wall / self.arcd.wall,
            "overlap_efficiency": self.overlap_efficiency,
            "overlap_uncorrected": self.overlap_uncorrected,
            "outside_compute_share": account.outside_steps,
            "contention": {"trainer": self.contention.train, "engine": self.contention.infer},
            "idle": {resource: account.idle(resource) / account.solving for resource in RESOURCES},
            "bound": self.bound,
            "tasks": self.tasks,
            "cores": self.cores,
            "cold": asdict(self.cold),
            "resident": _numbers(self.resident),
            "arcd": _numbers(self.arcd),
        }


def compare(
    tasks: TaskSet,
    source: str,
    options: Options,
    *,
    repeat: int,
    report: Callable[[str], None],
) -> Comparison:
    """Run all three ways in turn, `repeat` times; the fastest run of each kind counts.

    Raises BadConfig where nothing would be trained: then nothing can overlap.
    """
    if not options.config.train.steps:
        raise BadConfig("bench: train.steps: at least 1")
    colds, residents, arcds = [], [], []
    for _ in range(repeat):
        colds.append(_cold(tasks, source, options))
        report(f"cold      {colds[-1].wall:.1f} s")
        residents.append(_resident(tasks, options, overlap=False))
        report(f"resident  {residents[-1].wall:.1f} s")
        arcds.append(_resident(tasks, options, overlap=True))
        report(f"arcd      {arcds[-1].wall:.1f} s")
    return Comparison(
        len(tasks.tasks),
        cores(),
        min(colds, key=lambda run: run.wall),
        min(residents, key=lambda run: run.wall),
        min(arcds, key=lambda run: run.wall),
    )


def _cold(tasks: TaskSet, source: str, options: Options) -> Cold:
    begun = time.monotonic()
    spent = {"train": 0.0, "sample": 0.0}
    first = 0.0
    for task in tasks.tasks:
        with tempfile.TemporaryDirectory(prefix="arcd-bench-") as folder:
            part = {
                "tasks": source,
                "task": task.id,
                "base": str(options.base),
                "device": options.device,
                "config": options.config.model_dump(mode="json"),
                "folder": folder,
            }
            for name in spent:
                spent[name] += _process(name, part)
        first = first or time.monotonic() - begun
    return Cold(time.monotonic() - begun, spent["train"], spent["sample"], first)


def _process(name: str, part: dict[str, Any]) -> float:
    begun = time.monotonic()
    command = [sys.executable, "-m", "arcd.cli.baseline", name, json.dumps(part)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["(nothing)"])[-1]
        raise ArcdError(f"bench: cold {name} of task {part['task']}: {last}")
    return time.monotonic() - begun


def _resident(tasks: TaskSet, options: Options, *, overlap: bool) -> Resident:
    begun = time.monotonic()
    records: list[Record] = []
    at: list[float] = []

    def listen(record: Record) -> None:
        records.append(record)
        if isinstance(record.event, events.Answered):
            at.append(time.monotonic() - begun)

    alone = {"lookahead": 0, "trainings": 1}
    config = options.config if overlap else options.config.model_copy(update=alone)
    with tempfile.TemporaryDirectory(prefix="arcd-bench-") as home:
        outcome = foreground.run(
            options.model_copy(update={"home": Path(home), "config": config}),
            schema.order(tasks),
            limits=Limits(),
            report=_refuse,
            begin=lambda _: listen,
        )
    return Resident(time.monotonic() - begun, at[0], outcome.account, dict(_times(records)))


def _refuse(incident: Incident) -> None:
    raise ArcdError(f"bench: the daemon was lost, so this run counts for nothing: {incident.text}")


def _times(records: Sequence[Record]) -> Iterator[tuple[str, Times]]:
    """Each task's seconds of training, and those from then to its answer."""
    trained: dict[str, tuple[float, float]] = {}
    for record in records:
        match record.event:
            case events.Started(task=task):
                trained[task] = record.at, 0.0
            case events.Trained(task=task, seconds=seconds):
                trained[task] = record.at, seconds
            case events.Answered(task=task):
                since, seconds = trained[task]
                yield task, Times(seconds, record.at - since)


def _bound(times: Sequence[Times]) -> float:
    items = [Item(0, str(i), each) for i, each in enumerate(times)]
    return makespan([item.times for item in ordered(items, "johnson")])


def _numbers(run: Resident) -> dict[str, Any]:
    return {
        "wall": run.wall,
        "first": run.first,
        "loading": run.account.loading,
        "solving": run.solving,
        "steps": {
            resource: run.account.seconds[resource].get("step", 0.0) for resource in RESOURCES
        },
    }
