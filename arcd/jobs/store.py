"""The store: one SQLite file under the home folder, in which the events are the truth.

    journal    the events, and the state as their fold
    jobs       what each job is and what came of it, looked up by number
    facts      what daemons keep from one life to the next

One process writes, any number read. Knows nothing of who asks.
"""

import time
from collections.abc import Callable
from pathlib import Path

from arcd.jobs.daemon_facts import DaemonFacts
from arcd.jobs.database import Database, Mode
from arcd.jobs.job_table import JobTable
from arcd.jobs.journal import Journal


def path_in(home: Path) -> Path:
    """Where a home keeps its store."""
    return home / "arcd.db"


class Store:
    """An open store. Raises StoreFailed, naming the file, for every error of SQLite or system."""

    def __init__(
        self, home: Path, mode: Mode = "write", *, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the store of `home`; for writing it is made if it is not there."""
        self.database = Database(path_in(home), mode)
        self.journal = Journal(self.database, clock)
        self.jobs = JobTable(self.database)
        self.facts = DaemonFacts(self.database)

    @property
    def path(self) -> Path:
        """The file."""
        return self.database.path

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        self.database.close()
