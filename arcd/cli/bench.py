"""`arcd bench`: the same tasks done in three ways, and what a fast trainer, residency and overlap
gain.

    cold       what most people do today: for each task a process with transformers + peft, then a
               process with vLLM, both as they come (`baseline`)
    resident   arcd with one task in flight at a time: one start, nothing overlaps
    arcd       arcd as it is

Then the trainer alone beside transformers + peft alone (`bench_speed`). Times are from the start of
a command to its end. Uses arcd only as a user does; what follows from the times is `bench_figures`.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from arcd.arc.tasks import TaskSet
from arcd.cli.bench_figures import Cold, Comparison, Resident, Round, Speeds
from arcd.daemon import foreground, schema
from arcd.daemon.options import Options
from arcd.daemon.supervisor import Incident
from arcd.daemon.watchdog import Limits
from arcd.errors import ArcdError, BadConfig
from arcd.jobs import events
from arcd.jobs.events import Record, Times
from arcd.system.processes import cores


def compare(
    tasks: TaskSet,
    source: str,
    options: Options,
    *,
    repeat: int,
    report: Callable[[str], None],
    lessons_of: str | None = None,
) -> Comparison:
    """Run all three ways in turn and measure training alone, `repeat` times.

    `source` names the tasks, `lessons_of` those whose lessons training alone is measured on, by
    default the same. Raises BadConfig where nothing would be trained: then nothing can overlap.
    """
    if not options.config.train.steps:
        raise BadConfig("bench: train.steps: at least 1")
    with tempfile.TemporaryDirectory(prefix="arcd-bench-") as compiled:
        options = options.model_copy(update={"compiled": Path(compiled)})
        return _rounds(tasks, source, options, repeat, report, lessons_of or source)


def _rounds(
    tasks: TaskSet,
    source: str,
    options: Options,
    repeat: int,
    report: Callable[[str], None],
    lessons_of: str,
) -> Comparison:
    """See `compare`."""
    rounds = []
    for _ in range(repeat):
        # First, because it waits for the compiler: what is compiled is there for the rest.
        speeds = _speeds(lessons_of, options)
        cold = _cold(tasks, source, options)
        report(f"cold      {cold.wall:.1f} s")
        resident = _resident(tasks, options, overlap=False)
        report(f"resident  {resident.wall:.1f} s")
        arcd = _resident(tasks, options, overlap=True)
        report(f"arcd      {arcd.wall:.1f} s")
        rounds.append(Round(cold, resident, arcd, speeds))
        ratios = rounds[-1].to_json()["trainer_over_peft"]
        report("trainer   " + ", ".join(f"{mode} {x:.2f} x peft" for mode, x in ratios.items()))
    return Comparison(len(tasks.tasks), cores(), tuple(rounds))


def _cold(tasks: TaskSet, source: str, options: Options) -> Cold:
    begun = time.monotonic()
    spent = {"train": 0.0, "sample": 0.0}
    steps = dict(spent)
    first = 0.0
    for task in tasks.tasks:
        with tempfile.TemporaryDirectory(prefix="arcd-bench-") as folder:
            part = {**_work(source, options), "task": task.id, "folder": folder}
            for verb in spent:
                since = time.monotonic()
                _process(f"cold {verb} of task {task.id}", "baseline", verb, json.dumps(part))
                spent[verb] += time.monotonic() - since
                steps[verb] += float((Path(folder) / f"{verb}.seconds").read_text())
        first = first or time.monotonic() - begun
    wall = time.monotonic() - begun
    return Cold(
        wall, spent["train"], spent["sample"], first, Times(steps["train"], steps["sample"])
    )


def _speeds(source: str, options: Options) -> Speeds:
    printed = _process("training speed", "bench_speed", json.dumps(_work(source, options)))
    return Speeds.from_json(json.loads(printed.splitlines()[-1]))


def _work(source: str, options: Options) -> dict[str, Any]:
    """What both kinds of processes have to know."""
    return {
        "compiled": str(options.compiled),
        "tasks": source,
        "base": str(options.base),
        "device": options.device,
        "config": options.config.model_dump(mode="json"),
    }


def _process(what: str, module: str, *arguments: str) -> str:
    """Run a module of this package to its end; what it printed. Raises ArcdError if it fails."""
    command = [sys.executable, "-m", f"arcd.cli.{module}", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["(nothing)"])[-1]
        raise ArcdError(f"bench: {what}: {last}")
    return done.stdout


def _resident(tasks: TaskSet, options: Options, *, overlap: bool) -> Resident:
    begun = time.monotonic()
    records: list[Record] = []
    at: list[float] = []

    def listen(record: Record) -> None:
        records.append(record)
        if isinstance(record.event, events.Answered):
            at.append(time.monotonic() - begun)

    alone = {"lookahead": 0, "trainings": 1}
    config = options.config if overlap else options.config.model_copy(update=alone)
    with tempfile.TemporaryDirectory(prefix="arcd-bench-") as home:
        outcome = foreground.run(
            options.model_copy(update={"home": Path(home), "config": config}),
            schema.order(tasks),
            limits=Limits(),
            report=_refuse,
            begin=lambda _: listen,
        )
    return Resident(time.monotonic() - begun, at[0], outcome.account, dict(_times(records)))


def _refuse(incident: Incident) -> None:
    raise ArcdError(f"bench: the daemon was lost, so this run counts for nothing: {incident.text}")


def _times(records: Sequence[Record]) -> Iterator[tuple[str, Times]]:
    """Each task's seconds of training, and those from then to its answer."""
    trained: dict[str, tuple[float, float]] = {}
    for record in records:
        match record.event:
            case events.Started(task=task):
                trained[task] = record.at, 0.0
            case events.Trained(task=task, seconds=seconds):
                trained[task] = record.at, seconds
            case events.Answered(task=task):
                since, seconds = trained[task]
                yield task, Times(seconds, record.at - since)
