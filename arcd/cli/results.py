"""The verbs that read and write results: result, eval, merge, show, report.

They work from submission files or from a home's store, of running and finished jobs alike; only
`result` asks the daemon first. None of them imports torch.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcd.cli.app import (
    Colours,
    HomeFolder,
    JobNumber,
    Json,
    SubmissionFile,
    client_of,
    far_daemon,
    home_to_read,
    out,
    reading,
    say,
    store_with,
)
from arcd.display.palette import Palette
from arcd.errors import BadTask, NoDaemon

if TYPE_CHECKING:
    from arcd.system.home import Home


class MergeMode(StrEnum):
    """Which attempts of two submissions are taken first."""

    both = "both"
    second = "second"


def result(
    job: JobNumber,
    out_file: SubmissionFile = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Write the job's submission: complete and valid at any time, also while the job runs."""
    from arcd.system import files

    with reading(home) as reader:
        text, now = reader.result_text(job), reader.job(job)
    if out_file is None:
        print(text)
        return
    files.write_text(out_file, text)
    if as_json:
        print(json.dumps({"job": job, "submission": str(out_file), **now}))
    else:
        say(f"{out_file}: {now['answered']} of {now['tasks']} tasks answered, job {now['state']}")


def evaluate(
    answers: Annotated[str, typer.Argument(help="A submission file or the number of a job")],
    solutions: Annotated[
        Path | None, typer.Option(help="Kaggle solutions file; a job may know its own")
    ] = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Metrics of a submission's attempts, or of all samples and the attempts of a job.

    A submission is measured by all tasks in the solutions file: one that it lacks is unanswered. A
    job is measured by those of them that are its own.
    """
    from arcd.arc import metrics, submission
    from arcd.cli import evaluation
    from arcd.display import tables

    job = _job_number(answers)
    given = evaluation.load_truth(solutions, answers) if solutions or job is None else None
    if job is None:
        attempts = submission.read(Path(answers))
        report = metrics.evaluate(given or {}, attempts)
        own = len(report.tasks.keys() & attempts.keys())
    elif far_daemon(home):
        with client_of(home) as client:
            report = evaluation.of_far_job(client, job, given)
        own = len(report.tasks)
    else:
        report = evaluation.of_job(store_with(home_to_read(home), job), job, given)
        own = len(report.tasks)
    if as_json:
        in_file = {"solutions": len(given)} if given is not None else {}
        print(json.dumps({**report.to_json(), **in_file}))
        return
    out.print(tables.metrics_table(report, each=True))
    if given is not None and own < len(given):
        name = answers if job is None else f"job {job}"
        say(f"{solutions}: solutions of {len(given)} tasks, {own} of them in {name}")


def _job_number(answers: str) -> int | None:
    """The number of a job, if that is what it is; no job has more digits."""
    return int(answers) if answers.isdecimal() and len(answers) < 19 else None


def merge(
    first: Annotated[Path, typer.Argument(help="Submission A")],
    second: Annotated[Path, typer.Argument(help="Submission B")],
    out_file: Annotated[Path, typer.Option("--out", help="Submission to write")],
    mode: Annotated[
        MergeMode, typer.Option(help="first attempts of both, or B only for second attempts")
    ] = MergeMode.both,
    as_json: Json = False,
) -> None:
    """Ensemble two submissions into one; their ids may differ."""
    from arcd.arc import submission

    merged = submission.merge(submission.read(first), submission.read(second), mode.value)
    submission.write(out_file, merged)
    if as_json:
        print(json.dumps({"submission": str(out_file), "tasks": len(merged)}))
    else:
        say(f"{out_file}: {len(merged)} tasks")


def show(
    task: Annotated[str, typer.Argument(help="A task file, set:ID, or with --job a task's id")],
    job: Annotated[int | None, typer.Option(help="A job's number")] = None,
    palette: Colours = Palette.arc,
    home: HomeFolder = None,
) -> None:
    """Draw a task's grids and, with a job, its candidates with their votes and likelihood."""
    from arcd.arc import tasks
    from arcd.display import grids as drawing

    colours = drawing.on(out, palette)
    if job is not None:
        _show_answers(home_to_read(home), job, task, colours)
        return
    found = tasks.load(task)
    for each in found.tasks:
        out.print(drawing.task(each, colours, found.solutions.get(each.id, ())))


def report(
    job: JobNumber,
    out_file: Annotated[Path | None, typer.Option("--out", help="HTML file to write")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Chrome trace of trainer and engine to write, for Perfetto"),
    ] = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Write a job as one HTML file that needs no network, or its training and sampling as a trace.

    Both work while the job runs.
    """
    from arcd.display import report as reporting
    from arcd.jobs import outline
    from arcd.jobs.sheets import sheets
    from arcd.system import files

    if out_file is None and trace is None:
        raise typer.BadParameter("give --out FILE or --trace FILE", param_hint="--out")
    place = home_to_read(home)
    store = store_with(place, job)
    history = outline.history(store.database, job)
    if out_file is not None:
        ledger = history.ledger or _ledger_of_daemon(place)
        tasks = sheets(store.database, job)
        files.write_text(out_file, reporting.page(history, tasks, store.jobs.config(job), ledger))
    if trace is not None:
        files.write_text(trace, json.dumps(reporting.trace(history)))
    written = {"report": out_file, "trace": trace}
    if as_json:
        print(json.dumps({"job": job} | {k: str(v) for k, v in written.items() if v}))
    else:
        for path in filter(None, written.values()):
            say(str(path))


def _show_answers(home: "Home", job: int, task: str, colours: Palette | None) -> None:
    """Draw a task of a job, and what was answered or, before that, sampled."""
    from arcd.arc import selection
    from arcd.display import grids as drawing
    from arcd.jobs.fold import Fold
    from arcd.jobs.snapshots import Snapshots

    store = store_with(home, job)
    found = store.jobs.solved(job, task)
    if found is None:
        raise BadTask(f"job {job}: no task {task!r} in it")
    wanted, truth = found
    out.print(drawing.task(wanted, colours, truth))
    fold = Fold(store.database, Snapshots(home.snapshot))
    fold.job(job)
    notes = fold.state.jobs[job].tasks[task].notes
    drawn = store.jobs.candidates(job, task)
    votes = selection.verdict(task, len(wanted.tests), drawn, None, notes)
    out.print(drawing.answers(next(store.jobs.verdicts(job, task), votes), colours, truth))


def _ledger_of_daemon(home: "Home") -> dict[str, Any] | None:
    """Where the time of the daemon of this home went, if one runs."""
    with client_of(home.path) as client:
        try:
            return dict(client.health()["ledger"])
        except NoDaemon:
            return None
