"""The daemon's log: what it prints, at most some MB of it, with as many from before beside it.

It is cut while the daemon writes to it. So it is copied to `.1` and emptied in place: the daemon,
and whatever runs in its process, goes on writing to the same file. A line that is written in
between is lost. Knows nothing of what is in it.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LOG_BYTES = 10_000_000
"""A log above this size is put aside."""

TAIL_BYTES = 4096
"""Bytes at its end in which its last line is looked for."""


class DaemonLog:
    """The log of a home."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._before = path.with_name(f"{path.name}.1")

    def open(self) -> BinaryIO:
        """The file, to be appended to."""
        self.cut()
        return self.path.open("ab")

    def cut(self) -> None:
        """Put the log aside if it is too large. A file system that refuses is left alone."""
        with suppress(OSError):
            if self.path.stat().st_size <= LOG_BYTES:
                return
            with suppress(OSError):  # where the disk is full, at least this file is emptied
                shutil.copyfile(self.path, self._before)
            os.truncate(self.path, 0)

    def last_line(self) -> str:
        """The last line with something in it, which may have been put aside already."""
        lines = [*_last_lines(self._before), *_last_lines(self.path)]
        return next((line.strip() for line in reversed(lines) if line.strip()), "(it is empty)")


def _last_lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(-min(TAIL_BYTES, path.stat().st_size), os.SEEK_END)
        return file.read().decode(errors="replace").split("\n")
