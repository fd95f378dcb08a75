"""Where arcd prints: consoles and panels that take text as text.

Names of jobs and tasks, paths and errors come from users. Nothing in them is a command: neither
"[bold]", nor ":smile:", nor a character that moves the cursor, breaks a line or turns its
direction. All of arcd prints through `Terminal` and frames with `panel`, so that no caller has to
think of it. Knows nothing of what is printed.
"""

import unicodedata
from collections.abc import Iterable

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

COMMANDS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that are not shown but obeyed, or that are no text: control, format,
half a surrogate pair, line and paragraph separators."""

JOINERS = frozenset("\u200c\u200d")
"""Format characters without which Persian, Indic scripts and emoji cannot be written."""


class Terminal(Console):
    """A console without markup, emoji codes and highlighting, on which no text is a command."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """What is printed; only rich's own control codes are obeyed."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)


def shown(text: str) -> str:
    """The text with its lines, without characters that a terminal would obey.

    It is as wide as before to rich, which has made the layout already.
    """
    return "".join(
        "?" * cell_len(c)
        if unicodedata.category(c) in COMMANDS and c != "\n" and c not in JOINERS
        else c
        for c in text
    )


def one_line(text: str) -> str:
    """A text that has no line ends and no tabs, whose width depends on where they stand."""
    return " ".join(text.splitlines()).replace("\t", " ")


def cell(text: str) -> Text:
    """A text for a table, on one line: cut where its column is too narrow."""
    return Text(one_line(text), no_wrap=True, overflow="ellipsis")


def panel(body: RenderableType, title: str) -> Panel:
    """A framed value, with the title at the left."""
    return Panel(body, title=Text(one_line(title)), title_align="left")
