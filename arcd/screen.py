"""What a person sees of a run: a state folded from its events, drawn by pure functions.

On a terminal two lanes and a bar stay at the bottom while answers scroll by; elsewhere there is
one line for each transition. Knows nothing of who emits the events.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from arcd import events
from arcd.ledger import LANES, Account
from arcd.selection import Verdict
from arcd.tasks import Solutions


@dataclass(frozen=True)
class State:
    """A run as far as its events have told: what each lane does, and what is done."""

    tasks: int
    done: int = 0
    training: events.Training | None = None
    wanted: Mapping[str, int] = field(default_factory=dict)
    """Samples that each task in hand will have."""
    sampled: Mapping[str, int] = field(default_factory=dict)
    """Samples that each task in hand has."""


def advance(state: State, event: events.Event) -> State:
    """The state after one more event."""
    match event:
        case events.Started(task, _, samples):
            return replace(state, wanted={**state.wanted, task: samples})
        case events.Training():
            return replace(state, training=event)
        case events.Trained():
            return replace(state, training=None)
        case events.Sampled(task):
            count = state.sampled.get(task, 0) + 1
            return replace(state, sampled={**state.sampled, task: count})
        case events.Answered(task):
            wanted = {t: n for t, n in state.wanted.items() if t != task}
            sampled = {t: n for t, n in state.sampled.items() if t != task}
            return replace(state, done=state.done + 1, wanted=wanted, sampled=sampled)
        case events.Noted():
            return state


def draw(state: State, seconds: float) -> RenderableType:
    """The lanes and the bar, `seconds` after the start."""
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("training ", style="bold"), _trainer(state))
    table.add_row(Text("inference", style="bold"), _engine(state))
    bar = ProgressBar(total=max(1, state.tasks), completed=state.done, width=30)
    done = Text(f"{state.done}/{state.tasks} tasks  {_clock(seconds)}")
    row = Table.grid(padding=(0, 2))
    row.add_row(Text("answered ", style="bold"), bar, done)
    return Group(table, row)


def _trainer(state: State) -> Text:
    now = state.training
    if now is None:
        return Text("idle", style="dim")
    return Text(
        f"{now.task}  step {now.step}/{now.steps}  loss {now.loss:.3f}  "
        f"{now.tokens_per_second:.0f} tok/s"
    )


def _engine(state: State) -> Text:
    busy = [f"{task} {count}/{state.wanted[task]}" for task, count in state.sampled.items()]
    return Text("  ".join(busy)) if busy else Text("idle", style="dim")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def line(event: events.Event, state: State, solutions: Solutions) -> str | None:
    """One line for a transition; None for mere progress."""
    match event:
        case events.Trained(task, _, steps, _, seconds, loss):
            return f"{task}  trained {steps} steps in {seconds:.1f} s, loss {loss:.3f}"
        case events.Noted(task, note):
            return f"{task}  note: {note}"
        case events.Answered(task, verdict):
            head = f"{task}  answered {state.done}/{state.tasks}: {_agreement(verdict)}"
            return head + _judged(verdict, solutions)
        case _:
            return None


def _agreement(verdict: Verdict) -> str:
    if not verdict.samples:
        return "not asked, blank"
    best = [test[0].count if test else 0 for test in verdict.ranked]
    per_test = verdict.samples // len(verdict.ranked)
    valid = verdict.samples - verdict.invalid
    agree = ", ".join(f"{count}/{per_test}" for count in best)
    return f"{valid} of {verdict.samples} samples valid, best grid {agree} votes"


def _judged(verdict: Verdict, solutions: Solutions) -> str:
    truth = solutions.get(verdict.task)
    if truth is None:
        return ""
    right = sum(grid in attempts for grid, attempts in zip(truth, verdict.attempts, strict=True))
    return "  ✓ solved" if right == len(truth) else f"  ✗ {right} of {len(truth)} tests solved"


@contextmanager
def watching(
    console: Console,
    tasks: int,
    solutions: Solutions,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[events.Emit]:
    """A listener that shows the events on this console for as long as the block lasts."""
    state, begun = State(tasks), clock()

    def now() -> RenderableType:
        return draw(state, clock() - begun)

    def listen(event: events.Event) -> None:
        nonlocal state
        state = advance(state, event)
        text = line(event, state, solutions)
        if text:
            colour = "green" if "✓" in text else "yellow" if "note:" in text else None
            console.print(Text(text, style=colour or ""), soft_wrap=True)

    if not console.is_terminal:
        yield listen
        return
    with Live(get_renderable=now, console=console, refresh_per_second=4, transient=True):
        yield listen


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
