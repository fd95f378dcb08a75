"""The result of a job as a page of HTML, and its stages as a trace for other tools.

Pure functions of the job's history. The page is one file that loads nothing from the network: the
data are in it as JSON, drawn by the script in `page/`. The trace is in the Chrome trace event
format, which Perfetto opens. Knows nothing of where either is written.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from arcd.arc.grids import Grid
from arcd.arc.metrics import Report
from arcd.arc.selection import Verdict, Vote
from arcd.arc.tasks import Task, TaskSet
from arcd.config import Config
from arcd.display.grids import MAX_CANDIDATES, likely
from arcd.display.palette import Palette
from arcd.jobs.history import History, Span
from arcd.jobs.state import Job, Stage, TaskState

STAGE_NAMES: dict[Stage, str] = {"train": "training", "infer": "inference"}
"""The processes of the trace, in order."""


def page(
    history: History,
    tasks: TaskSet,
    config: Config,
    metrics: Report | None,
    ledger: dict[str, Any] | None,
) -> str:
    """The report of a job, finished or not, as one HTML document.

    `metrics` are None where no solution is known. `ledger` is an account as JSON, if there is one.
    """
    job = _job(history)
    document = {
        "job": job.to_json(),
        "subtitle": _subtitle(history, job),
        "tiles": _tiles(history, job, metrics),
        "settings": config.model_dump(mode="json"),
        "end": history.until(history.at) - job.submitted,
        "spans": [_span(span, history, job) for span in history.spans()],
        "deaths": [at - job.submitted for at in history.deaths],
        "ledger": ledger,
        "palettes": {palette.value: palette.colours for palette in Palette},
        "tasks": [_task(task, history, tasks.solutions.get(task.id)) for task in tasks.tasks],
    }
    # A "<" in JSON text could end the script element.
    embedded = json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"STYLE": _file("report.css"), "SCRIPT": _file("report.js"), "DATA": embedded}
    text = _file("report.html")
    for name, part in parts.items():
        text = text.replace(f"/*{name}*/", part)
    return text


def trace(history: History) -> dict[str, Any]:
    """The stages of a job as Chrome trace events, microseconds from its submission.

    Source: "Trace Event Format", The Chromium Authors: complete events (X) with a process for
    each stage and a thread for each track, instant events (i) for notices.
    """
    job = _job(history)
    numbers: dict[Stage, int] = {stage: i for i, stage in enumerate(STAGE_NAMES, 1)}
    found: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": numbers[stage], "tid": 0, "args": {"name": name}}
        for stage, name in STAGE_NAMES.items()
    ]
    for span in history.spans():
        end = span.until(history.until(history.at))
        found.append(
            {
                "ph": "X",
                "name": span.task,
                "cat": span.stage,
                "pid": numbers[span.stage],
                "tid": span.track,
                "ts": _microseconds(span.begin - job.submitted),
                "dur": _microseconds(end - span.begin),
                "args": _arguments(span, history),
            }
        )
    for at, text in history.notices:
        when = _microseconds(at - job.submitted)
        found.append({"ph": "i", "s": "g", "name": text, "pid": 1, "tid": 0, "ts": when})
    return {"traceEvents": found, "displayTimeUnit": "ms", "otherData": {"job": job.name}}


def _arguments(span: Span, history: History) -> dict[str, Any]:
    """What the trace tells of a span beside its times."""
    if span.stage == "train" and (curve := history.losses.get(span.task)):
        return {"steps": curve[-1][0], "loss": curve[-1][1]}
    return {}


def _job(history: History) -> Job:
    job = history.found
    assert job is not None, "a history without its job's first record"
    return job


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


def _file(name: str) -> str:
    return files("arcd.display").joinpath("page", name).read_text(encoding="utf-8")


def _subtitle(history: History, job: Job) -> str:
    words = [job.state.value]
    if (daemon := history.platform) is not None:
        words.append(f"{daemon.platform}, arcd {daemon.version}")
    return ", ".join(words)


def _tiles(history: History, job: Job, metrics: Report | None) -> list[tuple[str, str]]:
    """The numbers at the top of the page, as (name, value)."""
    found: list[tuple[str, str]] = []
    if metrics is not None:
        total = metrics.total
        found += [
            ("score", f"{metrics.score:.1%}"),
            ("pass@1", f"{total.pass_1:.1%}"),
            ("pass@n", f"{total.pass_n:.1%}"),
            ("correct pixels", f"{total.correct_pixels:.1%}"),
            ("correct size", f"{total.correct_size:.1%}"),
        ]
    states = job.tasks.values()
    answered = [task for task in states if task.answer is not None]
    wall = history.until(history.at) - job.submitted
    found += [
        ("answered", f"{len(answered)} of {len(job.tasks)}"),
        ("fine-tuned", str(sum(task.answered_by is not None for task in states))),
        ("doubtful or failed", str(len(job.retriable()))),
        ("seconds", f"{wall:.0f}"),
        ("seconds a task", f"{wall / max(1, len(answered)):.1f}"),
        ("restarts", str(len(history.deaths))),
    ]
    return found


def _span(span: Span, history: History, job: Job) -> dict[str, Any]:
    """A span in the page's data; times in seconds from the submission."""
    end = span.until(history.until(history.at))
    times = {"begin": span.begin - job.submitted, "end": end - job.submitted}
    return {**asdict(span), **{name: round(at, 3) for name, at in times.items()}}


def _task(task: Task, history: History, truth: Sequence[Grid] | None) -> dict[str, Any]:
    """A task in the page's data."""
    state = _job(history).tasks[task.id]
    verdict = history.answers.get(task.id)
    ranked = verdict.ranked if verdict else ((),) * len(task.tests)
    return {
        "id": task.id,
        "phase": state.phase.value,
        "train": [[_text(pair.input), _text(pair.output)] for pair in task.train],
        "tests": [_text(test) for test in task.tests],
        "truth": [_text(output) for output in truth] if truth else None,
        "right": history.right.get(task.id),
        "ranked": [[_vote(vote) for vote in test[:MAX_CANDIDATES]] for test in ranked],
        "others": [max(0, len(test) - MAX_CANDIDATES) for test in ranked],
        "samples": verdict.samples if verdict else 0,
        "invalid": verdict.invalid if verdict else 0,
        "agreement": _agreement(verdict),
        **_doubts(state),
        "seconds": state.seconds,
        "predicted": asdict(state.predicted) if state.predicted else None,
        "taken": asdict(state.taken) if state.taken else None,
        "losses": [(step, round(loss, 4)) for step, loss in history.losses.get(task.id, ())],
        "notes": list(state.notes),
    }


def _doubts(state: TaskState) -> dict[str, bool]:
    answer = state.answer
    return {
        "failed": answer is not None and answer.failed,
        "doubtful": answer is not None and answer.doubtful and not answer.failed,
    }


def _agreement(verdict: Verdict | None) -> float:
    """Share of the samples that are one of the best grids, 0 to 1."""
    if verdict is None or not verdict.samples:
        return 0.0
    return sum(test[0].count for test in verdict.ranked if test) / verdict.samples


def _vote(vote: Vote) -> dict[str, Any]:
    return {"grid": _text(vote.grid), "votes": vote.count, "likely": likely(vote)}


def _text(grid: Grid) -> str:
    """Rows of digits, e.g. 012/345."""
    return "/".join("".join(map(str, row)) for row in grid)
