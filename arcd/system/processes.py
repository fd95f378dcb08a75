"""Processes that cannot be mistaken for others, and the lock that one arcd holds on its home.

A pid alone is not an identity, because the kernel gives it out again; with its start time it is.
The lock is a `flock` on an open file that supervisor and daemon share, so that it is free only
when both are gone, however they went. Knows nothing of what the processes do.
"""

import ctypes
import fcntl
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from arcd.errors import ArcdError, HomeInUse

PROC = Path("/proc")

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

PATIENCE = 5.0
"""Seconds to wait for a home whose supervisor is gone: the kernel is ending its daemon."""

RETRY = 0.05
"""Seconds between two tries of the lock; `flock` knows no time limit of its own."""


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Process:
    """One process for all time.

    `started` is in clock ticks since the boot, so that it does not move with the wall clock; None
    where the system has no /proc, and then the pid alone has to do.
    """

    pid: int
    started: int | None


def identify(pid: int) -> Process | None:
    """The process that has this pid now, be it a zombie; None if there is none."""
    found = _look_up(pid)
    return found[0] if found else None


def alive(process: Process) -> bool:
    """Whether that very process still runs; a zombie does not."""
    found = _look_up(process.pid)
    return found is not None and found[0] == process and found[1] not in "ZX"


def send(process: Process, number: signal.Signals) -> None:
    """Send a signal to that very process; nothing happens if it is gone."""
    if identify(process.pid) == process:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def kill_group(process: Process) -> None:
    """Kill the process group led by that very process, which may be dead but not yet reaped."""
    if identify(process.pid) == process:
        _kill_group(process.pid)


def sweep_group(process: Process) -> None:
    """Kill what a leader that has just been reaped left behind in its group.

    As long as a group has members, no new process gets its number. So if the number is taken, the
    group is empty and there is nothing left to kill.
    """
    if identify(process.pid) is None:
        _kill_group(process.pid)


def _kill_group(number: int) -> None:
    # Nobody in the group any more; macOS says "not permitted" where only zombies are left.
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
    # The name of the program, field 2, stands in brackets and may itself hold any of ") (".
    fields = stat.rpartition(b")")[2].split()
    return Process(pid, int(fields[22 - 3])), fields[0].decode()


def _look_up_without_proc(pid: int) -> tuple[Process, str] | None:
    # Signal 0 to a "pid" below 1 is a question about whole groups.
    if pid < 1:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it exists and is someone else's
    return Process(pid, None), "R"


@dataclass(frozen=True, slots=True)
class Holders:
    """Who holds a home, as written in its lock file."""

    supervisor: Process
    daemon: Process | None

    @classmethod
    def from_json(cls, text: bytes) -> Self | None:
        """None if the text is empty or torn: its writer has not written it all yet."""
        try:
            fields = json.loads(text)
            daemon = fields["daemon"]
            return cls(Process(**fields["supervisor"]), Process(**daemon) if daemon else None)
        except (ValueError, KeyError, TypeError):
            return None


class HomeLock:
    """The lock on a home folder, held from `take` until this and every copy of `fd` are closed.

    A daemon that is started with `fd` among its `pass_fds` holds the lock together with its
    supervisor.
    """

    def __init__(self, home: Path, fd: int) -> None:
        self.home = home
        self.fd = fd

    @classmethod
    def take(cls, home: Path, patience: float = PATIENCE, *, private: bool = True) -> "HomeLock":
        """Lock a home, made private to its owner, or another folder that is one run's at a time.

        A daemon whose supervisor is gone is killed. Raises HomeInUse if another arcd is alive or
        will not go within `patience` seconds, ArcdError if the folder cannot be used.
        """
        with _explained(home), ExitStack() as undo:
            if private:
                _make_private(home)
            else:
                home.mkdir(parents=True, exist_ok=True)
            fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            lock = undo.enter_context(cls(home, fd))
            lock._wait(patience)
            lock.record(None)
            undo.pop_all()
        return lock

    @staticmethod
    def held(home: Path) -> bool:
        """Whether somebody holds the lock of a home now."""
        try:
            with (home / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go; the home stays locked as long as a daemon holds it."""
        os.close(self.fd)

    def record(self, daemon: Process | None) -> None:
        """Write down who holds the lock now: this process, and the daemon that it started."""
        holders = Holders(_myself(), daemon)
        # In place, for the lock is on this very file: a new one under its name would be unlocked.
        with _explained(self.home):
            length = os.pwrite(self.fd, json.dumps(asdict(holders)).encode() + b"\n", 0)
            os.ftruncate(self.fd, length)

    def _wait(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        while not self._free():
            holders = Holders.from_json(os.pread(self.fd, 4096, 0))
            if holders and alive(holders.supervisor):
                raise HomeInUse(self._in_use(holders.supervisor))
            if holders and holders.daemon:
                _kill_orphan(holders.daemon)
            if time.monotonic() > deadline:
                last = (holders.daemon or holders.supervisor) if holders else None
                raise HomeInUse(self._in_use(last))
            time.sleep(RETRY)

    def _free(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _in_use(self, holder: Process | None) -> str:
        known = f" with pid {holder.pid}" if holder else ""
        return f"{self.home}: in use by arcd{known}"


def die_with_parent() -> None:
    """On Linux the kernel kills this process when its parent's thread that started it ends."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def _kill_orphan(daemon: Process) -> None:
    # Without a start time it could be anyone who has that pid now.
    if daemon.started is not None:
        kill_group(daemon)


def _myself() -> Process:
    me = identify(os.getpid())
    assert me is not None, "a process that runs has an identity"
    return me


def _make_private(home: Path) -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_mode & stat.S_IWOTH or home in (Path.home(), Path("/")):
        raise ArcdError(f"{home}: not for arcd alone; name a folder in it")
    if home.stat().st_uid == os.geteuid():
        home.chmod(0o700)


@contextmanager
def _explained(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArcdError(f"{home}: {error.strerror}") from error
