"""Selection: from the candidates of a test to its two attempts.

A vote is a sample, drawn in one view. If there are more grids than attempts, those with the most
votes are rescored: their likelihood is measured in several views, as the ARChitects did (Kaggle's
ARC Prize, 2024), and the grid with the largest product of votes and likelihood wins. Without
likelihoods votes alone decide; among equals the mean logprob per token; among those the smaller
grid in the order of its cells. The result does not depend on the order of the candidates. Knows
nothing of who drew or rescored them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from arcd.arc.grids import Grid
from arcd.arc.views import View

ATTEMPTS = 2

CONTENDERS = 8
"""Most grids of a test that are rescored."""

Likelihoods = Mapping[tuple[int, Grid], float]
"""By test and grid the mean over views of the answer's log-likelihood, in nats."""

NO_LIKELIHOODS: Likelihoods = MappingProxyType({})


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
        """Nats per token; minus infinity where the model gave no number."""
        mean = self.logprob / max(1, self.length)
        return -math.inf if math.isnan(mean) else mean


@dataclass(frozen=True, slots=True)
class Vote:
    """A grid with the number of its candidates and the mean of their logprobs per token.

    `likelihood` is its log-likelihood, the mean over views, in nats; None if it was not rescored.
    """

    grid: Grid
    count: int
    mean_logprob: float
    likelihood: float | None = None


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

    @property
    def likelihoods(self) -> Likelihoods:
        """Those of the grids that were rescored."""
        return {
            (test, vote.grid): vote.likelihood
            for test, votes in enumerate(self.ranked)
            for vote in votes
            if vote.likelihood is not None
        }

    def right(self, truth: Sequence[Grid]) -> int:
        """How many of the tests, of which these are the true outputs, are solved."""
        return sum(grid in attempts for grid, attempts in zip(truth, self.attempts, strict=True))


def rank(
    candidates: Iterable[Candidate], likelihoods: Mapping[Grid, float] = MappingProxyType({})
) -> tuple[Vote, ...]:
    """The grids of one test, best first; those with a likelihood come before all others."""
    by_grid: dict[Grid, list[float]] = {}
    for candidate in candidates:
        if candidate.grid is not None:
            by_grid.setdefault(candidate.grid, []).append(candidate.mean_logprob)
    # Sorted before summing: a mean must not depend on the order of its terms.
    votes = (
        Vote(grid, len(of), sum(sorted(of)) / len(of), likelihoods.get(grid))
        for grid, of in by_grid.items()
    )
    return tuple(sorted(votes, key=_merit))


def _merit(vote: Vote) -> tuple[float, int, float, Grid]:
    """Least for the best."""
    product = -math.inf if vote.likelihood is None else vote.likelihood + math.log(vote.count)
    return -product, -vote.count, -vote.mean_logprob, vote.grid


def contenders(candidates: Iterable[Candidate], test: int) -> list[Grid]:
    """The grids of a test that are worth rescoring: none if all of them are attempts anyway."""
    votes = _ranked([c for c in candidates if c.test == test], {})
    return [vote.grid for vote in votes[:CONTENDERS]] if len(votes) > ATTEMPTS else []


def verdict(
    task: str,
    tests: int,
    candidates: Iterable[Candidate],
    adapter: int | None,
    notes: tuple[str, ...] = (),
    likelihoods: Likelihoods = NO_LIKELIHOODS,
) -> Verdict:
    """The verdict on a task of `tests` tests.

    Where an adapter has answered validly, the base's own votes do not count.
    """
    found = list(candidates)
    ranked = tuple(
        _ranked(
            [c for c in found if c.test == test],
            {grid: likelihood for (of, grid), likelihood in likelihoods.items() if of == test},
        )
        for test in range(tests)
    )
    invalid = sum(c.grid is None for c in found)
    return Verdict(task, ranked, len(found), invalid, adapter, notes)


def taught(candidates: Iterable[Candidate]) -> bool:
    """Whether an adapter has answered validly, so that the base's own votes do not count."""
    return any(c.adapter is not None and c.grid is not None for c in candidates)


def _ranked(candidates: Sequence[Candidate], likelihoods: Mapping[Grid, float]) -> tuple[Vote, ...]:
    taught = [c for c in candidates if c.adapter is not None]
    return rank(taught, likelihoods) or rank(candidates, likelihoods)
