"""The flow shop: its arithmetic, on paper and in its bounds."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.jobs.events import Times
from arcd.scheduling.flow_shop import FlowShop


def seconds() -> st.SearchStrategy[float]:
    return st.integers(0, 20).map(float)


def needs() -> st.SearchStrategy[list[Times]]:
    return st.lists(st.builds(Times, seconds(), seconds()), max_size=20)


def shops() -> st.SearchStrategy[FlowShop]:
    def shop(trainings: int, waiting: int) -> FlowShop:
        return FlowShop(trainings, trainings + waiting)

    return st.builds(shop, st.integers(1, 5), st.integers(0, 4))


PAIRS = [Times(4, 3), Times(2, 2), Times(6, 5), Times(1, 1)]


@pytest.mark.parametrize(
    ("shop", "answered"),
    [
        # Trained at 4, 6, 12, 13.
        (FlowShop(1), [7, 9, 17, 18]),
        # Trained at 4, 2, 8, 5.
        (FlowShop(2), [7, 4, 13, 8]),
        # All begin at once: trained at 4, 2, 6, 1.
        (FlowShop(9), [7, 4, 12, 2]),
        # Each begins when the one before is answered.
        (FlowShop(1, 1), [7, 11, 22, 24]),
        # The third begins at 4, when the second is answered, and the fourth at 7.
        (FlowShop(2, 2), [7, 4, 15, 9]),
    ],
)
def test_each_task_is_answered_when_trainer_and_engine_have_come_to_it(
    shop: FlowShop, answered: list[float]
) -> None:
    assert shop.answered(PAIRS) == answered
    assert shop.makespan(PAIRS) == max(answered)


def test_without_tasks_it_is_over_at_once() -> None:
    assert FlowShop(3, 5).makespan([]) == 0


def test_a_task_without_training_waits_for_no_other_training() -> None:
    assert FlowShop(1).answered([Times(9, 1), Times(0, 2)]) == [10, 2]


@given(shops(), needs())
def test_it_takes_no_less_than_each_stage_and_no_more_than_all_one_after_the_other(
    shop: FlowShop, times: list[Times]
) -> None:
    span = shop.makespan(times)
    train, infer = sum(each.train for each in times), sum(each.infer for each in times)
    longest = max((each.total for each in times), default=0)
    assert max(train / shop.trainings, infer, longest) <= span <= train + infer


@given(shops(), needs())
def test_no_task_is_answered_before_its_own_time_and_the_engine_has_one_at_a_time(
    shop: FlowShop, times: list[Times]
) -> None:
    answered = shop.answered(times)
    assert all(at >= each.total for at, each in zip(answered, times, strict=True))
    ends = sorted(zip(answered, times, strict=True), key=lambda pair: (pair[0], -pair[1].infer))
    for (before, _), (after, each) in pairwise(ends):
        assert after - each.infer >= before


@given(st.integers(1, 5), needs())
def test_a_limit_that_is_never_reached_changes_nothing(trainings: int, times: list[Times]) -> None:
    free = FlowShop(trainings, sys.maxsize).answered(times)
    assert FlowShop(trainings, max(1, len(times))).answered(times) == free
