"""A sweep: which settings are tried, and how good and how fast each was.

Pure functions of texts and of a job's history. Knows nothing of daemons and terminals.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from arcd.arc.metrics import Report
from arcd.errors import BadConfig, BadJob
from arcd.jobs.history import History
from arcd.jobs.state import JobState, Stage


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting and its values that are tried, as they were written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """A finished point of the grid: its settings, its job, its metrics, its times in seconds.

    `wall` is from the first task's start to the last answer; `stages` are the sums over the tasks.
    `tasks` counts all that were done, also those without solutions.
    """

    settings: dict[str, str]
    job: int
    tasks: int
    report: Report
    wall: float
    stages: dict[Stage, float]

    def to_json(self) -> dict[str, Any]:
        """The settings, the job, all metrics, and the times in seconds."""
        return {
            "settings": self.settings,
            "job": self.job,
            "score": self.report.score,
            **self.report.total.to_json(),
            "seconds": self.wall,
            "seconds_per_task": self.wall / self.tasks,
            "train_seconds": self.stages["train"],
            "infer_seconds": self.stages["infer"],
        }


def axes(over: Iterable[str]) -> tuple[Axis, ...]:
    """The axes in texts like "train.lr=1e-3,4e-3,train.steps=20,60".

    A part with "=" outside of brackets begins an axis; one without is a further value of the last
    axis. Raises BadConfig where the first part has no key, or a key comes twice.
    """
    found: dict[str, list[str]] = {}
    for text in over:
        key = ""
        for part in _parts(text):
            name, given, value = part.partition("=")
            if given and not name.startswith(("[", '"', "'")):
                key = name.strip()
                if not key or key in found:
                    raise BadConfig(f"--over {text}: {key or 'a key'} comes twice or is missing")
                found[key] = [value.strip()]
            elif key:
                found[key].append(part.strip())
            else:
                raise BadConfig(f"--over {text}: expected KEY=VALUE,VALUE, e.g. train.steps=20,60")
    if not found or not all(all(values) for values in found.values()):
        raise BadConfig("--over: expected KEY=VALUE,VALUE, e.g. train.steps=20,60")
    return tuple(Axis(key, tuple(values)) for key, values in found.items())


def points(grid: Iterable[Axis]) -> Iterator[dict[str, str]]:
    """Each combination of the values, the last axis fastest."""
    chosen = list(grid)
    for values in product(*(axis.values for axis in chosen)):
        yield {axis.key: value for axis, value in zip(chosen, values, strict=True)}


def trial(settings: dict[str, str], history: History, report: Report) -> Trial:
    """The trial that a finished job is. Raises BadJob if the job was cancelled."""
    job = history.state.jobs[history.job]
    if job.state is JobState.cancelled:
        raise BadJob(f"job {job.id} was cancelled; the same sweep goes on with a new one for it")
    stages: dict[Stage, float] = {"train": 0.0, "infer": 0.0}
    for span in history.over:
        stages[span.stage] += span.until(history.at) - span.begin
    begun = min((span.begin for span in history.over), default=0.0)
    ended = max((span.until(history.at) for span in history.over), default=0.0)
    return Trial(settings, job.id, len(job.tasks), report, ended - begun, stages)


def _parts(text: str) -> Iterator[str]:
    """Cut at the commas outside of brackets."""
    depth, begun = 0, 0
    for i, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            yield text[begun:i]
            begun = i + 1
    yield text[begun:]
