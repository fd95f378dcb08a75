"""The home folder: where everything that arcd keeps has its place. Paths only, nothing is opened.

arcd.db             the store
lock                who has the home (processes.py)
socket              where the daemon listens, unless this path is too long for a socket
token               for clients that come by TCP
daemon.log          what the daemon printed; daemon.log.1 is what it printed before
stacks.log          all stacks of a daemon that had stalled
adapters/           trained adapters whose task is not answered yet
jobs/N/             each job's submission.json
"""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import platformdirs

LONGEST_ADDRESS = 100
"""Bytes of a Unix socket's path; systems allow 104 (macOS) to 108 (Linux), the end included."""


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder."""

    path: Path

    @classmethod
    def at(cls, given: Path | None) -> "Home":
        """As given, else ARCD_HOME, else the user's data folder."""
        chosen = given or Path(os.environ.get("ARCD_HOME") or platformdirs.user_data_dir("arcd"))
        return cls(chosen.absolute())

    @property
    def socket(self) -> Path:
        """Where the daemon listens: in the home, or where its path is short enough."""
        inside = self.path / "socket"
        if len(os.fsencode(inside)) <= LONGEST_ADDRESS:
            return inside
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"arcd-{os.getuid()}-{name}" / "socket"

    @property
    def token(self) -> Path:
        return self.path / "token"

    @property
    def log(self) -> Path:
        return self.path / "daemon.log"

    @property
    def stacks(self) -> Path:
        return self.path / "stacks.log"

    @property
    def adapters(self) -> Path:
        return self.path / "adapters"

    def submission(self, job: int) -> Path:
        """A job's submission."""
        return self.path / "jobs" / str(job) / "submission.json"
