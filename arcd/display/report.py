"""The result of a job as a page of HTML, and its stages as a trace for other tools.

Pure functions of the job's history and of its tasks. The page is one file that loads nothing from
the network: what it shows at once is in it as JSON, drawn by the script in `page/`; the grids,
which are most of it, are in it packed, and the script unpacks those that somebody looks at. The
trace is in the Chrome trace event format, which Perfetto opens. Knows nothing of where either is
written.
"""

import base64
import zlib
from collections.abc import Iterable, Iterator
from importlib.resources import files
from itertools import islice
from math import isfinite
from typing import Any

import msgspec

from arcd.arc import metrics
from arcd.arc.metrics import Metrics
from arcd.config import Config
from arcd.display.grids import MAX_CANDIDATES, likely
from arcd.display.palette import Palette
from arcd.jobs.events import Times
from arcd.jobs.history import History, Span
from arcd.jobs.sheets import Sheet, SheetVote
from arcd.jobs.state import Job, Stage, TaskState

STAGE_NAMES: dict[Stage, str] = {"train": "training", "infer": "inference"}
"""The processes of the trace, in order."""


STYLE = ("report.css",)
SCRIPT = ("start.js", "lanes.js", "charts.js", "grids.js", "tasks.js")
"""Files in `page/`, in their order on the page."""

PACKED_TOGETHER = 64
"""Tasks whose grids are packed, and unpacked, together."""

MAX_CURVES = 300
"""Curves of losses that are drawn at most."""


def page(
    history: History, sheets: Iterable[Sheet], config: Config, ledger: dict[str, Any] | None
) -> str:
    """The report of a job, finished or not, as one HTML document.

    `sheets` are all its tasks. `ledger` is an account as JSON, if there is one.
    """
    job = _job(history)
    scores: dict[str, Metrics] = {}
    tasks: list[dict[str, Any]] = []

    def grids() -> Iterator[dict[str, Any]]:
        for sheet in sheets:
            if (score := sheet.metrics()) is not None:
                scores[sheet.task] = score
            tasks.append(_task(sheet, history))
            yield _grids(sheet)

    packed = list(_packed(grids()))
    places = {name: place for place, name in enumerate(job.tasks)}
    document = {
        "job": job.to_json(),
        "subtitle": _subtitle(history, job),
        "tiles": _tiles(history, job, metrics.report(scores) if scores else None),
        "settings": config.model_dump(mode="json"),
        "end": history.until(history.at) - job.submitted,
        "spans": [_span(span, history, job, places) for span in history.spans()],
        "curves": _curves(history),
        "deaths": [at - job.submitted for at in history.deaths],
        "ledger": ledger,
        "palettes": {palette.value: palette.colours for palette in Palette},
        "tasks": tasks,
        "packed": packed,
        "packed_together": PACKED_TOGETHER,
    }
    # JSON has no NaN: msgspec writes null. A "<" in its text could end the script element.
    embedded = msgspec.json.encode(document).decode().replace("<", "\\u003c")
    text = _file("report.html")
    for name, parts in (("STYLE", STYLE), ("SCRIPT", SCRIPT)):
        text = text.replace(f"/*{name}*/", "\n".join(map(_file, parts)))
    return text.replace("/*DATA*/", embedded)


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


def _tiles(history: History, job: Job, report: metrics.Report | None) -> list[tuple[str, str]]:
    """The numbers at the top of the page, as (name, value)."""
    found: list[tuple[str, str]] = []
    if report is not None:
        total = report.total
        found += [
            ("score", f"{report.score:.1%}"),
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


def _span(
    span: Span, history: History, job: Job, places: dict[str, int]
) -> tuple[Stage, int, int, int, float, float]:
    """A span in the page's data: stage, place of its task, number, track, begin and end.

    Times are in seconds from the submission.
    """
    end = span.until(history.until(history.at))
    begin, end = (round(at - job.submitted, 3) for at in (span.begin, end))
    return span.stage, places[span.task], span.number, span.track, begin, end


def _curves(history: History) -> list[list[tuple[int, float]]]:
    """The losses of trainings of two steps or more: of all, or of some evenly chosen ones."""
    finite = ([point for point in curve if isfinite(point[1])] for curve in history.losses.values())
    curves = [curve for curve in finite if len(curve) > 1]
    every = -(-len(curves) // MAX_CURVES) or 1
    return [[(step, round(loss, 4)) for step, loss in curve] for curve in curves[::every]]


def _task(sheet: Sheet, history: History) -> dict[str, Any]:
    """A task in the page's data, without its grids."""
    state = _job(history).tasks[sheet.task]
    losses = history.losses.get(sheet.task)
    return {
        "id": sheet.task,
        "phase": state.phase.value,
        "right": sheet.right,
        "samples": sheet.samples,
        "invalid": sheet.invalid,
        "agreement": _agreement(sheet),
        **_doubts(state),
        "seconds": round(state.seconds, 3),
        "predicted": _times(state.predicted),
        "taken": _times(state.taken),
        "loss": round(losses[-1][1], 4) if losses else None,
        "notes": list(state.notes),
    }


def _times(times: Times | None) -> dict[str, float] | None:
    if times is None:
        return None
    return {"train": round(times.train, 3), "infer": round(times.infer, 3)}


def _grids(sheet: Sheet) -> dict[str, Any]:
    """The grids of a task, rows of digits, in the page's data."""
    return {
        "train": sheet.train,
        "tests": sheet.tests,
        "truth": sheet.truth,
        "ranked": [[_vote(vote) for vote in test[:MAX_CANDIDATES]] for test in sheet.ranked],
        "others": [max(0, len(test) - MAX_CANDIDATES) for test in sheet.ranked],
    }


def _packed(grids: Iterator[dict[str, Any]]) -> Iterator[str]:
    """The tasks' grids as texts, some tasks in each: base64 of a zlib stream of JSON."""
    while together := list(islice(grids, PACKED_TOGETHER)):
        yield base64.b64encode(zlib.compress(msgspec.json.encode(together))).decode()


def _doubts(state: TaskState) -> dict[str, bool]:
    answer = state.answer
    return {
        "failed": answer is not None and answer.failed,
        "doubtful": answer is not None and answer.doubtful and not answer.failed,
    }


def _agreement(sheet: Sheet) -> float:
    """Share of the samples that are one of the best grids, 0 to 1."""
    if not sheet.samples:
        return 0.0
    return round(sum(test[0].count for test in sheet.ranked if test) / sheet.samples, 4)


def _vote(vote: SheetVote) -> dict[str, Any]:
    return {"grid": vote.grid, "votes": vote.count, "likely": likely(vote)}
