"""One line for each transition: what is printed where there is no screen, and what logs are of.

Pure functions of a record and the state after it. Knows nothing of who sends the records.
"""

from arcd.arc.selection import Verdict
from arcd.arc.tasks import Solutions
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.state import Phase, State


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
            head = f"{task}  answered {done}: {agreement(verdict)}"
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


def agreement(verdict: Verdict) -> str:
    """How many samples there are of a task, and how many agree on the best grid of each test."""
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
    right = verdict.right(truth)
    return "  ✓ solved" if right == len(truth) else f"  ✗ {right} of {len(truth)} tests solved"
