"""What verbs print as tables: jobs, trials of a sweep, a bench, the findings of the doctor.

Pure functions of values. Knows nothing of daemons and stores.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from arcd.display.terminal import cell

if TYPE_CHECKING:
    from arcd.cli.finding import Finding
    from arcd.cli.sweep import Trial

TRIAL_HEADINGS = {
    "pass_1": "\npass@1",
    "pass_2": "\npass@2",
    "pass_n": "\npass@n",
    "accuracy": "accu\nracy",
    "correct_pixels": "correct\npixels",
}
"""The metrics that a sweep shows: few, so that two settings fit beside them in 80 columns."""


def finding_lines(finding: "Finding") -> Iterator[Text]:
    """A check of the doctor's: its line, the seconds of its parts, what to do about it."""
    mark = ("ok  ", "green") if finding.ok else ("fail", "red")
    yield Text.assemble(mark, f" {finding.name:<13} {finding.value}")
    for part, seconds in finding.seconds.items():
        yield Text(f"       {part:<13} {seconds:4.1f} s")
    if finding.advice:
        yield Text(f"     > {finding.advice}", style="yellow")


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


def bench_table(found: Mapping[str, Any]) -> Group:
    """A bench as `Comparison.to_json` gives it: the three ways, training alone, shares."""
    title = f"{found['tasks']} tasks on {found['cores']} cores, seconds"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "\nwall", "first\nanswer", "\ntraining", "\nsampling", "times\nas long"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    names = {"cold": "separate processes", "resident": "arcd, one at a time", "arcd": "arcd"}
    for kind, name in names.items():
        run, steps = found[kind], found[kind]["steps"]
        seconds = (run["wall"], run["first"], steps["trainer"], steps["engine"])
        longer = f"{found.get(f'{kind}_over_arcd', 1.0):.2f}"
        table.add_row(name, *(f"{value:.1f}" for value in seconds), longer)
    return Group(table, _speed_table(found["speeds"]), Text("\n".join(_bench_lines(found))))


def _speed_table(speeds: Mapping[str, Any]) -> Table:
    """Tokens a second on lessons of several lengths, by who trained."""
    title = f"training alone with {speeds['threads']} thread, tokens a second"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    who = [*speeds["lengths"][0]["rates"]]
    for heading in ("tokens of a lesson", *(name.replace("_", ", ") for name in who)):
        table.add_column(heading, justify="right")
    for each in speeds["lengths"]:
        rates = (f"{each['rates'][name]:.0f}" for name in who)
        table.add_row(f"{each['tokens']:.0f}", *rates)
    return table


def _bench_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What follows from the times, a line each."""
    for other, what in (("peft", "peft"), ("peft_labelled", "peft with logits of labels alone")):
        ratios = found[f"trainer_over_{other}"].items()
        fast = ", ".join(f"{mode} {ratio:.2f}" for mode, ratio in ratios)
        yield f"arcd's trainer over {what}, times as fast: {fast}"
    cold, slower, idle = found["cold"], found["contention"], found["idle"]
    handed = found["hand_over_share"]
    efficiency, uncorrected = (
        "-" if found[key] is None else f"{found[key]:.2f}"
        for key in ("overlap_efficiency", "overlap_uncorrected")
    )
    starts = cold["wall"] - sum(cold["steps"].values())
    yield f"separate processes: {starts:.1f} s are their starts and ends"
    yield (
        f"overlap efficiency {efficiency}, with the contention of the shared cores taken out: "
        f"trainer steps took {slower['trainer']:.2f}, engine steps {slower['engine']:.2f} times as "
        f"long while both worked; {uncorrected} against a trainer and an engine with a machine "
        f"each ({found['bound']:.1f} s)"
    )
    yield (
        f"idle: trainer {idle['trainer']:.0%}, engine {idle['engine']:.0%}; outside of steps "
        f"{found['outside_compute_share']:.1%} of {found['arcd']['solving']:.1f} s after start-up"
    )
    yield (
        f"hand-over of adapters: {handed['resident']:.1%} of a task solved alone, "
        f"{handed['arcd']:.1%} of the time after start-up in arcd as it is"
    )
