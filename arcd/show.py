"""Grids in the terminal: pure functions from values to rich renderables, in ARC's ten colours.

Where there is no colour (NO_COLOR, a pipe) the digits of the cells are shown instead. Knows
nothing of where the values come from.
"""

from collections.abc import Iterable, Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcd.grids import Grid, shape
from arcd.selection import Verdict, Vote
from arcd.tasks import Task

PALETTE = (
    "#000000",
    "#0074D9",
    "#FF4136",
    "#2ECC40",
    "#FFDC00",
    "#AAAAAA",
    "#F012BE",
    "#FF851B",
    "#7FDBFF",
    "#870C25",
)
"""The colours 0..9 as the ARC-AGI testing interface shows them."""

SHOWN = 6
"""Candidates drawn for a test at most."""


def grid(value: Grid, *, colour: bool = True, truth: Grid | None = None) -> Text:
    """A grid, two columns of the terminal a cell; cells that differ from `truth` are marked."""
    text = Text(no_wrap=True)
    same_shape = truth is not None and shape(truth) == shape(value)
    for r, row in enumerate(value):
        if r:
            text.append("\n")
        for c, cell in enumerate(row):
            wrong = same_shape and truth is not None and truth[r][c] != cell
            text.append_text(_cell(cell, colour=colour, wrong=wrong))
    return text


def _cell(cell: int, *, colour: bool, wrong: bool) -> Text:
    mark = "×" if wrong else " "
    if not colour:
        return Text(f"{cell}{mark}")
    dark = cell in (0, 1, 9)
    style = Style(bgcolor=PALETTE[cell], color="#FFFFFF" if dark else "#000000", bold=wrong)
    return Text(f"{mark} ", style)


def captioned(caption: str, value: RenderableType) -> RenderableType:
    """Something under a line of text."""
    return Group(Text(caption, style="dim"), value, Text())


def size(value: Grid) -> str:
    """E.g. "3x4"."""
    rows, columns = shape(value)
    return f"{rows}x{columns}"


def task(value: Task, solutions: Sequence[Grid] = (), *, colour: bool = True) -> RenderableType:
    """The demonstration pairs of a task and its tests, with their solutions where known."""
    parts: list[RenderableType] = []
    for i, pair in enumerate(value.train):
        parts.append(_arrow(f"pair {i}", pair.input, pair.output, colour=colour))
    for i, query in enumerate(value.tests):
        solution = solutions[i] if i < len(solutions) else None
        parts.append(_arrow(f"test {i}", query, solution, colour=colour))
    return Panel(Columns(parts, padding=(0, 4)), title=f"task {value.id}", title_align="left")


def _arrow(name: str, left: Grid, right: Grid | None, *, colour: bool) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    caption = f"{name}  {size(left)} → {size(right) if right else '?'}"
    shown = grid(right, colour=colour) if right else Text("?")
    table.add_row(grid(left, colour=colour), Text("→"), shown)
    return captioned(caption, table)


def votes(
    ranked: Iterable[Vote], truth: Grid | None = None, *, colour: bool = True
) -> RenderableType:
    """The candidates of a test, best first, with votes, likelihood and whether they are right."""
    parts = []
    for place, vote in enumerate(ranked, 1):
        verdict = "" if truth is None else ("  right" if vote.grid == truth else "  wrong")
        caption = f"{place}. {_count(vote.count, 'vote')}  {vote.mean_logprob:.3f} nats{verdict}"
        parts.append(captioned(caption, grid(vote.grid, colour=colour, truth=truth)))
    return Columns(parts, padding=(0, 4)) if parts else Text("no valid candidate")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def answers(
    value: Verdict, solutions: Sequence[Grid] = (), *, colour: bool = True
) -> RenderableType:
    """A task's best candidates for each test, and what went other than planned."""
    panels: list[RenderableType] = []
    for i, ranked in enumerate(value.ranked):
        truth = solutions[i] if i < len(solutions) else None
        body = votes(ranked[:SHOWN], truth, colour=colour)
        valid = sum(vote.count for vote in ranked)
        title = f"test {i}: {_count(len(ranked), 'different answer')} in {valid} valid samples"
        panels.append(Panel(body, title=title, title_align="left"))
    panels += [Text(f"note: {note}", style="yellow") for note in value.notes]
    return Group(*panels)


def coloured(console: Console) -> bool:
    """Whether this console shows colours."""
    return console.color_system is not None and not console.no_color
