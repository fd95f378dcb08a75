"""The outline of a job: its history without grids, for pages about jobs of any size.

Most of a store is samples, and most of a sample is its grid. So the records are read as they lie in
the store, and of a sample or a verdict everything is skipped but what the history is made of. Knows
nothing of what is drawn.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

import msgspec

from arcd.arc.selection import Verdict, Vote
from arcd.jobs import events
from arcd.jobs.database import Database
from arcd.jobs.events import Record
from arcd.jobs.history import History
from arcd.jobs.json_reader import Reader

POINTS = 100_000
"""Points of all curves of losses together, about; with many tasks each has at least CURVE."""

CURVE = 16
"""Points that are kept of each curve in any case."""


class _Vote(msgspec.Struct):
    count: int


class _Verdict(msgspec.Struct):
    ranked: list[list[_Vote]]
    samples: int
    invalid: int
    adapter: int | None
    notes: tuple[str, ...] = ()


class _Answered(msgspec.Struct):
    task: str
    verdict: _Verdict


def history(database: Database, job: int) -> History:
    """The history of a job. Its `answers` have votes without grids, and `right` is empty."""
    found = History(job)
    for seq, at, owner, kind, body in _rows(database, job):
        match kind:
            case "Sampled":
                found.take_sample(at, body)
            case "Training":
                found.take_step(at, _load(kind, body))
            case "Answered":
                found.apply(Record(seq, at, owner, _answered(body)))
            case _:
                found.apply(Record(seq, at, owner, _load(kind, body)))
        if kind == "Submitted" and found.found is not None:
            found.points = max(CURVE, POINTS // max(1, len(found.found.tasks)))
    return found


def _rows(database: Database, job: int) -> Iterator[tuple[Any, ...]]:
    """The records of a job, with those of the daemon that it was given to and of later ones.

    They are as they are stored. In place of a sample there is the name of its task, from the table
    of candidates.
    """
    query = "SELECT seq, at, job, kind, body FROM events WHERE"
    return database.read(
        # Not one query with OR, for which SQLite would sort all of them.
        f"{query} job = :job AND kind != 'Sampled'"
        f" UNION ALL {query} job IS NULL AND seq >= :since"
        " UNION ALL SELECT e.seq, e.at, e.job, e.kind, c.task"
        " FROM candidates c JOIN events e ON e.seq = c.seq WHERE c.job = :job"
        " ORDER BY seq",
        {"job": job, "since": _since(database, job)},
    )


def _since(database: Database, job: int) -> int:
    """The number of the record with which the daemon began that a job was given to."""
    first = "SELECT min(seq) FROM events WHERE job = :job"
    ((seq,),) = database.read(
        f"SELECT coalesce(max(seq), ({first}), 0) FROM events"
        f" WHERE job IS NULL AND kind = 'DaemonStarted' AND seq < ({first})",
        {"job": job},
    )
    return int(seq)


_DECODERS = {kind.__name__: msgspec.json.Decoder(kind) for kind in get_args(events.Event)}


def _load(kind: str, body: str) -> Any:
    """The event of this kind, as `events.load` gives it, in a fifth of the time."""
    try:
        return _DECODERS[kind].decode(body)
    except msgspec.DecodeError:
        return events.load(kind, body)  # with a number that JSON does not have, as NaN


_answered_of = Reader(_Answered)


def _answered(body: str) -> events.Answered:
    """The event without the grids of its votes."""
    found = _answered_of(body)
    verdict = found.verdict
    ranked = tuple(tuple(_vote(vote.count) for vote in test) for test in verdict.ranked)
    return events.Answered(
        found.task,
        Verdict(
            found.task, ranked, verdict.samples, verdict.invalid, verdict.adapter, verdict.notes
        ),
    )


@cache
def _vote(count: int) -> Vote:
    return Vote((), count, 0.0)
