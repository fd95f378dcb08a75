"""The command line: one function for each verb; heavy imports only inside them.

Exit code 0: done; 1: failed; 2: the input or the usage was wrong; 130: interrupted. Results go to
standard output, progress and errors to standard error.
"""

import json
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from arcd.cli import jobs
from arcd.cli.jobs import HomeOption
from arcd.display.palette import Palette
from arcd.errors import known
from arcd.system.home import Home

if TYPE_CHECKING:
    from arcd.arc.metrics import Report
    from arcd.arc.tasks import Solutions
    from arcd.daemon.supervisor import Incident
    from arcd.jobs.store import Store

app = typer.Typer(
    name="arcd",
    help="Test-time fine-tuning on ARC-AGI: a resident trainer and a running vLLM engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)
for verb in jobs.VERBS:
    app.command()(verb)

GRACE = 5.0
"""Seconds that `run` gives what is in hand when it is interrupted."""


class MergeMode(StrEnum):
    """Which attempts of two submissions are taken first."""

    both = "both"
    second = "second"


Tasks = Annotated[
    str,
    typer.Argument(help="A Kaggle challenges file, a task file, a folder, or e.g. arc1-eval:50"),
]
SolutionsFile = Annotated[Path | None, typer.Option(help="Kaggle solutions file")]
Base = Annotated[Path | None, typer.Option(help="Base model folder; by default arcd's own")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]


@app.command()
def run(
    tasks: Tasks,
    out_file: Annotated[Path | None, typer.Option("--out", help="Submission to write")] = None,
    solutions: SolutionsFile = None,
    base: Base = None,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Decides lessons, views and samples")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, e.g. train.steps=64")
    ] = None,
    budget: jobs.Budget = None,
    reserve: jobs.Reserve = None,
    home: HomeOption = None,
    skip_invalid: Annotated[bool, typer.Option(help="Leave out tasks that are not valid")] = False,
    stall: jobs.Stall = jobs.STALL,
    watch: Annotated[
        bool, typer.Option(help="On a terminal a live screen, instead of a line for each answer")
    ] = True,
    palette: jobs.Colours = Palette.arc,
    as_json: Json = False,
) -> None:
    """Fine-tune on each task's demonstrations, sample its tests, vote, write the submission."""
    from arcd import config as configuration
    from arcd.arc import tasks as taskfiles
    from arcd.daemon import foreground, schema
    from arcd.daemon.client import Client
    from arcd.daemon.options import Options
    from arcd.daemon.watchdog import Limits
    from arcd.display import live, tables
    from arcd.model import base_model

    limits = jobs.budget_settings(budget, reserve)
    settled = configuration.resolve(config, [*(settings or ()), *limits], seed=seed)
    found = taskfiles.load(tasks, skip_invalid=skip_invalid)
    found = found.with_solutions(solutions) if solutions else found
    for line in found.skipped:
        err.print(f"skipped: {line}", style="yellow", markup=False, highlight=False)
    place = Home.at(home)
    model = (base or base_model.bundled()).absolute()
    base_model.check_wishes(model, settled.encoding, device)
    options = Options(
        home=place.path,
        base=model,
        device=device,
        config=settled,
        grace=GRACE,
    )
    order = schema.order(found, outs=(out_file,) if out_file else (), take_up="unfinished")

    with live.display(err, palette, screen=watch) as display, Client(place.path) as client:

        def report(incident: "Incident") -> None:
            display.note(f"{incident.kind}: {incident.text}")

        def begin(status: dict[str, Any]) -> live.Watch:
            job = status["job"]
            if status["answered"]:
                done = f"{status['answered']} of {status['tasks']} tasks are answered"
                display.note(f"going on with job {job}: {done}")
            ask = partial(jobs.seconds_left, client, job)
            return display.of(job, found.solutions, ask)

        outcome = foreground.run(
            options, order, limits=Limits(floor=stall), report=report, begin=begin
        )
    written = out_file or place.submission(outcome.job)
    evaluated = None
    if found.solutions:
        evaluated = _evaluate_job(_store_with(place, outcome.job), outcome.job)
    if as_json:
        document = {
            "job": outcome.job,
            "state": outcome.status["state"],
            "submission": str(written),
            "tasks": len(found.tasks),
            "skipped": found.skipped,
            "metrics": evaluated.to_json() if evaluated else None,
            "ledger": outcome.account.to_json(),
        }
        print(json.dumps(document))
        raise typer.Exit(outcome.exit_code)
    out.print(tables.account(outcome.account))
    if evaluated:
        out.print(tables.metrics_table(evaluated, each=False))
    out.print(f"submission {written}\njob        {outcome.job}", markup=False, highlight=False)
    raise typer.Exit(outcome.exit_code)


@app.command("eval")
def evaluate(
    answers: Annotated[str, typer.Argument(help="A submission file or the number of a job")],
    solutions: Annotated[
        Path | None, typer.Option(help="Kaggle solutions file; a job may know its own")
    ] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Metrics of a submission's attempts, or of all samples and the attempts of a job."""
    from arcd.arc import metrics, submission
    from arcd.display import tables

    if answers.isdecimal():
        job = int(answers)
        report = _evaluate_job(_store_with(Home.at(home), job), job, solutions)
    else:
        truth = _truth(solutions, answers)
        report = metrics.evaluate(truth, submission.read(Path(answers)))
    if as_json:
        print(json.dumps(report.to_json()))
    else:
        out.print(tables.metrics_table(report, each=True))


@app.command()
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
        out.print(f"{out_file}: {len(merged)} tasks", markup=False, highlight=False)


@app.command()
def show(
    task: Annotated[str, typer.Argument(help="A task file, set:ID, or with --job a task's id")],
    job: Annotated[int | None, typer.Option(help="A job's number")] = None,
    palette: jobs.Colours = Palette.arc,
    home: HomeOption = None,
) -> None:
    """Draw a task's grids and, with a job, its candidates with their votes and likelihood."""
    from arcd.arc import selection, tasks
    from arcd.display import grids as drawing
    from arcd.errors import BadTask

    colours = drawing.on(out, palette)
    if job is None:
        found = tasks.load(task)
        for each in found.tasks:
            truth = found.solutions.get(each.id, ())
            out.print(drawing.task(each, colours, truth))
        return
    store = _store_with(Home.at(home), job)
    found = store.jobs.tasks(job)
    wanted = next((t for t in found.tasks if t.id == task), None)
    if wanted is None:
        raise BadTask(f"job {job}: no task {task!r} in it")
    truth = found.solutions.get(task, ())
    out.print(drawing.task(wanted, colours, truth))
    notes = store.journal.state().jobs[job].tasks[task].notes
    drawn = store.jobs.candidates(job, task)
    votes = selection.verdict(task, len(wanted.tests), drawn, None, notes)
    verdict = next(store.jobs.verdicts(job, task), votes)
    out.print(drawing.answers(verdict, colours, truth))


@app.command()
def report(
    job: jobs.JobNumber,
    out_file: Annotated[Path | None, typer.Option("--out", help="HTML file to write")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Chrome trace of the lanes to write, for Perfetto")
    ] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Write all about a job as one HTML file that needs no network, or its lanes as a trace."""
    from arcd.display import report as reporting
    from arcd.jobs.history import History
    from arcd.system import files

    if out_file is None and trace is None:
        raise typer.BadParameter("give --out FILE or --trace FILE", param_hint="--out")
    place = Home.at(home)
    store = _store_with(place, job)
    tasks = store.jobs.tasks(job)
    history = History.of(job, store.journal.records(job=job), tasks.solutions)
    if out_file is not None:
        metrics = _evaluate_job(store, job) if tasks.solutions else None
        ledger = history.ledger or jobs.ledger_of_daemon(place)
        page = reporting.page(history, tasks, store.jobs.config(job), metrics, ledger)
        files.write_text(out_file, page)
    if trace is not None:
        files.write_text(trace, json.dumps(reporting.trace(history)))
    written = {"report": out_file, "trace": trace}
    if as_json:
        print(json.dumps({"job": job} | {k: str(v) for k, v in written.items() if v}))
    else:
        for path in filter(None, written.values()):
            out.print(str(path), markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(base: Base = None, device: Device = "auto", as_json: Json = False) -> None:
    """Report versions, device and memory, and solve one task to see that everything works."""
    from arcd.cli.doctor import examine
    from arcd.model import base_model

    findings = []
    for finding in examine(base or base_model.bundled(), device):
        findings.append(finding)
        if not as_json:
            mark = "[green]ok  [/]" if finding.ok else "[red]fail[/]"
            out.print(f"{mark} {finding.name:<13} {finding.value}", highlight=False)
    if as_json:
        print(json.dumps({f.name: {"ok": f.ok, "value": f.value} for f in findings}))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def bench(
    tasks: Annotated[str, typer.Argument(help="As for run")] = "arc1-eval:12",
    base: Base = None,
    device: Device = "auto",
    config: Annotated[Path | None, typer.Option(help="TOML file")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="The fastest run of each kind counts")] = 1,
    as_json: Json = False,
) -> None:
    """Time the same tasks without arcd, with arcd one at a time, and with arcd as it is."""
    from arcd import config as configuration
    from arcd.arc import tasks as taskfiles
    from arcd.cli import bench as measuring
    from arcd.cli.tables import bench_table
    from arcd.daemon.options import Options
    from arcd.display import tables
    from arcd.model import base_model

    settled = configuration.resolve(config, settings or ())
    model = (base or base_model.bundled()).absolute()
    base_model.check_wishes(model, settled.encoding, device)
    found = taskfiles.load(tasks)
    options = Options(home=Path(), base=model, device=device, config=settled)
    report = err.print if not as_json else lambda text: None
    compared = measuring.compare(found, tasks, options, repeat=repeat, report=report)
    if not as_json:
        out.print(bench_table(compared))
        out.print(tables.account(compared.arcd.account))
    print(json.dumps(compared.to_json()))


@app.command()
def sweep(
    config: Annotated[
        Path, typer.Argument(help="TOML file with settings and, as `tasks`, what to try them on")
    ],
    over: Annotated[
        list[str], typer.Option(help="KEY=VALUE,VALUE,KEY=VALUE..., e.g. train.steps=20,60")
    ],
    tasks: Annotated[str | None, typer.Option(help="As for run, instead of the file's")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE")] = None,
    home: HomeOption = None,
    as_json: Json = False,
) -> None:
    """Try every combination of some settings with the running daemon, one after the other.

    What was tried before, with the same tasks and settings, is not done again.
    """
    from arcd import config as configuration
    from arcd.arc import tasks as taskfiles
    from arcd.cli import sweep as sweeping
    from arcd.cli.tables import trials_table
    from arcd.daemon import schema
    from arcd.daemon.client import Client
    from arcd.errors import BadConfig, BadTask
    from arcd.jobs.history import History

    given = configuration.tree(config, settings or ())
    named = given.pop("tasks", None)
    if not isinstance(named, str | None) or not (tasks or named):
        raise BadConfig(f'{config}: say what to try: --tasks, or tasks = "..." in the file')
    found = taskfiles.load(tasks or str(named))
    if not found.solutions:
        raise BadTask(f"{found.name}: no solutions to compare the answers with")
    points = list(sweeping.points(sweeping.axes(over)))
    trees = [configuration.with_settings(given, point) for point in points]
    place, trials = Home.at(home), []
    with Client(home) as client:
        for point, tree in zip(points, trees, strict=True):
            words = " ".join(f"{key}={value}" for key, value in point.items())
            order = schema.order(found, name=words[-100:], settings=tree, take_up="done")
            job = int(client.send(order)["job"])
            err.print(f"job {job}: {words}", markup=False, highlight=False, soft_wrap=True)
            for _ in client.follow(job):
                pass
            store = _store_with(place, job)
            history = History.of(job, store.journal.records(job=job), found.solutions)
            trials.append(sweeping.trial(point, history, _evaluate_job(store, job)))
            if as_json:
                print(json.dumps(trials[-1].to_json()), flush=True)
    if not as_json:
        out.print(trials_table(trials))


@app.command()
def pretrain(
    folder: Annotated[Path, typer.Argument(help="Run folder; an unfinished run goes on")],
    steps: Annotated[int, typer.Option(min=1)],
    rearc: Annotated[
        Path | None, typer.Option(help="re-arc examples, .json.gz: pairs for each task id")
    ] = None,
    width: Annotated[int, typer.Option(min=64, help="A multiple of 64")] = 256,
    layers: Annotated[int, typer.Option(min=1)] = 6,
    batch_tokens: Annotated[int, typer.Option(min=256, help="Each worker's, at each step")] = 4096,
    unseen: Annotated[
        str | None, typer.Option(help="Tasks with solutions, measured and never trained on")
    ] = None,
    composed: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the lessons that are of composed tasks")
    ] = 0.5,
    workers: Annotated[int, typer.Option(min=1, help="Processes that average gradients")] = 1,
    lr: Annotated[float, typer.Option(min=0)] = 4e-3,
    seed: int = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the layers; needs a C++ compiler")
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a small base model from scratch on training tasks of ARC-AGI-1 and 2; resumable."""
    from dataclasses import asdict

    from arcd.arc import tasks as taskfiles
    from arcd.model import base_model
    from arcd.pretrain import run as runs
    from arcd.pretrain import train as training
    from arcd.pretrain.corpus import open_corpus

    measured = taskfiles.load(unseen) if unseen else None
    recipe = runs.Recipe(
        steps=steps,
        width=width,
        layers=layers,
        batch_tokens=batch_tokens,
        composed=composed,
        workers=workers,
        lr=lr,
        seed=seed,
        compiled=compiled,
    )

    def report(now: runs.Progress) -> None:
        if as_json:
            print(json.dumps(asdict(now)), flush=True)
        else:
            err.print(str(now), highlight=False, markup=False)

    kind = base_model.pick_device(device, "auto").kind
    corpus = open_corpus(rearc)
    training.pretrain(runs.Run(folder, recipe, corpus, kind, report, unseen=measured))
    if as_json:
        print(json.dumps({"model": str(folder / "model")}))
    else:
        out.print(f"model {folder / 'model'}", markup=False, highlight=False)


def _truth(solutions: Path | None, answers: str) -> "Solutions":
    from arcd.arc import tasks
    from arcd.errors import BadInput

    if solutions is None:
        raise BadInput(f"{answers}: a submission does not know its solutions: give --solutions")
    return tasks.load_solutions(solutions)


def _store_with(home: Home, job: int) -> "Store":
    """The store of a home, to read a job that is in it."""
    from arcd.errors import NoJob
    from arcd.jobs.store import Store

    store = Store(home.path, "read")
    if not store.jobs.has(job):
        raise NoJob(f"{home.path}: no job {job}")
    return store


def _evaluate_job(store: "Store", job: int, solutions: Path | None = None) -> "Report":
    from arcd.arc import metrics, submission

    truth = _truth(solutions, f"job {job}") if solutions else store.jobs.tasks(job).solutions
    attempts = submission.parse(f"job {job}", json.loads(store.jobs.submission(job)))
    return metrics.evaluate(truth, attempts, store.jobs.samples(job))


def main() -> None:
    """Entry point: one line for an error that arcd can explain, exit codes as documented."""
    try:
        app()
    except KeyboardInterrupt:
        err.print("arcd: interrupted")
        sys.exit(130)
    except Exception as error:
        explained = known(error)
        if explained is None:
            raise
        line = " ".join(f"arcd: {explained}".splitlines())
        err.print(line, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(explained.exit_code)
