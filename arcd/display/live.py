"""Shows jobs while they run: the live screen on a terminal, elsewhere one line for each message.

The screen is drawn four times a second from the history of the job; the terminal is left as it was
before. Knows nothing of where records come from.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from arcd.arc.tasks import Solutions
from arcd.display import grids
from arcd.display.palette import Palette
from arcd.display.screen import Outlook, Scene, draw
from arcd.display.suspension import suspendable
from arcd.jobs.events import Record
from arcd.jobs.history import History
from arcd.jobs.messages import Level, message, warning
from arcd.jobs.state import State

FRAMES_PER_SECOND = 4
"""Of the live screen."""

FORECAST_INTERVAL_S = 2.0
"""Seconds between two requests for the forecast."""

NOTEBOOK = "JPY_PARENT_PID"
"""Environment variable that jupyter_client sets for a kernel, and so for what a notebook starts."""

KEPT = 1000
"""Spans, answers and loss curves that the screen keeps of a job."""

STYLES = {Level.info: "", Level.solved: "green", Level.warning: "yellow"}
"""How lines are printed where there is no live screen."""

Watch = Callable[[Record], None]
Ask = Callable[[], float | None]
"""Returns the seconds of work that wait; None if the daemon cannot tell."""


class Display(Protocol):
    """Shows jobs, one after the other."""

    def of(self, job: int, solutions: Solutions, ask: Ask) -> Watch:
        """Show this job from now on; returns what to call with each of its records."""
        ...

    def note(self, text: str) -> None:
        """Show a warning that is not in the records."""
        ...


@contextmanager
def display(
    console: Console,
    palette: Palette,
    *,
    screen: bool,
    clock: Callable[[], float] = time.time,
) -> Iterator[Display]:
    """The live screen until the block ends, if `screen` is set and the console is a terminal.

    A notebook gives what it starts with `!` a terminal that nobody sees: lines there, too.
    """
    real = console.is_terminal and not console.is_dumb_terminal and NOTEBOOK not in os.environ
    if not (screen and real):
        yield _Lines(console)
        return
    shown = _Screen(console, palette, clock)
    try:
        with (
            Live(
                get_renderable=shown.draw,
                console=console,
                screen=True,
                refresh_per_second=FRAMES_PER_SECOND,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live,
            suspendable(live),
        ):
            yield shown
    finally:
        # Warnings must stay readable after the screen is gone.
        for text in shown.notices():
            console.print(Text(text, "yellow"), soft_wrap=True)


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console

    def of(self, job: int, solutions: Solutions, ask: Ask) -> Watch:
        state = State()

        def listen(record: Record) -> None:
            state.apply(record)
            if told := message(record, state, solutions):
                self._console.print(Text(told.text, STYLES[told.level]), soft_wrap=True)

        return listen

    def note(self, text: str) -> None:
        self._console.print(Text(warning(text).text, STYLES[Level.warning]), soft_wrap=True)


class _Screen:
    """Takes records in one thread and draws in another."""

    def __init__(self, console: Console, palette: Palette, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._lock = threading.Lock()
        self._scene = Scene(None, grids.on(console, palette))
        self._early: list[tuple[float, str]] = []  # warnings before there was a job

    def of(self, job: int, solutions: Solutions, ask: Ask) -> Watch:
        history = History(job, solutions, KEPT)
        palette = self._scene.palette
        with self._lock:
            history.notices.extend(self._early)
            self._early.clear()
            self._scene = Scene(history, palette)
        asked = 0.0

        def listen(record: Record) -> None:
            nonlocal asked
            with self._lock:
                history.apply(record)
            now = self._clock()
            if now < asked + FORECAST_INTERVAL_S:
                return
            asked = now
            left = ask()
            outlook = None if left is None else Outlook(now, left)
            with self._lock:
                self._scene = Scene(history, palette, outlook)

        return listen

    def note(self, text: str) -> None:
        with self._lock:
            history = self._scene.history
            notices = self._early if history is None else history.notices
            notices.append((self._clock(), warning(text).text))

    def draw(self) -> RenderableType:
        width, height = self._console.size
        with self._lock:
            return draw(self._scene, self._clock(), width, height)

    def notices(self) -> list[str]:
        history = self._scene.history
        return [text for _, text in (history.notices if history else self._early)]
