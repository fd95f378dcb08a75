"""The verbs that try and measure: bench, sweep, pretrain, doctor.

Each hands its options on to the module that does the work (`bench`, `sweep`, `doctor`,
`arcd.pretrain.train`) and prints what comes back.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcd.cli.app import (
    Base,
    ConfigFile,
    Device,
    HomeFolder,
    Json,
    Settings,
    client_of,
    err,
    out,
    say,
    settle,
)
from arcd.cli.tables import finding_lines
from arcd.errors import BadConfig, BadInput, BadTask

if TYPE_CHECKING:
    from arcd.arc.tasks import TaskSet
    from arcd.cli.finding import Finding
    from arcd.cli.sweep import Trial
    from arcd.daemon.client import Client
    from arcd.daemon.options import Options


def doctor(
    base: Base = None,
    device: Device = "auto",
    as_json: Json = False,
    settings: Settings = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Try trainer, engine and daemon in many ways")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=30, help="That --thorough may take, by default 480")
    ] = None,
) -> None:
    """Report versions, device and memory, and solve one task to see that everything works."""
    from arcd.cli.doctor import examine
    from arcd.model import base_model
    from arcd.system.visible_gpus import narrow

    narrow(device)
    if not thorough:
        if seconds is not None:
            raise BadInput("--seconds: only with --thorough")
        findings = _shown(examine(base or base_model.bundled(), device, settings or ()), as_json)
        if as_json:
            print(json.dumps({finding.name: finding.to_json() for finding in findings}))
    else:
        findings = _thorough(settle(Path(), base, device, None, settings), seconds, as_json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _thorough(options: "Options", seconds: float | None, as_json: bool) -> "list[Finding]":
    """Make all checks, and print them as one document in the end."""
    import time

    from arcd.cli.checks import thorough

    begun = time.monotonic()
    findings = _shown(thorough.examine_thoroughly(options, seconds or thorough.SECONDS), as_json)
    print(json.dumps(thorough.document(findings, options, time.monotonic() - begun)))
    return findings


def _shown(findings: "Iterable[Finding]", as_json: bool) -> "list[Finding]":
    """All of them, each of which is printed as it is made."""
    found = []
    for finding in findings:
        found.append(finding)
        if not as_json:
            for line in finding_lines(finding):
                out.print(line, soft_wrap=True)
    return found


def bench(
    tasks: Annotated[str, typer.Argument(help="As for run")] = "arc1-eval:12",
    base: Base = None,
    device: Device = "auto",
    config: ConfigFile = None,
    settings: Settings = None,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; each figure is their median")] = 1,
    as_json: Json = False,
    lessons_of: Annotated[
        str | None,
        typer.Option(help="Tasks on whose lessons training alone is measured, else TASKS"),
    ] = None,
) -> None:
    """Time the same tasks as most people do them today, with arcd one at a time, and with arcd."""
    from arcd.arc import tasks as taskfiles
    from arcd.cli import bench as measuring
    from arcd.cli.tables import bench_table
    from arcd.display import tables

    # Each run gets a home of its own.
    options = settle(Path(), base, device, config, settings)
    found = taskfiles.load(tasks)
    report = err.print if not as_json else lambda text: None
    compared = measuring.compare(
        found, tasks, options, repeat=repeat, report=report, lessons_of=lessons_of
    )
    figures = compared.to_json()
    if not as_json:
        out.print(bench_table(figures))
        out.print(tables.account(compared.rounds[-1].arcd.account))
    print(json.dumps(figures))


def sweep(
    config: Annotated[
        Path, typer.Argument(help="TOML file with settings and, as `tasks`, what to try them on")
    ],
    over: Annotated[
        list[str], typer.Option(help="KEY=VALUE,VALUE,KEY=VALUE..., e.g. train.steps=20,60")
    ],
    tasks: Annotated[str | None, typer.Option(help="As for run, instead of the file's")] = None,
    settings: Settings = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Try every combination of some settings with the running daemon, one after the other.

    What was tried before, with the same tasks and settings, is not done again.
    """
    from arcd import config as configuration
    from arcd.arc import tasks as taskfiles
    from arcd.cli import sweep as sweeping
    from arcd.cli.tables import trials_table

    given = configuration.tree(config, settings or ())
    named = given.pop("tasks", None)
    if not isinstance(named, str | None) or not (tasks or named):
        raise BadConfig(f'{config}: say what to try: --tasks, or tasks = "..." in the file')
    found = taskfiles.load(tasks or str(named))
    if not found.solutions:
        raise BadTask(f"{found.name}: no solutions to compare the answers with")
    points = list(sweeping.points(sweeping.axes(over)))
    # All settings are checked before the first of them is tried.
    trees = [configuration.with_settings(given, point) for point in points]
    trials = []
    with client_of(home) as client:
        for point, tree in zip(points, trees, strict=True):
            trials.append(_try(client, found, point, tree))
            if as_json:
                print(json.dumps(trials[-1].to_json()), flush=True)
    if not as_json:
        out.print(trials_table(trials))


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
    from arcd.model.device import pick_device
    from arcd.pretrain import train as training
    from arcd.pretrain.corpus import open_corpus
    from arcd.pretrain.run import Progress, Recipe, Run
    from arcd.system.visible_gpus import narrow

    measured = taskfiles.load(unseen) if unseen else None
    recipe = Recipe(
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

    def report(now: Progress) -> None:
        if as_json:
            print(json.dumps(asdict(now)), flush=True)
        else:
            err.print(str(now))

    narrow(device)
    kind = pick_device(device, "auto").kind
    corpus = open_corpus(rearc)
    training.pretrain(Run(folder, recipe, corpus, kind, report, unseen=measured))
    if as_json:
        print(json.dumps({"model": str(folder / "model")}))
    else:
        say(f"model {folder / 'model'}")


def _try(
    client: "Client",
    tasks: "TaskSet",
    point: dict[str, str],
    settings: Mapping[str, Any],
) -> "Trial":
    """Do one point of a sweep, or find it done, and evaluate it.

    All through the daemon's interface: its store may be on another machine.
    """
    from arcd.arc import metrics, submission
    from arcd.cli import evaluation
    from arcd.cli import sweep as sweeping
    from arcd.daemon import schema

    words = " ".join(f"{key}={value}" for key, value in point.items())
    order = schema.order(tasks, name=words[-100:], settings=settings, take_up="done")
    job = int(client.send(order)["job"])
    err.print(f"job {job}: {words}", soft_wrap=True)
    history, samples = evaluation.followed(client, job, tasks.solutions)
    attempts = submission.parse(f"job {job}", client.result(job))
    return sweeping.trial(point, history, metrics.evaluate(tasks.solutions, attempts, samples))
