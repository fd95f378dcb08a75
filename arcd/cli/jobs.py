"""The verbs of jobs: submit, watch, jobs, status, cancel, pause, resume, retry.

They talk to the daemon of a home; `jobs` and `status` read its store where no daemon runs. None of
them imports torch.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from arcd.cli.app import (
    Budget,
    Colours,
    ConfigFile,
    HomeFolder,
    JobNumber,
    Json,
    Reserve,
    Seed,
    Settings,
    SkipInvalid,
    SolutionsFile,
    Tasks,
    budget_settings,
    client_of,
    err,
    load_tasks,
    out,
    reading,
    say,
    seconds_left,
)
from arcd.display.palette import Palette
from arcd.errors import NotPublished

if TYPE_CHECKING:
    from arcd.daemon.client import Client
    from arcd.display.live import Display, Watch
    from arcd.jobs.state import State

JOBS_POLL_S = 1.0
"""Seconds between two looks for a job to be watched."""


def submit(
    tasks: Tasks,
    name: Annotated[str | None, typer.Option(help="A label; by default the file's name")] = None,
    priority: Annotated[
        int, typer.Option(min=1, max=100, help="Jobs share the machine in proportion to it")
    ] = 10,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    budget: Budget = None,
    reserve: Reserve = None,
    solutions: SolutionsFile = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Keep the submission here")] = None,
    skip_invalid: SkipInvalid = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until the job is done, with a line for each answer")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="The same, with a live screen on a terminal")
    ] = False,
    palette: Colours = Palette.arc,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Give the running daemon a job."""
    from arcd import config as configuration
    from arcd.daemon import schema
    from arcd.daemon.client import check_published

    found = load_tasks(tasks, solutions, skip_invalid=skip_invalid)
    wanted = [*(settings or ()), *budget_settings(budget, reserve)]
    order = schema.order(
        found,
        name=name,
        priority=priority,
        settings=configuration.tree(config, wanted, seed=seed),
        outs=(out_file,) if out_file else (),
    )
    with client_of(home) as client:
        status = client.send(order)
        if not as_json:
            _print_submitted(status, wait=wait or watch)
        if wait or watch:
            with _displayed(palette, screen=watch) as display:
                status = _follow(client, status["job"], display)
    if as_json:
        print(json.dumps(status))
    elif wait or watch:
        _print_status(status)
    if wait or watch:
        check_published(status)
        if status["state"] != "done":
            raise typer.Exit(1)


def watch(
    job: Annotated[
        int | None, typer.Argument(help="A job's number; else the running one, until Ctrl-C")
    ] = None,
    palette: Colours = Palette.arc,
    home: HomeFolder = None,
) -> None:
    """Show a job: a live screen on a terminal, elsewhere a line for each answer."""
    with client_of(home) as client:
        if job is None:
            client.health()
            with _displayed(palette, screen=True) as display:
                _follow_newest(client, display)
        else:
            client.job(job)
            with _displayed(palette, screen=True) as display:
                status = _follow(client, job, display)
            _print_status(status)


def jobs(home: HomeFolder = None, as_json: Json = False) -> None:
    """List all jobs."""
    from arcd.cli.tables import jobs_table

    with reading(home) as reader:
        found = reader.jobs()
    if as_json:
        print(json.dumps(found))
    else:
        out.print(jobs_table(found) if found else "no jobs yet; submit one with: arcd submit TASKS")


def status(
    job: Annotated[int | None, typer.Argument(help="A job's number; else the daemon's")] = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """How far a job is, or how the daemon is."""
    with reading(home) as reader:
        found = reader.health() if job is None else reader.job(job)
        forecast = None if job is None else reader.forecast(job)
    if as_json:
        print(json.dumps(found if forecast is None else {**found, "forecast": forecast}))
    elif forecast is None:
        _print_health(found)
    else:
        _print_status(found)
        _print_forecast(forecast)


def cancel(job: JobNumber, home: HomeFolder = None, as_json: Json = False) -> None:
    """End a job: its waiting tasks stay unanswered, the answers it has stay."""
    with client_of(home) as client:
        _print_changed(client.cancel(job), as_json=as_json)


def pause(job: JobNumber, home: HomeFolder = None, as_json: Json = False) -> None:
    """Begin no more tasks of the job; those in flight are finished."""
    with client_of(home) as client:
        _print_changed(client.pause(job), as_json=as_json)


def resume(job: JobNumber, home: HomeFolder = None, as_json: Json = False) -> None:
    """End a pause."""
    with client_of(home) as client:
        _print_changed(client.resume(job), as_json=as_json)


def retry(job: JobNumber, home: HomeFolder = None, as_json: Json = False) -> None:
    """Do the job's failed and doubtful tasks once more; the candidates they have are kept."""
    with client_of(home) as client:
        _print_changed(client.retry(job), as_json=as_json)


@contextmanager
def _displayed(palette: Palette, *, screen: bool) -> "Iterator[Display]":
    """Where jobs are shown; Ctrl-C and signals leave the terminal as it was."""
    from arcd.display import live

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    before = {which: signal.signal(which, end) for which in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with live.display(err, palette, screen=screen) as display:
            yield display
    except KeyboardInterrupt:
        err.print("jobs go on without this; see arcd jobs")
        raise typer.Exit(130) from None
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _follow(client: "Client", job: int, display: "Display") -> dict[str, Any]:
    """Show a job until it is finished; its status then, which has what could not be written."""
    watch = display.of(job, client.solutions(job), partial(seconds_left, client, job))
    with suppress(NotPublished):
        for record in client.follow(job, brief=True):
            watch(record)
    return client.job(job)


def _follow_newest(client: "Client", display: "Display") -> None:
    """Show one job after the other, until this is interrupted: always one that runs, if any."""
    shown: _Shown | None = None
    seen: set[int] = set()
    while True:
        found = _newest(client.jobs())
        if found is None or (found["job"] in seen and _at_rest(found)):
            time.sleep(JOBS_POLL_S)
            continue
        if shown is None or shown.job != found["job"]:
            shown = _Shown.begin(client, found["job"], display)
            seen.add(shown.job)
        shown.follow_until_at_rest(client)


@dataclass
class _Shown:
    """A job on the display, and how far it has been followed."""

    job: int
    watch: "Watch"
    state: "State"
    after: int = 0

    @classmethod
    def begin(cls, client: "Client", job: int, display: "Display") -> Self:
        from arcd.jobs.state import State

        watch = display.of(job, client.solutions(job), partial(seconds_left, client, job))
        return cls(job, watch, State())

    def follow_until_at_rest(self, client: "Client") -> None:
        """Show what has happened since, until the job is finished or paused with none in flight."""
        with suppress(NotPublished):
            for record in client.follow(self.job, self.after, brief=True):
                self.after = record.seq
                self.state.apply(record)
                self.watch(record)
                if self.state.jobs[self.job].at_rest:
                    return


def _at_rest(status: dict[str, Any]) -> bool:
    """Whether nothing more happens to a job before somebody asks for it."""
    match status["state"]:
        case "queued" | "running":
            return False
        case "paused":
            return not status["started"] + status["trained"]
    return True


def _newest(jobs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last job that runs, else that waits, else that is paused, else that is over."""
    order = ("running", "queued", "paused")
    states = {state: place for place, state in enumerate(reversed(order), 1)}
    return max(jobs, key=lambda job: (states.get(job["state"], 0), job["job"]), default=None)


def _print_submitted(status: dict[str, Any], *, wait: bool) -> None:
    job = status["job"]
    say(f"job {job}: {status['tasks']} tasks, {status['state']}")
    if not wait:
        say(f"  arcd status {job}")
        say(f"  arcd result {job} --out submission.json")
        say(f"  arcd cancel {job}")


def _print_changed(status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(status))
    else:
        _print_status(status)


def _print_status(status: dict[str, Any]) -> None:
    in_flight = status["started"] + status["trained"]
    doubt = f", {status['retriable']} failed or doubtful" if status["retriable"] else ""
    say(
        f"job {status['job']} ({status['name']}): {status['state']}, "
        f"{status['answered']} of {status['tasks']} tasks answered, {in_flight} in flight{doubt}"
    )
    for path, reason in status.get("unpublished", {}).items():
        say(f"  {path}: {reason}")
    if status["retriable"] and status["state"] == "done":
        say(f"  arcd retry {status['job']}")


def _print_forecast(forecast: dict[str, Any]) -> None:
    if forecast["seconds"]:
        say(f"  about {forecast['seconds']:.0f} s of work left")
    for stage, ratio in forecast["accuracy"].items():
        low, middle, high = (f"{ratio[decile]:.2f}" for decile in ("p10", "p50", "p90"))
        say(f"  predicted / taken, {stage}: {middle} (a tenth below {low}, a tenth above {high})")


def _print_health(health: dict[str, Any]) -> None:
    if health["state"] == "stopped":
        say(f"no daemon runs in {health['home']}, {health['jobs']} jobs in its store")
        return
    hardware = f" ({health['hardware']})" if health.get("hardware") else ""
    say(
        f"daemon {health['state']}: pid {health['pid']}, {health['base']} on {health['device']}"
        f"{hardware} in {health['dtype']}, {health['jobs']} jobs"
    )
    if rates := health["rates"]:
        decode = rates["decode_tokens_per_second"].items()
        say(
            f"  a training makes {_round(rates['train_tokens_per_second'])} tok/s, the engine "
            f"reads {_round(rates['prefill_tokens_per_second'])} and generates "
            + ", ".join(f"{_round(rate)} with {n}" for n, rate in decode)
            + " sequences"
        )


def _round(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:.0f}"
