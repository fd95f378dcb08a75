"""Selection: from the candidates of a test to its two attempts.

The grid with the most votes wins; among equals the one whose votes have the higher mean of logprob
per token; among those the smaller grid in the order of its cells. The result does not depend on
the order of the candidates. Knows nothing of who made them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from arcd.grids import Grid
from arcd.views import View

ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Candidate:
    """One sample carried back from its view; `grid` is None where the answer was not a grid.

    `logprob` is the sum over its `length` tokens, in nats.
    """

    task: str
    test: int
    view: View
    shown: tuple[int, ...]
    sample: int
    adapter: int | None
    grid: Grid | None
    logprob: float
    length: int

    @property
    def mean_logprob(self) -> float:
        """Nats per token."""
        return self.logprob / max(1, self.length)


@dataclass(frozen=True, slots=True)
class Vote:
    """A grid with the number of its candidates and the mean of their logprobs per token."""

    grid: Grid
    count: int
    mean_logprob: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a task is answered with: for each test the ranked grids, and how it came about.

    `adapter` is None where the base answered; `notes` say what went other than planned.
    """

    task: str
    ranked: tuple[tuple[Vote, ...], ...]
    samples: int
    invalid: int
    adapter: int | None
    notes: tuple[str, ...] = ()

    @property
    def attempts(self) -> tuple[tuple[Grid, ...], ...]:
        """For each test the attempts there are: at most two, none where nothing was valid."""
        return tuple(tuple(vote.grid for vote in test[:ATTEMPTS]) for test in self.ranked)

    def right(self, truth: Sequence[Grid]) -> int:
        """How many of the tests, of which these are the true outputs, are solved."""
        return sum(grid in attempts for grid, attempts in zip(truth, self.attempts, strict=True))


def rank(candidates: Iterable[Candidate]) -> tuple[Vote, ...]:
    """The grids among the candidates of one test, best first."""
    by_grid: dict[Grid, list[float]] = {}
    for candidate in candidates:
        if candidate.grid is not None:
            by_grid.setdefault(candidate.grid, []).append(candidate.mean_logprob)
    # Sorted before summing: a mean must not depend on the order of its terms.
    votes = (Vote(g, len(s), sum(sorted(s)) / len(s)) for g, s in by_grid.items())
    return tuple(sorted(votes, key=lambda vote: (-vote.count, -vote.mean_logprob, vote.grid)))


def verdict(
    task: str,
    tests: int,
    candidates: Iterable[Candidate],
    adapter: int | None,
    notes: tuple[str, ...] = (),
) -> Verdict:
    """The verdict on a task of `tests` tests.

    Where an adapter has answered validly, the base's own votes do not count.
    """
    found = list(candidates)
    ranked = tuple(_ranked([c for c in found if c.test == test]) for test in range(tests))
    invalid = sum(c.grid is None for c in found)
    return Verdict(task, ranked, len(found), invalid, adapter, notes)


def _ranked(candidates: Sequence[Candidate]) -> tuple[Vote, ...]:
    taught = [c for c in candidates if c.adapter is not None]
    return rank(taught) or rank(candidates)
