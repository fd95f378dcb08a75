"""Results as tables: metrics, and the ledger's seconds.

Pure functions of values. Knows nothing of where these come from.
"""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from arcd.display.terminal import cell
from arcd.system.ledger import RESOURCES, Account

if TYPE_CHECKING:
    from arcd.arc.metrics import Metrics, Report


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
    """The mean over the tasks; with `each` also a row for every task."""
    title = f"score {report.score:.1%} of {len(report.tasks)} tasks"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("task")
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in report.tasks.items() if each else ():
        table.add_row(cell(name), *_percentages(values))
    if each:
        table.add_section()
    table.add_row("mean", *_percentages(report.total))
    return table


def _percentages(metrics: "Metrics") -> list[str]:
    values = metrics.to_json()
    return [f"{values[name]:.1%}" for name in HEADINGS]


def account(value: Account) -> RenderableType:
    """The ledger: seconds of each resource by kind of work, and the share outside of all steps."""
    kinds = ("step", "hand-over", "build", "parse", "select", "record")
    table = Table(title="where the time went, seconds", title_justify="left")
    for heading in ("resource", *kinds, "idle"):
        table.add_column(heading, justify="left" if heading == "resource" else "right")
    for resource in RESOURCES:
        spent = value.seconds[resource]
        cells = (f"{spent[kind]:.1f}" if kind in spent else "" for kind in kinds)
        table.add_row(resource, *cells, f"{value.idle(resource):.1f}")
    summary = (
        f"start-up {value.loading:.1f} s, then {value.solving:.1f} s, "
        f"{value.outside_steps:.1%} of them outside training and engine steps\n"
        f"hand-over of adapters: {value.hand_over:.1f} s, {value.hand_over_share:.1%} of that time"
    )
    return Group(table, Text(summary))
