import math
import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from arcd.arc.grids import Grid
from arcd.arc.selection import (
    ATTEMPTS,
    CONTENDERS,
    Candidate,
    Likelihoods,
    Verdict,
    Vote,
    contenders,
    rank,
    verdict,
)
from arcd.arc.views import PLAIN_COLOURS, View

PLAIN = View(False, 0, PLAIN_COLOURS, (0,))
ONE: Grid = ((1,),)
TWO: Grid = ((2,),)
THREE: Grid = ((3,),)
NATS = st.floats(-100, 0)


def candidate(
    grid: Grid | None, logprob: float = -1.0, length: int = 10, test: int = 0
) -> Candidate:
    return Candidate("task", test, PLAIN, (0,), 0, None, grid, logprob, length)


def candidates() -> st.SearchStrategy[list[Candidate]]:
    """Few grids and few logprobs, so that ties are common."""
    return st.lists(
        st.builds(
            candidate,
            st.sampled_from([None, ONE, TWO, THREE, ((1, 1),), ((1,), (1,))]),
            st.sampled_from([-0.1, -0.2, -0.3, -1.0, -1.1, -10.0]),
            st.sampled_from([1, 3, 7]),
            st.integers(0, 1),
        ),
        max_size=20,
    )


def test_votes_are_counted_first_then_weighed_by_logprob() -> None:
    found = [
        candidate(ONE, -1.0),
        candidate(THREE, -0.01),
        candidate(TWO, -0.5),
        candidate(ONE, -0.2),
        candidate(TWO, -3.0),
    ]
    assert verdict("task", 1, found, None).attempts == ((ONE, TWO),)


def test_a_vote_has_the_count_and_the_mean_of_logprobs_per_token() -> None:
    (vote,) = rank([candidate(ONE, -1.0, 10), candidate(ONE, -1.0, 5)])
    assert vote.grid == ONE
    assert vote.count == 2
    assert math.isclose(vote.mean_logprob, -0.15)


def test_logprob_is_weighed_by_the_length_of_the_answer() -> None:
    long, short = candidate(ONE, -2.0, 100), candidate(TWO, -1.0, 10)
    assert [vote.grid for vote in rank([short, long])] == [ONE, TWO]


def test_a_tie_goes_to_the_smaller_grid() -> None:
    assert [vote.grid for vote in rank([candidate(TWO), candidate(ONE)])] == [ONE, TWO]


def test_the_rescored_come_first_in_the_order_of_votes_times_likelihood() -> None:
    found = [candidate(ONE), candidate(ONE), candidate(TWO), candidate(THREE, -0.1)]
    likelihoods = {(0, ONE): -9.0, (0, TWO): -3.0, (1, THREE): -1.0}
    ranked = verdict("task", 1, found, None, likelihoods=likelihoods).ranked
    assert [(vote.grid, vote.likelihood) for vote in ranked[0]] == [
        (TWO, -3.0),
        (ONE, -9.0),
        (THREE, None),
    ]


def test_twice_the_votes_are_worth_half_the_likelihood() -> None:
    found = [candidate(ONE), candidate(TWO), candidate(TWO)]
    for likelihood, attempts in ((-3.0, (TWO, ONE)), (-3.6, (TWO, ONE)), (-3.8, (ONE, TWO))):
        likelihoods = {(0, ONE): -3.0, (0, TWO): likelihood}
        assert verdict("task", 1, found, None, likelihoods=likelihoods).attempts == (attempts,)


def test_contenders_are_the_grids_with_the_most_votes_of_more_than_there_are_attempts() -> None:
    rows = [((i,),) for i in range(9)] + [((0, 1),)]
    found = [candidate(grid, test=1) for i, grid in enumerate(rows) for _ in range(i + 1)]
    assert contenders(found, 1) == rows[:1:-1]
    assert len(contenders(found, 1)) == CONTENDERS
    assert contenders(found, 0) == []
    assert contenders([candidate(ONE), candidate(TWO), candidate(None)], 0) == []


def test_contenders_are_of_the_adapter_where_it_answered_validly() -> None:
    base = [candidate(grid) for grid in (ONE, TWO, THREE)]
    taught = [replace(candidate(((i,),)), adapter=3) for i in range(4, 7)]
    assert contenders([*base, *taught], 0) == [((4,),), ((5,),), ((6,),)]
    assert contenders([*base, *taught[:1]], 0) == []


@given(candidates(), st.dictionaries(st.sampled_from([(0, ONE), (1, ONE), (0, TWO)]), NATS))
def test_what_a_verdict_knows_of_likelihoods_gives_the_same_verdict_again(
    found: list[Candidate], likelihoods: Likelihoods
) -> None:
    result = verdict("task", 2, found, None, likelihoods=likelihoods)
    assert result.likelihoods.items() <= likelihoods.items()
    assert verdict("task", 2, found, None, likelihoods=result.likelihoods) == result


def test_an_answer_of_no_tokens_does_not_divide_by_zero() -> None:
    assert candidate(None, 0.0, 0).mean_logprob == 0.0


@given(candidates(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(
    found: list[Candidate], rng: random.Random
) -> None:
    shuffled = rng.sample(found, len(found))
    assert verdict("task", 2, shuffled, 3) == verdict("task", 2, found, 3)


@given(candidates())
def test_every_valid_candidate_is_a_vote_for_its_own_test(found: list[Candidate]) -> None:
    result = verdict("task", 2, found, None)
    for test, votes in enumerate(result.ranked):
        valid = [c.grid for c in found if c.test == test and c.grid is not None]
        assert {vote.grid: vote.count for vote in votes} == {g: valid.count(g) for g in valid}
    assert result.samples == len(found)
    assert result.invalid == sum(c.grid is None for c in found)


@given(candidates())
def test_attempts_are_the_two_best_grids_which_differ(found: list[Candidate]) -> None:
    result = verdict("task", 2, found, None)
    for attempts, votes in zip(result.attempts, result.ranked, strict=True):
        assert attempts == tuple(vote.grid for vote in votes[:ATTEMPTS])
        assert len(set(attempts)) == len(attempts)


def test_a_test_without_a_valid_candidate_has_no_attempt() -> None:
    result = verdict("task", 2, [candidate(None), candidate(ONE, test=1)], 5, ("a note",))
    vote = Vote(ONE, 1, -0.1)
    assert result == Verdict("task", ((), (vote,)), 2, 1, 5, ("a note",))
    assert result.attempts == ((), (ONE,))
