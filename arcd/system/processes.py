"""Processes, identified by pid and start time.

They are looked up, signalled and killed only if both match: the kernel reuses pids, and a pid alone
could be another process by now. Knows nothing of what the processes do.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
"""Where Linux tells of its processes."""

PR_SET_PDEATHSIG = 1
"""Operation of prctl(2), from <linux/prctl.h>."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Process:
    """The identity of one process; no other process has it until the next boot."""

    pid: int
    started: int | None
    """Start in clock ticks since the boot, which does not move with the wall clock; None where the
    system has no /proc: there the pid alone has to do."""


def resident_bytes() -> int | None:
    """Bytes of this process that are in RAM now; None on a system without /proc."""
    try:
        pages = int((PROC / "self" / "statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """Give the system back what this process has freed, if the C library can (glibc).

    By itself glibc keeps the memory of the longest task for the rest of the run.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def identify(pid: int) -> Process | None:
    """The process that has this pid now, also a zombie; None if there is none."""
    found = _look_up(pid)
    return found[0] if found else None


def myself() -> Process:
    """This process."""
    found = identify(os.getpid())
    assert found is not None, "a process that runs has an identity"
    return found


def seconds_since_start() -> float:
    """Seconds since this process was started; 0 where the system has no /proc."""
    started = myself().started
    if started is None:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def alive(process: Process) -> bool:
    """Whether this process still runs; a zombie does not."""
    found = _look_up(process.pid)
    return found is not None and found[0] == process and found[1] not in "ZX"


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to this process; nothing happens if it is gone."""
    if identify(process.pid) == process:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def kill_group(process: Process) -> None:
    """Kill the process group led by this process, which may be dead but not yet reaped."""
    if identify(process.pid) == process:
        _kill_group(process.pid)


def sweep_group(process: Process) -> None:
    """Kill what a leader that has just been reaped left behind in its group.

    As long as a group has members, no new process gets its number. So if a process has the number,
    the group is empty, and nothing is killed.
    """
    if identify(process.pid) is None:
        _kill_group(process.pid)


def _kill_group(number: int) -> None:
    # An empty group is no error; macOS says "not permitted" where only zombies are left.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)


def _look_up(pid: int) -> tuple[Process, str] | None:
    """The process that has this pid and its state in one letter, as in proc_pid_stat(5)."""
    if not (PROC / "self").exists():
        return _look_up_without_proc(pid)
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 2, the program's name, is in parentheses and may have parentheses and spaces in it.
    fields = stat.rpartition(b")")[2].split()
    return Process(pid, int(fields[22 - 3])), fields[0].decode()


def _look_up_without_proc(pid: int) -> tuple[Process, str] | None:
    # A "pid" below 1 means a whole group to kill(2).
    if pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it exists and belongs to another user
    return Process(pid, None), "R"


def die_with_parent() -> None:
    """On Linux, have the kernel kill this process when the thread that started it ends.

    Elsewhere nothing happens. Raises OSError where the kernel refuses.
    """
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
