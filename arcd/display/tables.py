"""Results as tables: metrics, trials, comparisons and where the time went.

Pure functions of values. Knows nothing of how they came about.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from arcd.system.ledger import LANES, Account

if TYPE_CHECKING:
    from arcd.arc.metrics import Metrics, Report
    from arcd.cli.bench import Comparison
    from arcd.cli.sweep import Trial


HEADINGS = {
    "accuracy": "accu\nracy",
    "correct_pixels": "correct\npixels",
    "max_correct_pixels": "max\npixels",
    "correct_size": "correct\nsize",
    "any_correct_size": "any\nsize",
    "pass_n": "pass@n\n",
    "unanswered": "unan-\nswered",
    "pass_1": "pass@1\n",
    "pass_2": "pass@2\n",
}
"""Metrics in the order of their columns, narrow enough for a terminal of 80."""


def metrics_table(report: "Report", *, each: bool) -> Table:
    """The mean over the tasks; with `each` every task, too."""
    title = f"score {report.score:.1%} of {len(report.tasks)} tasks"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("task", no_wrap=True)
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in report.tasks.items() if each else ():
        table.add_row(name, *_percentages(values))
    if each:
        table.add_section()
    table.add_row("mean", *_percentages(report.total))
    return table


def _percentages(metrics: "Metrics") -> list[str]:
    values = metrics.to_json()
    return [f"{values[name]:.1%}" for name in HEADINGS]


TRIAL_HEADINGS = {
    "pass_1": "\npass@1",
    "pass_2": "\npass@2",
    "pass_n": "\npass@n",
    "accuracy": "accu\nracy",
    "correct_pixels": "correct\npixels",
}
"""What a sweep shows of its trials, so that two settings fit beside it."""


def trials_table(trials: "Sequence[Trial]") -> Table:
    """A line for each point of a sweep; there must be one."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for key in trials[0].settings:
        table.add_column("\n".join(key.rsplit(".", 1)), no_wrap=True)
    for heading in (*TRIAL_HEADINGS.values(), "s per\ntask", "train\ns", "infer\ns", "\njob"):
        table.add_column(heading, justify="right", no_wrap=True)
    for trial in trials:
        values = trial.to_json()
        shares = (f"{values[name]:.1%}" for name in TRIAL_HEADINGS)
        times = (f"{values[f'{lane}_seconds']:.0f}" for lane in ("train", "infer"))
        each = f"{values['seconds_per_task']:.1f}"
        table.add_row(*trial.settings.values(), *shares, each, *times, str(trial.job))
    return table


def bench_table(found: "Comparison") -> Table:
    """The three ways with their times, and below what overlap came to."""
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
    idle = {lane: account.idle(lane) / account.solving for lane in ("trainer", "engine")}
    efficiency, uncorrected = (
        "-" if value is None else f"{value:.2f}"
        for value in (found.overlap_efficiency, found.overlap_uncorrected)
    )
    table.caption = (
        f"overlap efficiency {efficiency}, with the contention of the shared cores taken out: "
        f"trainer steps took {slower.train:.2f}, engine steps {slower.infer:.2f} times as long "
        f"beside the other lane; {uncorrected} against two lanes with a machine each "
        f"({found.bound:.1f} s)\n"
        f"idle: trainer {idle['trainer']:.0%}, engine {idle['engine']:.0%}; "
        f"outside of steps {account.outside_steps:.1%} of {account.solving:.1f} s after start-up"
    )
    return table


def account(value: Account) -> RenderableType:
    """The ledger: seconds of each lane by kind of work, and the share outside of any step."""
    kinds = ("step", "hand-over", "build", "parse", "select", "record")
    table = Table(title="where the time went, seconds", title_justify="left")
    for heading in ("lane", *kinds, "idle"):
        table.add_column(heading, justify="left" if heading == "lane" else "right")
    for lane in LANES:
        spent = value.seconds[lane]
        cells = (f"{spent[kind]:.1f}" if kind in spent else "" for kind in kinds)
        table.add_row(lane, *cells, f"{value.idle(lane):.1f}")
    summary = (
        f"start-up {value.loading:.1f} s, then {value.solving:.1f} s, "
        f"{value.outside_steps:.1%} of them outside training and engine steps"
    )
    return Group(table, Text(summary))
