"""Sheets: the tasks of a job one by one, each with its answer, all grids as texts.

A sheet is made from the stored texts without making a grid of tuples, which would take ten times
the time and the memory. Reads only. Knows nothing of what becomes of a sheet.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

import msgspec
from msgspec import Raw

from arcd.arc import metrics
from arcd.arc.grids import GridText
from arcd.arc.metrics import Metrics
from arcd.arc.selection import ATTEMPTS
from arcd.jobs.database import Database
from arcd.jobs.json_reader import Reader

Drawn = Counter[GridText | None]
"""How often each grid was drawn; None stands for what is no grid."""


@dataclass(frozen=True, slots=True)
class SheetVote:
    """A `Vote` with its grid as a text."""

    grid: GridText
    count: int
    mean_logprob: float
    likelihood: float | None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A task of a job; `ranked`, `attempts` and `drawn` are by test."""

    task: str
    train: Sequence[tuple[GridText, GridText]]
    tests: Sequence[GridText]
    truth: Sequence[GridText] | None
    answered: bool
    """Whether it has a verdict."""
    ranked: Sequence[Sequence[SheetVote]]
    """Of its last verdict; nothing for each test before it has one."""
    samples: int
    """That its last verdict is from."""
    invalid: int
    attempts: Sequence[Sequence[GridText]]
    """As in a submission: blank where there is none."""
    drawn: Sequence[Drawn]
    """All its samples."""

    @property
    def right(self) -> float | None:
        """The share of its tests that its verdict has solved; None where that is not known."""
        if self.truth is None or not self.answered:
            return None
        solved = [
            true in [vote.grid for vote in votes[:ATTEMPTS]]
            for true, votes in zip(self.truth, self.ranked, strict=True)
        ]
        return sum(solved) / len(solved)

    def metrics(self) -> Metrics | None:
        """Those of the task; None where its solution is not known."""
        if self.truth is None:
            return None
        return metrics.of_task(self.truth, self.attempts, self.drawn)


def sheets(database: Database, job: int) -> Iterator[Sheet]:
    """The tasks of a job in the order of its file."""
    counts = _counts(database, job)
    # The order first, alone: sorting the rows themselves would sort their texts, too.
    order = database.read("SELECT rowid FROM tasks WHERE job = ? ORDER BY position", (job,))
    for rowid in [rowid for (rowid,) in order]:
        (row,) = database.read(
            "SELECT t.task, t.body, t.solution, t.attempts, e.body FROM tasks t"
            " LEFT JOIN events e ON e.seq = t.answered WHERE t.rowid = ?",
            (rowid,),
        )
        yield _sheet(database, job, row, counts)


class _Pair(msgspec.Struct):
    input: Raw
    output: Raw


class _Test(msgspec.Struct):
    input: Raw


class _Body(msgspec.Struct):
    train: list[_Pair]
    test: list[_Test]


class _Vote(msgspec.Struct):
    grid: Raw
    count: int
    mean_logprob: float | str | None
    likelihood: float | str | None = None


class _Verdict(msgspec.Struct):
    ranked: list[list[_Vote]]
    samples: int
    invalid: int


class _Answered(msgspec.Struct):
    verdict: _Verdict


class _Candidate(msgspec.Struct):
    test: int
    grid: Raw


class _Sampled(msgspec.Struct):
    candidate: _Candidate


_body_of = Reader(_Body)
_solution_of = Reader(list[Raw])
_attempts_of = Reader(list[dict[str, Raw]])
_answered_of = Reader(_Answered)
_sampled_of = Reader(_Sampled)

_Row = tuple[str, str, str | None, str, str | None]


def _sheet(database: Database, job: int, row: _Row, counts: Mapping[tuple[str, int], int]) -> Sheet:
    task, body, solution, attempts, answered = row
    found = _body_of(body)
    verdict = _answered_of(answered).verdict if answered else _Verdict([[]] * len(found.test), 0, 0)
    ranked = [
        [
            SheetVote(
                _text(v.grid),
                v.count,
                nan if v.mean_logprob is None else float(v.mean_logprob),
                None if v.likelihood is None else float(v.likelihood),
            )
            for v in test
        ]
        for test in verdict.ranked
    ]
    drawn = [Counter[GridText | None]({v.grid: v.count for v in test}) for test in ranked]
    for test, each in enumerate(drawn):
        each[None] = counts.get((task, test), 0) - each.total()
    if sum(each[None] for each in drawn) != verdict.invalid or any(
        each[None] < 0 for each in drawn
    ):
        drawn = _drawn(database, job, task, len(found.test))
    return Sheet(
        task,
        [(_text(pair.input), _text(pair.output)) for pair in found.train],
        [_text(test.input) for test in found.test],
        [_text(true) for true in _solution_of(solution)] if solution else None,
        answered is not None,
        ranked,
        verdict.samples,
        verdict.invalid,
        [[_text(grid) for grid in test.values()] for test in _attempts_of(attempts)],
        drawn,
    )


def _counts(database: Database, job: int) -> dict[tuple[str, int], int]:
    """The number of samples by task and test."""
    query = "SELECT task, test, count(*) FROM candidates WHERE job = ? GROUP BY task, test"
    return {(task, test): number for task, test, number in database.read(query, (job,))}


def _drawn(database: Database, job: int, task: str, tests: int) -> list[Drawn]:
    """The samples of a task whose verdict does not name them all, as those of the base beside an
    adapter's."""
    found: defaultdict[int, Drawn] = defaultdict(Counter)
    for (body,) in database.read(
        "SELECT e.body FROM candidates c JOIN events e ON e.seq = c.seq"
        " WHERE c.job = ? AND c.task = ?",
        (job, task),
    ):
        candidate = _sampled_of(body).candidate
        found[candidate.test][_text(candidate.grid) or None] += 1
    return [found[test] for test in range(tests)]


_ENDS = bytes.maketrans(b"]", b"/")


def _text(grid: Raw) -> GridText:
    """The text of a grid in JSON, [[0, 1], [2, 3]]; empty for null."""
    # Rows end with a bracket, the last one with two; everything else but digits goes.
    return bytes(grid).translate(_ENDS, b" \n,[nul")[:-2].decode()
