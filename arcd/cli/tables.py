"""What verbs print as tables: jobs, the trials of a sweep, the comparison of a bench.

Pure functions of values. Knows nothing of daemons and stores.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from arcd.display.terminal import cell

if TYPE_CHECKING:
    from arcd.cli.bench import Comparison
    from arcd.cli.sweep import Trial

TRIAL_HEADINGS = {
    "pass_1": "\npass@1",
    "pass_2": "\npass@2",
    "pass_n": "\npass@n",
    "accuracy": "accu\nracy",
    "correct_pixels": "correct\npixels",
}
"""The metrics that a sweep shows: few, so that two settings fit beside them in 80 columns."""


def jobs_table(jobs: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each job, as `Client.jobs` gives them."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("job", "name", "state", "answered", "retriable", "priority"):
        left, whole = heading in ("name", "state"), heading != "name"
        table.add_column(heading, justify="left" if left else "right", no_wrap=whole)
    for job in jobs:
        answered = f"{job['answered']}/{job['tasks']}"
        counts = (str(job["retriable"]), str(job["priority"]))
        table.add_row(str(job["job"]), cell(job["name"]), job["state"], answered, *counts)
    return table


def trials_table(trials: "Sequence[Trial]") -> Table:
    """A line for each point of a sweep; there must be one."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for key in trials[0].settings:
        table.add_column("\n".join(key.rsplit(".", 1)))
    for heading in (*TRIAL_HEADINGS.values(), "s per\ntask", "train\ns", "infer\ns", "\njob"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials:
        values = trial.to_json()
        percentages = (f"{values[name]:.1%}" for name in TRIAL_HEADINGS)
        times = (f"{values[f'{stage}_seconds']:.0f}" for stage in ("train", "infer"))
        each = f"{values['seconds_per_task']:.1f}"
        tried = map(cell, trial.settings.values())
        table.add_row(*tried, *percentages, each, *times, str(trial.job))
    return table


def bench_table(found: "Comparison") -> Table:
    """The three ways with their times, and below them the overlap, the contention, idle times."""
    title = f"{found.tasks} tasks on {found.cores} cores, seconds"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "wall", "to first answer", "training", "inference", "times as long"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, wall: float, first: float, train: float, infer: float) -> None:
        numbers = (f"{value:.1f}" for value in (wall, first, train, infer))
        table.add_row(name, *numbers, f"{wall / found.arcd.wall:.2f}")

    cold = found.cold
    row("a process for each", cold.wall, cold.first, cold.train, cold.sample)
    for name, run in (("arcd, one at a time", found.resident), ("arcd", found.arcd)):
        steps = run.account.seconds
        row(name, run.wall, run.first, steps["trainer"]["step"], steps["engine"]["step"])
    slower, account = found.contention, found.arcd.account
    idle = {
        resource: account.idle(resource) / account.solving for resource in ("trainer", "engine")
    }
    efficiency, uncorrected = (
        "-" if value is None else f"{value:.2f}"
        for value in (found.overlap_efficiency, found.overlap_uncorrected)
    )
    table.caption = (
        f"overlap efficiency {efficiency}, with the contention of the shared cores taken out: "
        f"trainer steps took {slower.train:.2f}, engine steps {slower.infer:.2f} times as long "
        f"while both worked; {uncorrected} against a trainer and an engine with a machine each "
        f"({found.bound:.1f} s)\n"
        f"idle: trainer {idle['trainer']:.0%}, engine {idle['engine']:.0%}; "
        f"outside of steps {account.outside_steps:.1%} of {account.solving:.1f} s after start-up"
    )
    return table
