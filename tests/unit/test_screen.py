"""The live screen as plain text, in the states that matter, and at any size.

Snapshots are in `data/screens`; `cd tests; python -c "import test_screen; test_screen.keep()"`
writes them anew, to be looked at before they are committed.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.past import DAEMON, Past
from support.small import grid, solutions, task
from support.strategies import Happening, lives

from arcd.arc.grids import Grid
from arcd.display.palette import Palette
from arcd.display.screen import LEVELS, Outlook, Scene, draw, sparkline
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.history import History

SCREENS = Path(__file__).parents[1] / "data" / "screens"
SIZES = ((80, 24), (140, 40))
TASKS = {
    name: task(name, side=3 + i) for i, name in enumerate(("0934a4d8", "136b0064", "16b78196"))
}
A, B, C = TASKS.values()
TRUTH = solutions(TASKS.values())
LARGE = task("25094a63", side=30)


def right(of: str) -> list[Grid]:
    return [TRUTH[of][0]] * 3 + [grid(2, 2)]


def empty() -> tuple[Scene, float]:
    return Scene(None, None), 0.0


def loading() -> tuple[Scene, float]:
    past = Past().submitted(TASKS)
    return Scene(past.history(TRUTH), None), past.at + 4


def _running() -> Past:
    past = Past().submitted([*TASKS, "25094a63", "40f6cd08"])
    past.add(events.DaemonReady(6.0), after=6)
    past.solved(A, right(A.id)).started(B.id).trained(B.id, 4)
    past.started(C.id).training(C.id, 6, every=0.7)
    past.sampled(B, [grid(2, 3)], serial=4)
    return past.started("40f6cd08").training("40f6cd08", 3, every=0.4)


def running() -> tuple[Scene, float]:
    past = _running()
    return Scene(past.history(TRUTH), None, Outlook(past.at - 2, 41.0)), past.at + 0.5


def frozen_and_restarted() -> tuple[Scene, float]:
    past = _running()
    past.add(DAEMON, after=75).add(events.Interrupted(C.id), events.Interrupted(B.id))
    past.add(events.DaemonReady(5.0), after=5).started(B.id).sampled(B, [None], serial=4)
    past.started(C.id).training(C.id, 2)
    return Scene(past.history(TRUTH), None, Outlook(past.at, 30.0)), past.at + 47


def with_budget() -> tuple[Scene, float]:
    past = Past().submitted(TASKS, budget=120).add(events.DaemonReady(6.0), after=6)
    past.started(A.id).sampled(A, [grid(3, 3)], serial=0).answered(A, [grid(3, 3)], serial=None)
    return Scene(past.history(TRUTH), None, Outlook(past.at, 200.0)), past.at


def late() -> tuple[Scene, float]:
    past = Past().submitted(TASKS, budget=20).add(events.DaemonReady(6.0), after=6)
    past.started(A.id).training(A.id, 9, every=2.0)
    return Scene(past.history(TRUTH), None), past.at


def done() -> tuple[Scene, float]:
    past = Past().submitted([*TASKS, LARGE.id], name="dev").add(events.DaemonReady(6.0), after=6)
    past.solved(A, right(A.id)).solved(B, [grid(4, 4, 2), grid(4, 4)]).solved(C, right(C.id), 5)
    past.started(LARGE.id).answered(LARGE, [grid(30, 30)] * 2, serial=None)
    past.add(events.DaemonStopped(), after=60)
    return Scene(past.history(TRUTH), None), past.at + 3600


def thousand() -> tuple[Scene, float]:
    names = [f"task{i:04}" for i in range(1000)]
    past = Past().submitted(names, name="n" * 90).add(events.DaemonReady(6.0), after=6)
    for name in names[:400]:
        past.solved(task(name), [grid(3, 3), None, grid(2, 2)])
    for name in names[400:440]:
        past.started(name).trained(name)
    return Scene(past.history(keep=1000), None, Outlook(past.at, 7300.0)), past.at


STATES: dict[str, Callable[[], tuple[Scene, float]]] = {
    made.__name__: made
    for made in (
        empty,
        loading,
        running,
        frozen_and_restarted,
        with_budget,
        late,
        done,
        thousand,
    )
}


def text(scene: Scene, now: float, width: int, height: int) -> str:
    # Wider, so that it is not the console that cuts.
    console = Console(width=width + 500, height=height, no_color=True, color_system=None)
    with console.capture() as captured:
        console.print(draw(scene, now, width, height))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"


def keep() -> None:
    SCREENS.mkdir(exist_ok=True)
    for name, made in STATES.items():
        for width, height in SIZES:
            path = SCREENS / f"{name}-{width}x{height}.txt"
            path.write_text(text(*made(), width, height), encoding="utf-8")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("state", STATES)
def test_it_looks_as_it_did(state: str, size: tuple[int, int]) -> None:
    kept = SCREENS / f"{state}-{size[0]}x{size[1]}.txt"
    assert text(*STATES[state](), *size) == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("palette", [None, *Palette])
@pytest.mark.parametrize("state", STATES)
def test_it_fits_every_size(state: str, palette: Palette | None) -> None:
    made, now = STATES[state]()
    scene = Scene(made.history, palette, made.outlook)
    for width in (1, 10, 20, 39, 80, 200):
        for height in (1, 2, 5, 10, 15, 24, 60):
            lines = text(scene, now, width, height).splitlines()
            assert len(lines) <= height
            assert all(len(line) <= width for line in lines)


@given(lives(), st.integers(1, 150), st.integers(1, 50), st.floats(0, 1e4))
def test_whatever_has_happened_it_can_be_drawn(
    lived: list[Happening], width: int, height: int, now: float
) -> None:
    history = History(1)
    for seq, (job, event) in enumerate(lived, 1):
        if job in (1, None):
            history.apply(Record(seq, float(seq), job, event))
    assert len(text(Scene(history, None), now, width, height).splitlines()) <= height


def test_colours_are_halves_of_a_character_and_digits_where_there_are_none() -> None:
    scene, now = done()
    coloured = text(Scene(scene.history, Palette.arc), now, 80, 40)
    assert "▀▀▀▀▀\n" in coloured
    assert "▀" not in text(scene, now, 80, 40)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.integers(1, 60))
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: list[float], columns: int) -> None:
    line = sparkline(values, columns)
    assert len(line) == min(columns, len(values))
    assert set(line) <= set(LEVELS)
    if len(values) <= columns and max(values) > min(values):
        assert line[values.index(max(values))] == LEVELS[-1]
        assert line[values.index(min(values))] == LEVELS[0]
    assert sparkline([], columns) == ""
