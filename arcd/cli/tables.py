"""What experiments came to, as tables: the trials of a sweep, the comparison of a bench.

Pure functions of values. Knows nothing of how they came about.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

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
        times = (f"{values[f'{stage}_seconds']:.0f}" for stage in ("train", "infer"))
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
        f"beside the other lane; {uncorrected} against two lanes with a machine each "
        f"({found.bound:.1f} s)\n"
        f"idle: trainer {idle['trainer']:.0%}, engine {idle['engine']:.0%}; "
        f"outside of steps {account.outside_steps:.1%} of {account.solving:.1f} s after start-up"
    )
    return table
