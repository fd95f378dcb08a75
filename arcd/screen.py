"""What a person sees of a job: drawn by pure functions from the state that its records fold to.

On a terminal two lanes and a bar stay at the bottom while answers scroll by; elsewhere there is
one line for each transition. Knows nothing of who sends the records.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from arcd import events
from arcd.events import Record
from arcd.ledger import LANES, Account
from arcd.selection import Verdict
from arcd.state import Job, Phase, State
from arcd.tasks import Solutions


def draw(state: State, job: int, seconds: float) -> RenderableType:
    """The lanes and the bar of a job, `seconds` after the start."""
    found = state.jobs.get(job)
    table = Table.grid(padding=(0, 2))
    table.add_row(Text("training ", style="bold"), _trainer(state))
    table.add_row(Text("inference", style="bold"), _engine(found))
    done, tasks = (found.counts[Phase.answered], len(found.tasks)) if found else (0, 0)
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, tasks), completed=done, width=30)
    row.add_row(
        Text("answered ", style="bold"), bar, Text(f"{done}/{tasks} tasks  {_clock(seconds)}")
    )
    return Group(table, row)


def _trainer(state: State) -> Text:
    if state.daemon and not state.ready:
        return Text("loading the models", style="dim")
    if not state.training:
        return Text("idle", style="dim")
    return Text(
        "\n".join(
            f"{now.task}  step {now.step}/{now.steps}  loss {now.loss:.3f}  "
            f"{now.tokens_per_second:.0f} tok/s"
            for now in state.training.values()
        )
    )


def _engine(job: Job | None) -> Text:
    tasks = job.tasks.items() if job else ()
    busy = [f"{name} {t.sampled}/{t.wanted}" for name, t in tasks if t.phase is Phase.trained]
    return Text("  ".join(busy)) if busy else Text("idle", style="dim")


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def line(record: Record, state: State, solutions: Solutions) -> str | None:
    """One line for a transition, `state` being the one after it; None for mere progress."""
    match record.event:
        case events.DaemonReady(seconds):
            return f"models loaded in {seconds:.1f} s"
        case events.DaemonStarted(pid) if state.restarts:
            return f"note: the daemon was started again (pid {pid})"
        case events.Interrupted(task):
            return f"{task}  note: interrupted by the death of the daemon, goes on"
        case events.Released(task):
            return f"{task}  note: set aside unfinished"
        case events.Paused() | events.Cancelled() | events.Resumed():
            return f"job {record.job} {events.kind(record.event).lower()}"
        case events.Retried(tasks):
            return f"job {record.job} retries {len(tasks)} tasks"
        case events.Trained(task, _, steps, _, seconds, loss):
            return f"{task}  trained {steps} steps in {seconds:.1f} s, loss {loss:.3f}"
        case events.Noted(task, note):
            return f"{task}  note: {note}"
        case events.Answered(task, verdict) if record.job is not None:
            job = state.jobs[record.job]
            done = f"{job.counts[Phase.answered]}/{len(job.tasks)}"
            head = f"{task}  answered {done}: {_agreement(verdict)}"
            return head + _judged(verdict, solutions)
        case _:
            return None


def log_line(record: Record, state: State) -> str | None:
    """One line of the daemon's log for a transition of any job."""
    match record.event:
        case events.DaemonStarted(pid, version, base, _, device, dtype):
            return f"arcd {version}, pid {pid}, {base} on {device} in {dtype}"
        case events.DaemonStopped():
            return "stopped"
        case events.Submitted(name, priority, tasks):
            return f"job {record.job} submitted: {name}, {len(tasks)} tasks, priority {priority}"
    text = line(record, state, {})
    of_task = record.job is not None and isinstance(record.event, events.TaskEvent)
    return f"job {record.job}  {text}" if text and of_task else text


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


Watch = Callable[[Record], None]


@contextmanager
def watching(
    console: Console,
    job: int,
    solutions: Solutions,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Watch]:
    """Something that shows a job's records on this console for as long as the block lasts."""
    state, begun = State(), clock()

    def now() -> RenderableType:
        return draw(state, job, clock() - begun)

    def listen(record: Record) -> None:
        state.apply(record)
        text = line(record, state, solutions)
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
