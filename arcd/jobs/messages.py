"""Messages: one line for each transition of a job, for logs and where there is no live screen.

Pure functions of a record and the state after it. Knows nothing of where the lines go.
"""

from dataclasses import dataclass
from enum import StrEnum

from arcd.arc.selection import Verdict
from arcd.arc.tasks import Solutions
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.state import Phase, State


class Level(StrEnum):
    """What kind of news a message is."""

    info = "info"
    solved = "solved"
    """A task whose solution is known was solved."""
    warning = "warning"
    """Something went other than planned."""


@dataclass(frozen=True, slots=True)
class Message:
    """A line of text and what kind of news it is."""

    level: Level
    text: str


def info(text: str) -> Message:
    """A message without particular weight."""
    return Message(Level.info, text)


def warning(text: str, task: str = "") -> Message:
    """A message about something that went other than planned, with a task or with none."""
    return Message(Level.warning, f"{task}  note: {text}" if task else f"note: {text}")


def message(record: Record, state: State, solutions: Solutions) -> Message | None:
    """The message about a transition, `state` being the one after it; None for mere progress."""
    match record.event:
        case events.DaemonReady(seconds=seconds):
            return info(f"models loaded in {seconds:.1f} s")
        case events.DaemonStarted(pid=pid) if state.restarts:
            return warning(f"the daemon was started again (pid {pid})")
        case events.DaemonDied(reason=reason):
            return warning(f"the daemon ends: {reason}")
        case events.Interrupted(task=task):
            return warning("interrupted by the death of the daemon, goes on", task)
        case events.Released(task=task):
            return warning("set aside unfinished", task)
        case events.Paused() | events.Cancelled() | events.Resumed() | events.Forgotten():
            return info(f"job {record.job} {events.kind(record.event).lower()}")
        case events.Retried(tasks=tasks):
            return info(f"job {record.job} retries {len(tasks)} tasks")
        case events.Trained(task=task, steps=steps, seconds=seconds, loss=loss):
            return info(f"{task}  trained {steps} steps in {seconds:.1f} s, loss {loss:.3f}")
        case events.Noted(task=task, note=note):
            return warning(note, task)
        case events.Answered(verdict=verdict) if record.job is not None:
            return _answered(record.job, verdict, state, solutions)
        case _:
            return None


def log_line(record: Record, state: State) -> str | None:
    """One line of the daemon's log for a transition of any job."""
    match record.event:
        case events.DaemonStarted(pid=pid, version=version, base=base, device=device, dtype=dtype):
            return f"arcd {version}, pid {pid}, {base} on {device} in {dtype}"
        case events.DaemonStopped():
            return "stopped"
        case events.Submitted(name=name, priority=priority, tasks=tasks):
            words = f"{name}, {len(tasks)} tasks, priority {priority}"
            return f"job {record.job} submitted: {words}"
    found = message(record, state, {})
    if found is None:
        return None
    of_task = record.job is not None and isinstance(record.event, events.TaskEvent)
    return f"job {record.job}  {found.text}" if of_task else found.text


def agreement(verdict: Verdict) -> str:
    """How many samples of a task are valid, and how many agree on the best grid of each test."""
    if not verdict.samples:
        return "not asked, blank"
    best = [test[0].count if test else 0 for test in verdict.ranked]
    per_test = verdict.samples // len(verdict.ranked)
    valid = verdict.samples - verdict.invalid
    agree = ", ".join(f"{count}/{per_test}" for count in best)
    return f"{valid} of {verdict.samples} samples valid, best grid {agree} votes"


def _answered(number: int, verdict: Verdict, state: State, solutions: Solutions) -> Message:
    job = state.jobs[number]
    done = f"{job.counts[Phase.answered]}/{len(job.tasks)}"
    text = f"{verdict.task}  answered {done}: {agreement(verdict)}"
    truth = solutions.get(verdict.task)
    if truth is None:
        return info(text)
    right = verdict.right(truth)
    if right == len(truth):
        return Message(Level.solved, f"{text}  ✓ solved")
    return info(f"{text}  ✗ {right} of {len(truth)} tests solved")
