"""The owners of files: of all jobs that name a file for their submission, the one asked for last.

No other job writes it: a finished submission is not overwritten by an older job that goes on. Knows
nothing of how files are written.
"""

import os
from collections.abc import Iterable
from pathlib import Path


class Owners:
    """By file, whatever the path it is named by, the job that owns it."""

    def __init__(self) -> None:
        self._jobs: dict[str, int] = {}

    def take(self, job: int, paths: Iterable[Path]) -> None:
        """From now on these files are the job's, because it was asked for just now."""
        self._jobs |= {_resolved(path): job for path in paths}

    def of(self, path: Path) -> int | None:
        """The job that owns a file."""
        return self._jobs.get(_resolved(path))


def _resolved(path: Path) -> str:
    """Where a path leads; of one that no system takes, which an old store may have, itself."""
    try:
        return os.path.realpath(path)
    except (OSError, ValueError):
        return str(path)
