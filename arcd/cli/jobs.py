"""The verbs of the daemon and its jobs; see `cli` for the rest and for what all have in common.

None of them imports torch: they talk to the daemon, or read its store where no daemon runs.
"""

import json
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from arcd.display.palette import Palette
from arcd.errors import NoDaemon

if TYPE_CHECKING:
    from arcd.daemon.client import Client
    from arcd.daemon.offline import OfflineClient
    from arcd.daemon.supervisor import Incident
    from arcd.display.live import Display
    from arcd.system.home import Home

out = Console()
err = Console(stderr=True)

HomeOption = Annotated[Path | None, typer.Option(help="Where arcd keeps its jobs; else ARCD_HOME")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]
JobNumber = Annotated[int, typer.Argument(help="The job's number", metavar="JOB")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. train.steps=64")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file")]
Budget = Annotated[
    str | None, typer.Option(help="End after this time, e.g. 11h30m, with the best answers found")
]
Reserve = Annotated[str | None, typer.Option(help="Of the budget, kept for writing; 10s")]
Colours = Annotated[
    Palette, typer.Option("--palette", envvar="ARCD_PALETTE", help="The colours of the cells")
]
Stall = Annotated[
    float,
    typer.Option(
        min=0.1, help="No step for so many seconds, or for much longer than usual: frozen"
    ),
]

PORT = 8710
STALL = 60.0

LOOK = 1.0
"""Seconds between two looks for a job to be watched."""


def serve(
    base: Annotated[Path | None, typer.Option(help="Base model folder; by default arcd's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    config: ConfigFile = None,
    settings: Settings = None,
    host: Annotated[
        str | None, typer.Option(help="Listen by TCP too, for who has the token")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="8710 by default")] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds to finish what is in hand")] = 30.0,
    stall: Stall = STALL,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Load the base model once and work through jobs until Ctrl-C; a second one ends it at once."""
    from arcd import config as configuration
    from arcd.daemon.options import Options
    from arcd.model import base_model

    place = _home(home)
    model = (base or base_model.bundled()).absolute()
    settled = configuration.resolve(config, settings or ())
    base_model.check_wishes(model, settled.encoding, device)
    if port is not None:
        host = host or "127.0.0.1"
    options = Options(
        home=place.path,
        base=model,
        device=device,
        config=settled,
        host=host,
        port=port or PORT,
        grace=grace,
    )

    def tell(event: str, **what: object) -> None:
        if as_json:
            print(json.dumps({"event": event, **what}), flush=True)
        else:
            words = "  ".join(f"{key} {value}" for key, value in what.items())
            out.print(f"arcd {event}  {words}", markup=False, highlight=False, soft_wrap=True)

    def progress(now: str, pid: int) -> None:
        where = {"url": f"http://{host}:{port or PORT}", "token": str(place.token)} if host else {}
        tell(now, pid=pid, home=str(place.path), **where)

    def report(incident: "Incident") -> None:
        tell(incident.kind, reason=incident.text, log=str(place.log))

    code = anyio.run(_Serving(options, stall, report, progress).run)
    tell("stopped")
    raise typer.Exit(code)


class _Serving:
    """`serve` until it ends."""

    def __init__(self, options: Any, stall: float, report: Any, progress: Any) -> None:
        self._options, self._stall = options, stall
        self._report, self._progress = report, progress

    async def run(self) -> int:
        from arcd.daemon.foreground import ENDING, command
        from arcd.daemon.supervisor import Supervisor
        from arcd.daemon.watchdog import Limits
        from arcd.system.home import Home
        from arcd.system.home_lock import HomeLock

        options = self._options
        with HomeLock.take(options.home) as lock:
            supervisor = Supervisor(
                command(options),
                lock,
                Limits(floor=self._stall),
                log=Home(options.home).log,
                report=self._report,
                progress=self._progress,
                grace=options.grace,
            )
            async with anyio.create_task_group() as tasks:

                async def obey() -> None:
                    with anyio.open_signal_receiver(*ENDING) as received:
                        async for _ in received:
                            supervisor.stop()

                tasks.start_soon(obey)
                code = await supervisor.run()
                tasks.cancel_scope.cancel()
        return code


def submit(
    tasks: Annotated[
        str,
        typer.Argument(
            help="A Kaggle challenges file, a task file, a folder, or e.g. arc1-eval:50"
        ),
    ],
    name: Annotated[str | None, typer.Option(help="A label; by default the file's name")] = None,
    priority: Annotated[
        int, typer.Option(min=1, max=100, help="Jobs share the machine in proportion to it")
    ] = 10,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Annotated[int | None, typer.Option(help="Decides lessons, views and samples")] = None,
    budget: Budget = None,
    reserve: Reserve = None,
    solutions: Annotated[Path | None, typer.Option(help="Kaggle solutions file")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Keep the submission here")] = None,
    skip_invalid: Annotated[bool, typer.Option(help="Leave out tasks that are not valid")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until the job is done, with a line for each answer")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="The same, with a live screen on a terminal")
    ] = False,
    palette: Colours = Palette.arc,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Give the running daemon a job."""
    from arcd import config as configuration
    from arcd.arc import tasks as taskfiles
    from arcd.daemon import schema

    found = taskfiles.load(tasks, skip_invalid=skip_invalid)
    found = found.with_solutions(solutions) if solutions else found
    for line in found.skipped:
        err.print(f"skipped: {line}", style="yellow", markup=False, highlight=False)
    order = schema.order(
        found,
        name=name,
        priority=priority,
        settings=configuration.tree(
            config, [*(settings or ()), *budget_settings(budget, reserve)], seed=seed
        ),
        outs=(out_file,) if out_file else (),
    )
    with _client(home) as client:
        status = client.send(order)
        job = status["job"]
        if not as_json:
            _print_submitted(status, wait=wait or watch)
        if wait or watch:
            with _displayed(palette, screen=watch) as display:
                status = _follow(client, job, display)
    if as_json:
        print(json.dumps(status))
    elif wait or watch:
        _print_status(status)
    if (wait or watch) and status["state"] != "done":
        raise typer.Exit(1)


def watch(
    job: Annotated[
        int | None, typer.Argument(help="A job's number; else what is worked on, until Ctrl-C")
    ] = None,
    palette: Colours = Palette.arc,
    home: HomeOption = None,
) -> None:
    """Look on: a live screen on a terminal, elsewhere a line for each answer."""
    with _client(home) as client:
        if job is not None:
            client.job(job)
            with _displayed(palette, screen=True) as display:
                status = _follow(client, job, display)
            _print_status(status)
            return
        client.health()
        with _displayed(palette, screen=True) as display:
            seen: int | None = None
            while True:
                following = _newest(client.jobs())
                if following is None or following == seen:
                    time.sleep(LOOK)
                    continue
                _follow(client, following, display)
                seen = following


def jobs(home: HomeOption = None, as_json: Json = False) -> None:
    """List all jobs."""
    with _reading(home) as reader:
        found = reader.jobs()
    if as_json:
        print(json.dumps(found))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("job", "name", "state", "answered", "retriable", "priority"):
        table.add_column(heading, justify="left" if heading in ("name", "state") else "right")
    for job in found:
        answered = f"{job['answered']}/{job['tasks']}"
        counts = (str(job["retriable"]), str(job["priority"]))
        table.add_row(str(job["job"]), job["name"], job["state"], answered, *counts)
    out.print(table if found else "no jobs yet; submit one with: arcd submit TASKS")


def status(
    job: Annotated[int | None, typer.Argument(help="A job's number; else the daemon's")] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """How far a job is, or how the daemon is."""
    with _reading(home) as reader:
        found = reader.health() if job is None else reader.job(job)
        forecast = None if job is None else reader.forecast(job)
    if as_json:
        print(json.dumps(found if forecast is None else {**found, "forecast": forecast}))
    elif forecast is None:
        _print_health(found)
    else:
        _print_status(found)
        _print_forecast(forecast)


def result(
    job: JobNumber,
    out_file: Annotated[Path | None, typer.Option("--out", help="Submission to write")] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Write the job's submission: complete and valid at any time, also while the job runs."""
    from arcd.arc import submission

    with _reading(home) as reader:
        found, now = reader.result(job), reader.job(job)
    if out_file is None:
        print(json.dumps(found))
        return
    submission.write(out_file, found)
    if as_json:
        print(json.dumps({"job": job, "submission": str(out_file), **now}))
    else:
        _say(f"{out_file}: {now['answered']} of {now['tasks']} tasks answered, job {now['state']}")


def cancel(job: JobNumber, home: HomeOption = None, as_json: Json = False) -> None:
    """Leave what is not answered unanswered; the answers there are stand."""
    _control("cancel", job, home, as_json=as_json)


def pause(job: JobNumber, home: HomeOption = None, as_json: Json = False) -> None:
    """Begin none of the job's tasks any more; what is in hand is finished."""
    _control("pause", job, home, as_json=as_json)


def resume(job: JobNumber, home: HomeOption = None, as_json: Json = False) -> None:
    """End a pause."""
    _control("resume", job, home, as_json=as_json)


def retry(job: JobNumber, home: HomeOption = None, as_json: Json = False) -> None:
    """Do the job's failed and doubtful tasks once more; the candidates they have are kept."""
    _control("retry", job, home, as_json=as_json)


def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Of what is there")] = 100,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """What the daemon printed."""
    path = _home(home).log
    if not path.is_file():
        raise NoDaemon(f"{path}: no daemon has run here yet")
    for line in _lines(path, lines, follow=follow):
        print(json.dumps({"line": line}) if as_json else line, flush=follow)


def stop(
    wait: Annotated[bool, typer.Option(help="Until it has ended")] = True,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """End the daemon in order: finish or set aside what is in hand, write the submissions."""
    from arcd.system.home_lock import HomeLock

    with _client(home) as client:
        client.stop()
        while wait:
            try:
                client.health()
            except NoDaemon:
                break
            time.sleep(0.1)
    # The next daemon must find the home free.
    while wait and HomeLock.held(_home(home).path):
        time.sleep(0.1)
    if as_json:
        print(json.dumps({"state": "stopped" if wait else "stopping"}))
    else:
        _say("stopped" if wait else "stopping")


VERBS = (serve, submit, watch, jobs, status, result, cancel, pause, resume, retry, logs, stop)


def budget_settings(budget: str | None, reserve: str | None) -> list[str]:
    """The options --budget and --reserve as settings."""
    from arcd.scheduling.budget import seconds

    given = {"budget.seconds": budget, "budget.reserve": reserve}
    return [f"{key}={seconds(text)}" for key, text in given.items() if text is not None]


def _home(given: Path | None) -> "Home":
    from arcd.system.home import Home

    return Home.at(given)


def _client(home: Path | None) -> "Client":
    from arcd.daemon.client import Client

    return Client(home)


@contextmanager
def _reading(given: Path | None) -> "Iterator[Client | OfflineClient]":
    """The daemon where one answers, else the store that it left."""
    from arcd.daemon.offline import OfflineClient

    with _client(given) as client:
        try:
            client.health()
        except NoDaemon:
            if given is None and os.environ.get("ARCD_URL"):
                raise  # what lies here is not what was asked for
        else:
            yield client
            return
    yield OfflineClient(_home(given))


def ledger_of_daemon(home: "Home") -> dict[str, Any] | None:
    """Where the time of the daemon of this home went, if one runs."""
    with _client(home.path) as client:
        try:
            return dict(client.health()["ledger"])
        except NoDaemon:
            return None


def _control(verb: str, job: int, home: Path | None, *, as_json: bool) -> None:
    with _client(home) as client:
        found = getattr(client, verb)(job)
    if as_json:
        print(json.dumps(found))
    else:
        _print_status(found)


@contextmanager
def _displayed(palette: Palette, *, screen: bool) -> "Iterator[Display]":
    """Where jobs are shown; an end by Ctrl-C or a signal leaves the terminal as it was."""
    from arcd.display import live

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    before = {which: signal.signal(which, end) for which in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with live.display(err, palette, screen=screen) as display:
            yield display
    except KeyboardInterrupt:
        err.print("nothing is ended by that; see arcd jobs", highlight=False)
        raise typer.Exit(130) from None
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _follow(client: "Client", job: int, display: "Display") -> dict[str, Any]:
    """Show a job until it is finished; its status then."""
    watch = display.of(job, client.solutions(job), partial(seconds_left, client, job))
    for record in client.follow(job):
        watch(record)
    return client.job(job)


def seconds_left(client: "Client", job: int) -> float | None:
    """Of work that waits, if there is a daemon that can tell."""
    try:
        left = client.forecast(job)["seconds"]
    except NoDaemon:
        return None
    return None if left is None else float(left)


def _newest(jobs: list[dict[str, Any]]) -> int | None:
    """What is worked on, else what waits, else what was done last."""
    order = ("running", "queued", "paused")
    states = {state: place for place, state in enumerate(reversed(order), 1)}
    found = max(jobs, key=lambda job: (states.get(job["state"], 0), job["job"]), default=None)
    return None if found is None else int(found["job"])


def _lines(path: Path, count: int, *, follow: bool) -> Iterator[str]:
    """The last lines of a file and, with `follow`, each line that is added."""
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from (line.rstrip("\n") for line in deque(file, maxlen=count))
        while follow:
            line = file.readline()
            if line:
                yield line.rstrip("\n")
            elif path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                return  # put aside for a new one
            else:
                time.sleep(0.2)


def _say(text: str) -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_submitted(status: dict[str, Any], *, wait: bool) -> None:
    job = status["job"]
    _say(f"job {job}: {status['tasks']} tasks, {status['state']}")
    if not wait:
        _say(f"  arcd status {job}")
        _say(f"  arcd result {job} --out submission.json")
        _say(f"  arcd cancel {job}")


def _print_status(status: dict[str, Any]) -> None:
    in_flight = status["started"] + status["trained"]
    doubt = f", {status['retriable']} failed or doubtful" if status["retriable"] else ""
    _say(
        f"job {status['job']} ({status['name']}): {status['state']}, "
        f"{status['answered']} of {status['tasks']} tasks answered, {in_flight} in hand{doubt}"
    )
    if status["retriable"] and status["state"] == "done":
        _say(f"  arcd retry {status['job']}")


def _print_forecast(forecast: dict[str, Any]) -> None:
    if forecast["seconds"]:
        _say(f"  about {forecast['seconds']:.0f} s of work left")
    for lane, ratio in forecast["accuracy"].items():
        low, middle, high = (f"{ratio[decile]:.2f}" for decile in ("p10", "p50", "p90"))
        _say(f"  predicted / taken, {lane}: {middle} (a tenth below {low}, a tenth above {high})")


def _print_health(health: dict[str, Any]) -> None:
    if health["state"] == "stopped":
        _say(f"no daemon runs in {health['home']}, {health['jobs']} jobs in its store")
        return
    _say(
        f"daemon {health['state']}: pid {health['pid']}, {health['base']} on {health['device']} "
        f"in {health['dtype']}, {health['jobs']} jobs"
    )
    if rates := health["rates"]:
        decode = rates["decode_tokens_per_second"].items()
        _say(
            f"  a training makes {_round(rates['train_tokens_per_second'])} tok/s, the engine "
            f"reads {_round(rates['prefill_tokens_per_second'])} and generates "
            + ", ".join(f"{_round(rate)} with {n}" for n, rate in decode)
            + " sequences"
        )


def _round(rate: float | None) -> str:
    return "?" if rate is None else f"{rate:.0f}"
