"""Showing a job: on a terminal a screen that leaves no trace, elsewhere plain lines."""

import io
import time

import pytest
from rich.console import Console
from support.past import Past
from support.small import grid, solutions, task

from arcd.display.live import display
from arcd.display.palette import Palette
from arcd.jobs import events

A = task("a")
TRUTH = solutions([A])
ENTER, LEAVE, HIDE, UNHIDE = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25l", "\x1b[?25h"


def a_run() -> Past:
    past = Past().submitted("a").add(events.DaemonReady(6.0))
    past.started("a").trained("a").add(events.Noted("a", "a note"))
    return past.sampled(A, [grid(3, 3, 5)]).answered(A, [grid(3, 3, 5)])


def drawn(file: io.StringIO, text: str) -> None:
    """Wait until the thread that draws has drawn this."""
    end = time.monotonic() + 30
    while text not in file.getvalue():
        assert time.monotonic() < end, file.getvalue()


def shown(*, terminal: bool, screen: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, height=24, _environ={})
    past = a_run()
    with display(console, Palette.arc, screen=screen, clock=lambda: past.at) as where:
        watch = where.of(1, TRUTH, lambda: 12.0)
        for record in past.records:
            watch(record)
        where.note("frozen: no step")
        if ENTER in file.getvalue():
            drawn(file, "score 100.0%")
    return file.getvalue()


def test_elsewhere_a_line_for_each_transition_and_no_escape_codes() -> None:
    assert shown(terminal=False, screen=True).splitlines() == [
        "models loaded in 6.0 s",
        "a  trained 10 steps in 10.0 s, loss 0.200",
        "a  note: a note",
        "a  answered 1/1: 1 of 1 samples valid, best grid 1/1 votes  ✓ solved",
        "note: frozen: no step",
    ]


def test_lines_on_a_terminal_where_no_screen_is_wanted() -> None:
    text = shown(terminal=True, screen=False)
    assert ENTER not in text
    assert "✓ solved" in text


def test_lines_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "7")
    text = shown(terminal=True, screen=True)
    assert ENTER not in text
    assert "✓ solved" in text


def test_the_terminal_is_left_as_it_was_but_for_what_went_wrong() -> None:
    text = shown(terminal=True, screen=True)
    assert text.index(ENTER) < text.index("score 100.0%") < text.rindex(LEAVE)
    assert text.rindex(HIDE) < text.rindex(UNHIDE)
    left = text[text.rindex(LEAVE) :]
    assert "a  note: a note" in left
    assert "note: frozen: no step" in left
    assert "answered" not in left


@pytest.mark.parametrize("job", [None, 1])
def test_an_error_leaves_the_terminal_too_and_what_was_said_before(job: int | None) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=24, _environ={})

    def interrupted() -> None:
        with display(console, Palette.arc, screen=True) as where:
            where.note("the daemon died")
            if job:
                where.of(job, TRUTH, lambda: None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = file.getvalue()
    assert text.index(ENTER) < text.rindex(LEAVE) < text.rindex("note: the daemon died")


def test_the_forecast_is_asked_for_every_now_and_then() -> None:
    asked = []

    def ask() -> float:
        asked.append(past.at)
        return 12.0

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, height=24, _environ={})
    past = Past().submitted("a")
    with display(console, Palette.arc, screen=True, clock=lambda: past.at) as where:
        watch = where.of(1, TRUTH, ask)
        for record in past.started("a").training("a", 9, every=1.0).records:
            past.at = record.at
            watch(record)
        drawn(file, "done in about 0:1")
    assert len(asked) == 5
