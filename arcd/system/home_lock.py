"""The lock that one arcd holds on its home folder.

It is a `flock` on a file that supervisor and daemon both have open, so the kernel frees it when
both are gone, also after a SIGKILL. The file names their processes. A daemon whose supervisor is
gone is killed by the next arcd that takes the lock. Knows nothing of what the processes do.
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
"""Time for the kernel to end a daemon whose supervisor is gone, or for a new holder to be written
into the file."""

LOCK_RETRY_S = 0.05
"""Time between two tries of the lock: `flock` has no timeout of its own."""

HOLDERS_BEGIN = b'{"supervisor": '
"""What a lock file begins with once an arcd has held it, whatever else is cut off."""

STORE = "arcd.db"
"""The file in a home that only arcd makes; a home that was copied may have no lock file."""

NOBODYS = frozenset({"lost+found", ".gitkeep", ".gitignore", ".keep", ".DS_Store"})
"""Names that file systems, desktops and version control put into a folder that is empty to its
owner."""


@dataclass(frozen=True, slots=True)
class Holders:
    """The processes that hold a home, as written in its lock file."""

    supervisor: Process
    daemon: Process | None

    @classmethod
    def from_json(cls, text: bytes) -> Self | None:
        """None if the text is empty or cut off: its writer has not written it all yet."""
        try:
            fields = json.loads(text)
            daemon = fields["daemon"]
            return cls(Process(**fields["supervisor"]), Process(**daemon) if daemon else None)
        except (ValueError, KeyError, TypeError):
            return None


class HomeLock:
    """The lock on a home folder, held from `take` until `fd` and all its copies are closed.

    A daemon that is started with `fd` in its `pass_fds` has such a copy.
    """

    def __init__(self, home: Path, fd: int) -> None:
        self.home = home
        self.fd = fd

    @classmethod
    def take(
        cls, home: Path, timeout: float = LOCK_TIMEOUT_S, *, private: bool = True
    ) -> "HomeLock":
        """Lock a folder, which is made if it is missing; `private` closes it to other users.

        A folder that is to be private must be an arcd's home already, or empty. A daemon whose
        supervisor is gone is killed. Raises HomeInUse if another arcd is alive or does not end
        within `timeout` seconds, ArcdError if the folder cannot be used.
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
        """Whether any process holds the lock of a home now."""
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
        """Close this process's copy; a daemon that has one keeps the home locked."""
        os.close(self.fd)

    def record(self, daemon: Process | None) -> None:
        """Write this process into the file as the supervisor, and the daemon that it started."""
        holders = Holders(myself(), daemon)
        # In place, for the lock is on this very file: a file renamed to its name would be unlocked.
        with _explained(self.home):
            length = os.pwrite(self.fd, json.dumps(asdict(holders)).encode() + b"\n", 0)
            os.ftruncate(self.fd, length)

    def _wait(self, timeout: float) -> None:
        """Try until the lock is free; kill a daemon without a supervisor. Raises HomeInUse."""
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
        """Whether the lock was free; it is held now."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _in_use(self, holder: Process | None) -> str:
        known = f" with pid {holder.pid}" if holder else ""
        return f"{self.home}: in use by arcd{known}"


def _kill_orphan(daemon: Process) -> None:
    # Without a start time, another process could have that pid now.
    if daemon.started is not None:
        kill_group(daemon)


def _make_private(home: Path) -> None:
    """Make the folder readable by its owner only; refuses one that is anybody else's or other
    files'."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = home.stat()
    # Also root, who could: what root writes there, the owner could not read.
    if found.st_uid != os.geteuid():
        raise ArcdError(f"{home}: another user's folder; name one of your own")
    if found.st_mode & stat.S_IWOTH or home in (Path.home(), Path("/")):
        raise ArcdError(f"{home}: not for arcd alone; name a folder in it")
    if not _is_home(home):
        raise ArcdError(f"{home}: other files are in it; name a new or empty folder")
    if stat.S_IMODE(found.st_mode) != 0o700:
        home.chmod(0o700)


def _is_home(folder: Path) -> bool:
    """Whether a folder has a mark of arcd's, or nothing in it that could be anybody else's.

    Until an arcd has written itself into its lock file, it makes nothing but that file. So of two
    that start in a new folder, the second finds an empty file or the mark.
    """
    names = set(os.listdir(folder)) - NOBODYS
    if not names or STORE in names:
        return True
    begin = _first_bytes(folder / "lock") if "lock" in names else None
    return begin == HOLDERS_BEGIN or (begin == b"" and names == {"lock"})


def _first_bytes(path: Path) -> bytes | None:
    """As many as HOLDERS_BEGIN has; None for what is no regular file."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return None
    with path.open("rb") as file:
        return file.read(len(HOLDERS_BEGIN))


@contextmanager
def _explained(home: Path) -> Iterator[None]:
    """Turn an OSError into an ArcdError that names the folder."""
    try:
        yield
    except OSError as error:
        raise ArcdError(f"{home}: {error.strerror}") from error
