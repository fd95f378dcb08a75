"""A sweep: the same tasks with each of a grid of settings, and what each of them came to.

Pure but for what is read of the store; the jobs are the daemon's. Knows nothing of terminals.
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
    """A setting and the values that are tried of it, as they were written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """A point of the grid that is done: its settings, its job, how good and how long.

    `wall` is from the first task's start to the last answer, `stages` what training and sampling
    took; seconds. `tasks` are all that were done, also those without solutions.
    """

    settings: dict[str, str]
    job: int
    tasks: int
    report: Report
    wall: float
    stages: dict[Stage, float]

    def to_json(self) -> dict[str, Any]:
        """The settings, the job, all metrics, and seconds."""
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

    A part with "=" outside of brackets begins an axis, one without is one more value of the last.
    Raises BadConfig where there is none to add to, or one comes twice.
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
    """What a finished job came to. Raises BadJob if it was cancelled before it was."""
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
    """Cut at the commas that are not inside of brackets."""
    depth, begun = 0, 0
    for i, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and not depth:
            yield text[begun:i]
            begun = i + 1
    yield text[begun:]
