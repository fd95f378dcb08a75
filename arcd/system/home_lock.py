"""The lock that one arcd holds on its home folder.

A `flock` on an open file that supervisor and daemon share, so that it is free only when both are
gone, however they went. The file says who they are. Knows nothing of what the processes do.
"""

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from arcd.errors import ArcdError, HomeInUse
from arcd.system.processes import Process, alive, kill_group, myself

LOCK_TIMEOUT_S = 5.0
"""Seconds to wait for a home whose supervisor is gone: the kernel is ending its daemon."""

LOCK_RETRY_S = 0.05
"""Seconds between two tries of the lock; `flock` knows no time limit of its own."""


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
    def take(
        cls, home: Path, timeout: float = LOCK_TIMEOUT_S, *, private: bool = True
    ) -> "HomeLock":
        """Lock a home, made private to its owner, or another folder that is one run's at a time.

        A daemon whose supervisor is gone is killed. Raises HomeInUse if another arcd is alive or
        will not go within `timeout` seconds, ArcdError if the folder cannot be used.
        """
        with _explained(home), ExitStack() as undo:
            if private:
                _make_private(home)
            else:
                home.mkdir(parents=True, exist_ok=True)
            fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            lock = undo.enter_context(cls(home, fd))
            lock._wait(timeout)
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
        holders = Holders(myself(), daemon)
        # In place, for the lock is on this very file: a new one under its name would be unlocked.
        with _explained(self.home):
            length = os.pwrite(self.fd, json.dumps(asdict(holders)).encode() + b"\n", 0)
            os.ftruncate(self.fd, length)

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._free():
            holders = Holders.from_json(os.pread(self.fd, 4096, 0))
            if holders and alive(holders.supervisor):
                raise HomeInUse(self._in_use(holders.supervisor))
            if holders and holders.daemon:
                _kill_orphan(holders.daemon)
            if time.monotonic() > deadline:
                last = (holders.daemon or holders.supervisor) if holders else None
                raise HomeInUse(self._in_use(last))
            time.sleep(LOCK_RETRY_S)

    def _free(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _in_use(self, holder: Process | None) -> str:
        known = f" with pid {holder.pid}" if holder else ""
        return f"{self.home}: in use by arcd{known}"


def _kill_orphan(daemon: Process) -> None:
    # Without a start time it could be anyone who has that pid now.
    if daemon.started is not None:
        kill_group(daemon)


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
