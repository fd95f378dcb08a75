"""Snapshots: the state of a job up to one of its records, in a file beside its submission.

With them a daemon with millions of records starts at once. They are a cache of the fold, never the
truth: where one is missing, cut off, of another arcd or of another store, the records are folded
from the first. Knows nothing of when a snapshot is made.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from arcd.errors import ArcdError
from arcd.jobs.events import Times
from arcd.jobs.state import Answer, Job, Phase, TaskState
from arcd.system import files

REDUCER = 1
"""To be raised whenever `State.apply` makes something else of the same records."""


@dataclass(frozen=True)
class Snapshot:
    """A job as it was after its record number `seq`."""

    form: str
    seq: int
    at: float
    """When that record was written: records of another store have other times."""
    job: Job


class Snapshots:
    """The snapshots of a home's jobs; `path_of` tells where a job's is kept."""

    def __init__(self, path_of: Callable[[int], Path]) -> None:
        self._path_of = path_of

    def read(self, job: int) -> Snapshot | None:
        """The snapshot of a job; None if there is none that this arcd can use."""
        try:
            text = self._path_of(job).read_bytes()
            found = msgspec.json.decode(text, type=Snapshot, dec_hook=_counter)
        except (OSError, ValueError):  # msgspec's errors are ValueErrors
            return None
        return found if found.form == _form() and found.job.id == job else None

    def write(self, seq: int, at: float, job: Job) -> None:
        """Keep the snapshot of a job; where the file system refuses, there is none."""
        path = self._path_of(job.id)
        text = msgspec.json.encode(Snapshot(_form(), seq, at, job)).decode()
        with suppress(ArcdError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.replace_text(path, text)

    def discard(self, job: int) -> None:
        """Delete the snapshot of a job, and its folder if nothing else is in it."""
        path = self._path_of(job)
        with suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def _counter(kind: type, value: dict[str, int]) -> Counter[Phase]:
    """The counts of a job, the only type in it that msgspec does not know."""
    return Counter({Phase(phase): count for phase, count in value.items()})


def _form() -> str:
    """What a snapshot consists of: it differs wherever one cannot be read as it was meant."""
    names = [f"{kind.__name__}.{field.name}" for kind in _KINDS for field in fields(kind)]
    return f"{REDUCER} {' '.join(names)}"


_KINDS = (Job, TaskState, Answer, Times)
