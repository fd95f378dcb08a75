"""Grids, tasks and answers in the terminal: pure functions from values to rich renderables.

Without a palette (NO_COLOR, a pipe) cells are shown as digits. Knows nothing of where the values
come from.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcd.arc.grids import Grid, shape
from arcd.arc.selection import ATTEMPTS, Verdict, Vote
from arcd.arc.tasks import Task
from arcd.display.palette import Palette
from arcd.display.terminal import panel

MAX_CANDIDATES = 6
"""Candidates of a test that are drawn at most."""


def grid(value: Grid, palette: Palette | None, truth: Grid | None = None) -> Text:
    """A grid with two terminal columns for each cell; cells that differ from `truth` are marked."""
    text = Text(no_wrap=True)
    same_shape = truth is not None and shape(truth) == shape(value)
    for r, row in enumerate(value):
        if r:
            text.append("\n")
        for c, cell in enumerate(row):
            wrong = same_shape and truth is not None and truth[r][c] != cell
            text.append_text(_cell(cell, palette, wrong=wrong))
    return text


def _cell(cell: int, palette: Palette | None, *, wrong: bool) -> Text:
    mark = "×" if wrong else " "
    if palette is None:
        return Text(f"{cell}{mark}")
    style = Style(bgcolor=palette.colours[cell], color=palette.ink(cell), bold=wrong)
    # The colour-blind palette shows digits, too.
    return Text(f"{cell if palette is Palette.colourblind else ' '}{mark}", style)


def small(value: Grid, palette: Palette | None) -> Text:
    """A grid with one terminal column for each cell; with colours, two rows of cells on a line."""
    if palette is None:
        return Text("\n".join("".join(map(str, row)) for row in value), no_wrap=True)
    colours = palette.colours
    text = Text(no_wrap=True)
    for r in range(0, len(value), 2):
        if r:
            text.append("\n")
        for c, upper in enumerate(value[r]):
            lower = colours[value[r + 1][c]] if r + 1 < len(value) else None
            text.append("▀", Style(color=colours[upper], bgcolor=lower))
    return text


def captioned(caption: str, value: RenderableType) -> RenderableType:
    """The value under a line of text."""
    return Group(Text(caption, style="dim"), value, Text())


def size(value: Grid) -> str:
    """E.g. "3x4"."""
    rows, columns = shape(value)
    return f"{rows}x{columns}"


def task(value: Task, palette: Palette | None, solutions: Sequence[Grid] = ()) -> RenderableType:
    """The demonstration pairs of a task and its tests, with their solutions where known."""
    parts: list[RenderableType] = []
    for i, pair in enumerate(value.train):
        parts.append(_arrow(f"pair {i}", pair.input, pair.output, palette))
    for i, query in enumerate(value.tests):
        solution = solutions[i] if i < len(solutions) else None
        parts.append(_arrow(f"test {i}", query, solution, palette))
    return panel(Columns(parts, padding=(0, 4)), f"task {value.id}")


def _arrow(name: str, left: Grid, right: Grid | None, palette: Palette | None) -> RenderableType:
    """Input → output, with their sizes; "?" for an output that is not known."""
    table = Table.grid(padding=(0, 1))
    caption = f"{name}  {size(left)} → {size(right) if right else '?'}"
    shown = grid(right, palette) if right else Text("?")
    table.add_row(grid(left, palette), Text("→"), shown)
    return captioned(caption, table)


def votes(
    ranked: Iterable[Vote], palette: Palette | None, truth: Grid | None = None
) -> RenderableType:
    """The candidates of a test, best first, with votes, likelihood and whether they are right."""
    parts = []
    for place, vote in enumerate(ranked, 1):
        verdict = "" if truth is None else ("  right" if vote.grid == truth else "  wrong")
        name = f"attempt {place}" if place <= ATTEMPTS else f"candidate {place}"
        caption = f"{name}: {_count(vote.count, 'vote')}  {likely(vote)}{verdict}"
        parts.append(captioned(caption, grid(vote.grid, palette, truth)))
    return Columns(parts, padding=(0, 4)) if parts else Text("no valid candidate")


class Likely(Protocol):
    """What is said of a vote without its grid: see `Vote`."""

    @property
    def mean_logprob(self) -> float: ...

    @property
    def likelihood(self) -> float | None: ...


def likely(vote: Likely) -> str:
    """A grid's log-likelihood, the mean over views, or else that of its samples per token."""
    if vote.likelihood is None:
        return f"{vote.mean_logprob:.3f} nats a token"
    return f"{vote.likelihood:.2f} nats"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def answers(
    value: Verdict, palette: Palette | None, solutions: Sequence[Grid] = ()
) -> RenderableType:
    """A task's best candidates for each test, and the notes on it."""
    panels: list[RenderableType] = []
    for i, ranked in enumerate(value.ranked):
        truth = solutions[i] if i < len(solutions) else None
        body = votes(ranked[:MAX_CANDIDATES], palette, truth)
        valid = sum(vote.count for vote in ranked)
        title = f"test {i}: {_count(len(ranked), 'different answer')} in {valid} valid samples"
        panels.append(panel(body, title))
    panels += [Text(f"note: {note}", style="yellow") for note in value.notes]
    return Group(*panels)


def on(console: Console, palette: Palette) -> Palette | None:
    """The palette if this console shows colours, else None."""
    return palette if console.color_system is not None and not console.no_color else None
