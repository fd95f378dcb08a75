"""`arcd run`: tasks in, a submission out, with a daemon for this one job.

Prints where the time went and, where solutions are known, the metrics. Knows the daemon only
through `foreground`.
"""

import json
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcd.cli.app import (
    STALL_S,
    Backend,
    BackendOption,
    Base,
    Budget,
    Colours,
    ConfigFile,
    Device,
    HomeFolder,
    Json,
    Reserve,
    Seed,
    Settings,
    SkipInvalid,
    SolutionsFile,
    Stall,
    SubmissionFile,
    Tasks,
    budget_settings,
    client_of,
    err,
    home_of,
    load_tasks,
    out,
    say,
    seconds_left,
    settle,
    store_with,
)
from arcd.display.palette import Palette
from arcd.errors import NoDaemon

if TYPE_CHECKING:
    from arcd.arc.metrics import Report
    from arcd.arc.tasks import TaskSet
    from arcd.daemon.foreground import Outcome
    from arcd.daemon.options import Options
    from arcd.daemon.supervisor import Incident
    from arcd.display.live import Watch

GRACE_S = 5.0
"""Seconds in which the tasks in flight may be finished when `run` is interrupted."""


def run(
    tasks: Tasks,
    out_file: SubmissionFile = None,
    solutions: SolutionsFile = None,
    base: Base = None,
    device: Device = "auto",
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = None,
    budget: Budget = None,
    reserve: Reserve = None,
    home: HomeFolder = None,
    skip_invalid: SkipInvalid = False,
    stall: Stall = STALL_S,
    watch: Annotated[
        bool, typer.Option(help="On a terminal a live screen, instead of a line for each answer")
    ] = True,
    palette: Colours = Palette.arc,
    as_json: Json = False,
    backend: BackendOption = Backend.real,
) -> None:
    """Fine-tune on each task's demonstrations, sample its tests, vote, write the submission."""
    from arcd.cli import evaluation
    from arcd.system import files

    place = home_of(home)
    wanted = [*(settings or ()), *budget_settings(budget, reserve)]
    options = settle(
        place.path, base, device, config, wanted, seed=seed, grace=GRACE_S, backend=backend
    )
    found = load_tasks(tasks, solutions, skip_invalid=skip_invalid)
    # A daemon's output is not this command's, and a pipe without a reader would make it wait.
    stream = out_file if out_file and files.is_stream(out_file) else None
    outcome = _solve(options, found, None if stream else out_file, stall, palette, screen=watch)
    if stream:
        files.write_text(stream, store_with(place, outcome.job).jobs.submission(outcome.job))
    written = out_file or place.submission(outcome.job)
    metrics = None
    if found.solutions:
        metrics = evaluation.of_job(store_with(place, outcome.job), outcome.job)
    if as_json:
        print(json.dumps(_document(outcome, written, found, metrics)))
    else:
        _print_outcome(outcome, written, metrics)
    raise typer.Exit(outcome.exit_code)


def _solve(
    options: "Options",
    tasks: "TaskSet",
    out_file: Path | None,
    stall: float,
    palette: Palette,
    *,
    screen: bool,
) -> "Outcome":
    """Do the tasks with a daemon of these options, and show how they are done."""
    from arcd.daemon import foreground, schema
    from arcd.daemon.watchdog import Limits
    from arcd.display import live

    begun = time.time()
    fake = options.backend == "fake"
    order = schema.order(
        tasks,
        name=f"{tasks.name[-90:]} (fake)" if fake else None,
        outs=(out_file,) if out_file else (),
        take_up="unfinished",
    )
    with live.display(err, palette, screen=screen) as display, client_of(options.home) as client:
        if fake:
            display.note("a fake trainer and engine: the answers are the known solutions")

        def report(incident: "Incident") -> None:
            display.note(f"{incident.kind}: {incident.text}")

        def begin(status: dict[str, Any]) -> "Watch":
            job = status["job"]
            with suppress(NoDaemon):
                if said := which_job(status, client.jobs(), begun):
                    display.note(said)
            return display.of(job, tasks.solutions, partial(seconds_left, client, job))

        return foreground.run(
            options, order, limits=Limits(floor=stall), report=report, begin=begin
        )


def which_job(status: dict[str, Any], jobs: list[dict[str, Any]], begun: float) -> str | None:
    """What to say of the job that was found or made for a command that began at `begun`.

    That an earlier one goes on, or that one with the same name and as many tasks does not.
    """
    job = status["job"]
    if status["submitted"] < begun:
        done = f"{status['answered']} of {status['tasks']} tasks are answered"
        return f"going on with job {job}: {done}"
    alike = [
        other["job"]
        for other in jobs
        if (other["name"], other["tasks"]) == (status["name"], status["tasks"])
        and other["state"] in ("queued", "running", "paused")
        and other["job"] != job
    ]
    if not alike:
        return None
    other = f"unfinished job {max(alike)} has other tasks, settings or another budget"
    return f"job {job} begins anew: {other}"


def _document(
    outcome: "Outcome", written: Path, tasks: "TaskSet", metrics: "Report | None"
) -> dict[str, Any]:
    return {
        "job": outcome.job,
        "state": outcome.status["state"],
        "submission": str(written),
        "tasks": len(tasks.tasks),
        "skipped": [each.error for each in tasks.skipped],
        "metrics": metrics.to_json() if metrics else None,
        "ledger": outcome.account.to_json(),
    }


def _print_outcome(outcome: "Outcome", written: Path, metrics: "Report | None") -> None:
    from arcd.display import tables

    out.print(tables.account(outcome.account))
    if metrics:
        out.print(tables.metrics_table(metrics, each=False))
    say(f"submission {written}")
    say(f"job        {outcome.job}")
