"""The home folder: the paths of everything that arcd keeps. Nothing is opened here.

arcd.db             the store
lock                locked while arcd runs; names its processes (home_lock.py)
socket              where the daemon listens, unless this path is too long for a socket
token               what clients that connect by TCP must send
daemon.log          output of the daemon; daemon.log.1 is the older part
stacks.log          all stacks of a daemon, dumped before it was killed because no step completed
compiled/           what torch has compiled for this machine; may be deleted
adapters/           trained adapters whose task is not answered yet
jobs/N/             each job's submission.json, and state.json, a cache of the job's state

Knows nothing of what is in the files.
"""

import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from arcd.errors import ArcdError

MAX_SOCKET_PATH_BYTES = 100
"""Longest path of a Unix socket; systems allow 104 (macOS) to 108 (Linux), the final zero included.
"""


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder."""

    path: Path

    @classmethod
    def at(cls, given: Path | None) -> "Home":
        """The given folder, else that of ARCD_HOME, else `arcd` in the user's data folder."""
        chosen = given or Path(os.environ.get("ARCD_HOME") or platformdirs.user_data_dir("arcd"))
        return cls(chosen.absolute())

    @property
    def socket(self) -> Path:
        """Where the daemon listens: in the home, or in the temporary folder if that is too long.

        The name there is a hash of the home's path, so that every client computes the same.
        """
        inside = self.path / "socket"
        if len(os.fsencode(inside)) <= MAX_SOCKET_PATH_BYTES:
            return inside
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"arcd-{os.getuid()}-{name}" / "socket"

    def check_socket(self) -> None:
        """Raise ArcdError where the socket could be another user's: everybody may make a folder in
        the temporary one."""
        folder = self.socket.parent
        if folder == self.path:
            return
        with suppress(FileNotFoundError):
            found = folder.lstat()
            own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            if not own or found.st_mode & 0o077:
                raise ArcdError(f"{folder}: not a folder of this user alone")

    @property
    def token(self) -> Path:
        """What clients that connect by TCP must send."""
        return self.path / "token"

    @property
    def log(self) -> Path:
        """Output of the daemon."""
        return self.path / "daemon.log"

    @property
    def stacks(self) -> Path:
        """Stacks of a daemon in which no step completed."""
        return self.path / "stacks.log"

    @property
    def adapters(self) -> Path:
        """Folder of trained adapters whose task is not answered yet."""
        return self.path / "adapters"

    @property
    def compiled(self) -> Path:
        """Folder of what torch has compiled; may be deleted while arcd does not run."""
        return self.path / "compiled"

    def submission(self, job: int) -> Path:
        """A job's submission."""
        return self.job_folder(job) / "submission.json"

    @property
    def jobs(self) -> Path:
        """Folders of the jobs."""
        return self.path / "jobs"

    def job_folder(self, job: int) -> Path:
        """What is kept of a job beside the store."""
        return self.jobs / str(job)

    def snapshot(self, job: int) -> Path:
        """The cache of a job's state."""
        return self.job_folder(job) / "state.json"
