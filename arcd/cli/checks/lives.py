"""Two lives of a daemon: it is killed in the middle of its first task, then three tasks are solved.

The daemon is that of `arcd run`, in a temporary home. What is seen of it is an `Observed`; both
findings follow from that.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from arcd.arc.tasks import load
from arcd.cli.checks.environment import told
from arcd.cli.finding import Finding
from arcd.daemon import foreground, schema
from arcd.daemon.options import Options
from arcd.daemon.supervisor import Incident
from arcd.daemon.watchdog import Limits
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.system.cuda_driver import find_driver
from arcd.system.home_lock import Holders
from arcd.system.ledger import Account
from arcd.system.processes import PROC, Process, alive, send
from arcd.system.visible_gpus import VISIBLE

E = TypeVar("E", bound=events.Event)

TASKS = "arc1-train:25ff71a9,a85d4709,a79310a0"
"""Three small tasks."""

SAMPLES = 4
"""Of each test."""

STEPS = 12
"""Of each training: the kill comes after the first of the first task."""

RETURN_S = 10.0
"""Seconds in which a system may end processes that were killed, and a driver give back memory."""

LOOK_S = 0.2
"""Seconds between two looks."""

MIB = 2**20
KEPT = 200 * MIB
"""Bytes by which the device's memory may differ from what it was before: other programs have some.
"""


@dataclass
class Observed:
    """What was seen of the daemons of a run."""

    tasks: Sequence[str]
    on_gpu: bool = False
    """Whether the daemons may have used a GPU."""
    before: int | None = None
    """Bytes of the GPU in use before the first daemon; None where they are not known."""
    during: int | None = None
    """The same when it was killed."""
    after: int | None = None
    """The same when its process was gone, before the next one was started."""
    killed: Process | None = None
    """The daemon that was killed."""
    left: bool = False
    """Whether any process of its group was still there then."""
    incidents: list[Incident] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    account: Account | None = None
    """Where the time of the last daemon went."""

    @property
    def over(self) -> bool:
        """Whether the tasks that were interrupted by the kill are answered."""
        interrupted = {e.task for e in _events(self, events.Interrupted)}
        answered = {e.task for e in _events(self, events.Answered)}
        return self.killed is not None and bool(interrupted) and interrupted <= answered


def observe(
    options: Options,
    used: Callable[[], int | None],
    over: Callable[[Observed], None],
    source: str = TASKS,
) -> Observed:
    """Solve the tasks with a daemon that is killed at the first step of the first training.

    `used` tells the bytes of device memory in use. `over` is called once when the interrupted tasks
    are answered, if they ever are, in another thread. To be called in the main thread.
    """
    tasks = load(source)
    on_gpu = options.device != "cpu" and find_driver().gpus > 0
    seen = Observed([task.id for task in tasks.tasks], on_gpu, before=used())

    def listen(record: Record) -> None:
        before = seen.over
        seen.records.append(record)
        if seen.over and not before:
            over(seen)
        if seen.killed is None and isinstance(record.event, events.Training):
            seen.during = used()
            seen.killed = _kill(options.home)

    def report(incident: Incident) -> None:
        seen.incidents.append(incident)
        if seen.killed is not None and seen.after is None:
            # The supervisor waits for this before it starts the next daemon.
            seen.left = _left_behind(seen.killed)
            seen.after = _returned(used, seen.before)

    outcome = foreground.run(
        options,
        schema.order(tasks),
        limits=Limits(),
        report=report,
        begin=lambda _: listen,
    )
    seen.account = outcome.account
    return seen


def kill_finding(seen: Observed) -> Finding:
    """Whether a killed daemon left nothing behind, and its task was answered by the next one."""
    interrupted = [e.task for e in _events(seen, events.Interrupted)]
    answered = {e.task for e in _events(seen, events.Answered)}
    wrong = []
    if seen.killed is None or not interrupted:
        wrong.append("no daemon was killed in the middle of a task")
    if seen.left:
        wrong.append("processes of the killed daemon are still there")
    if lost := [task for task in interrupted if task not in answered]:
        wrong.append(f"not answered afterwards: {', '.join(lost)}")
    if again := _died_again(seen):
        wrong.append(again)
    memory, kept = _memory(seen)
    if kept:
        wrong.append(kept)
    data = {"before": seen.before, "during": seen.during, "after": seen.after}
    if wrong:
        advice = "what a daemon that dies leaves behind may keep the next one from starting: "
        return Finding("kill", "; ".join(wrong), False, {}, advice + "report this document", data)
    value = f"killed while it trained {interrupted[0]}; {memory}; answered by the next daemon"
    return Finding("kill", value, data=data)


def tasks_finding(seen: Observed) -> Finding:
    """Whether every task was trained, sampled and answered, and how long that took."""
    answers = {e.task: e.verdict for e in _events(seen, events.Answered)}
    sampled = {e.task for e in _events(seen, events.Sampled)}
    missing = [task for task in seen.tasks if task not in answers or task not in sampled]
    # An adapter may be trained and lost: then the base has answered.
    by_adapter = {task for task, verdict in answers.items() if verdict.adapter is not None}
    trained = by_adapter & {e.task for e in _events(seen, events.Trained)}
    untrained = [task for task in seen.tasks if task not in trained]
    parts = dict(_parts(seen))
    notes = [note for verdict in answers.values() for note in verdict.notes]
    data = {"notes": notes, "stages": dict(seen.account.stages) if seen.account else {}}
    if missing:
        advice = "see the lines above; if all of them are ok, report this document"
        value = f"without an answer: {', '.join(missing)}"
        return Finding("tasks", value, False, parts, advice, data)
    if untrained:
        why = f" ({notes[0]})" if notes else ""
        advice = "answers of the base alone are poor ones: mend what the line says, or report"
        value = f"not trained: {', '.join(untrained)}{why}"
        return Finding("tasks", value, False, parts, f"{advice} this document", data)
    if again := _died_again(seen):
        return Finding("tasks", again, False, parts, "report this document", data)
    value = f"{len(answers)} answered in {_seconds(seen):.1f} s after the start"
    return Finding("tasks", value, True, parts, "", data)


def gpu_memory_used() -> int | None:
    """Bytes in use of the GPU of this process, by nvidia-smi; None where it does not tell."""
    query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    # One GPU, after `narrow`; of several, all together.
    if shown := os.environ.get(VISIBLE):
        query += ["-i", shown]
    try:
        used = [int(line) for line in told("nvidia-smi", *query)]
    except ValueError:
        return None
    return sum(used) * MIB if used else None


def _kill(home: Path) -> Process | None:
    """Kill the daemon of a home as a system does that is out of memory."""
    holders = Holders.from_json((home / "lock").read_bytes())
    if holders is None or holders.daemon is None:
        return None
    send(holders.daemon, signal.SIGKILL)
    return holders.daemon


def _left_behind(leader: Process) -> bool:
    """Whether a killed process, or what it has started, is still there after RETURN_S."""
    deadline = time.monotonic() + RETURN_S
    while left := alive(leader) or any(_running(leader.pid)):
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    return left


def _running(group: int) -> Iterator[int]:
    """The processes of a group; zombies hold nothing, and not every system buries them."""
    for stat in PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, in parentheses: state, parent, group (proc_pid_stat(5)).
            state, _, its_group = stat.read_bytes().rpartition(b")")[2].split()[:3]
            if int(its_group) == group and state not in (b"Z", b"X"):
                yield int(stat.parent.name)


def _returned(used: Callable[[], int | None], before: int | None) -> int | None:
    """The memory in use as soon as it is what it was, or after RETURN_S."""
    deadline = time.monotonic() + RETURN_S
    while (now := used()) is not None and before is not None and now > before + KEPT:
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    return now


def _memory(seen: Observed) -> tuple[str, str]:
    """Of a run whose daemon was killed: what to tell, and what is wrong."""
    if seen.before is None or seen.during is None or seen.after is None:
        unknown = "; device memory not known: nvidia-smi does not tell" if seen.on_gpu else ""
        return "its processes are gone" + unknown, ""
    kept = seen.after - seen.before
    # Another program may have given memory back meanwhile.
    held = max(0, seen.during - seen.before)
    back = f"{held / MIB:.0f} MiB of device memory are back"
    return back, f"{kept / MIB:.0f} MiB of device memory are not back" if kept > KEPT else ""


def _died_again(seen: Observed) -> str:
    """Deaths after the kill, which is the first one; in words, none where there was none."""
    texts = [each.text for each in seen.incidents[1:]]
    return "died again: " + "; ".join(texts) if texts else ""


def _last_life(seen: Observed) -> list[Record]:
    """What happened to tasks after the kill."""
    kinds = [events.kind(record.event) for record in seen.records]
    ends = [index for index, kind in enumerate(kinds) if kind == "Interrupted"]
    return seen.records[ends[-1] + 1 :] if ends else seen.records


def _parts(seen: Observed) -> Iterator[tuple[str, float]]:
    """Seconds of the last daemon: its start, then each task by what was done; tasks overlap."""
    if seen.account is not None:
        yield "start", sum(seen.account.stages.values())
    at: dict[str, float] = {}
    for record in _last_life(seen):
        match record.event:
            case events.Started(task=task):
                at[task] = record.at
            case events.Trained(task=task, seconds=seconds):
                yield f"train {task}", seconds
                at[task] = record.at
            case events.Answered(task=task) if task in at:
                yield f"sample {task}", record.at - at[task]


def _seconds(seen: Observed) -> float:
    """From the first task begun by the last daemon to the last answer."""
    life = _last_life(seen)
    begun = [each.at for each in life if isinstance(each.event, events.Started)]
    ended = [each.at for each in life if isinstance(each.event, events.Answered)]
    return max(ended) - min(begun) if begun and ended else 0.0


def _events(seen: Observed, kind: type[E]) -> list[E]:
    return [record.event for record in seen.records if isinstance(record.event, kind)]
