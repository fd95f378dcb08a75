"""What a budget leaves for each task, and how long sampling may take: pure arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.config import resolve
from arcd.errors import BadConfig
from arcd.jobs.events import Times
from arcd.scheduling.budget import LEAST_ALLOTMENT, Pace, allot, cheap, seconds

CONFIG = resolve(settings=["train.steps=100", "sample.samples=40"])

all_times = st.builds(Times, st.floats(0.01, 1e4), st.floats(0.01, 1e4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("4m", 240), ("11h30m", 41400), ("45", 45), ("1h0m5s", 3605), ("0.5m", 30)],
)
def test_durations_are_read_as_people_write_them(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "m", "4x", "4 m", "-4m", "4m-", "h4", "1e3"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(BadConfig, match="is not a duration"):
        seconds(text)


@given(st.floats(-100, 1e6), all_times)
def test_a_share_is_never_more_than_a_full_round_nor_less_than_the_least(
    left: float, waiting: Times
) -> None:
    found = allot(left, waiting, CONFIG)
    assert LEAST_ALLOTMENT * 100 <= found.steps <= 100
    assert LEAST_ALLOTMENT * 40 <= found.samples <= 40


@given(st.floats(1, 1e4), st.floats(1, 1e4), all_times)
def test_more_time_never_means_less_and_more_tasks_never_more(
    left: float, extra: float, waiting: Times
) -> None:
    now = allot(left, waiting, CONFIG)
    assert allot(left + extra, waiting, CONFIG).steps >= now.steps
    more = Times(waiting.train + extra, waiting.infer + extra)
    assert allot(left, more, CONFIG).steps <= now.steps


@given(all_times)
def test_with_time_for_all_each_gets_all(waiting: Times) -> None:
    assert allot(2 * waiting.total, waiting, CONFIG).of(CONFIG) == CONFIG


def test_a_cheap_round_trains_nothing() -> None:
    assert (cheap(CONFIG).steps, cheap(CONFIG).samples) == (0, 2)


def measured(ratios: list[float]) -> Pace:
    """A pace at which each task was alone in the engine for half of its time."""
    pace = Pace()
    for ratio in ratios:
        pace.sampled(10.0, 20.0, engine=5.0 * ratio, wall=10.0 * ratio)
    return pace


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=50))
def test_the_pace_is_not_led_astray_by_a_straggler(ratios: list[float]) -> None:
    pace = measured(ratios)
    middle = sorted(ratios[-32:])
    low, high = middle[(len(middle) - 1) // 2], middle[len(middle) // 2]
    assert 0.999 * low <= pace.of_task(Times(1.0, 1.0)).infer <= 1.001 * high
    assert 0.499 * low <= pace.of_work(Times(1.0, 1.0)).infer <= 0.501 * high
    assert pace.of_task(Times(1.0, 1.0)).train == pace.of_work(Times(1.0, 1.0)).train == 1.0


@given(st.lists(st.floats(0.1, 100), min_size=5, max_size=40), st.floats(0.1, 1e4))
def test_the_timeout_outlasts_what_was_seen_and_moves_with_what_is_expected(
    ratios: list[float], expected: float
) -> None:
    pace = measured(ratios)
    timeout = pace.timeout(expected)
    middle = sorted(ratios[-32:])[len(ratios[-32:]) // 2]
    assert timeout > middle / 2 * expected
    assert pace.timeout(2 * expected) - 10 == pytest.approx(2 * (timeout - 10))


def test_nobody_is_called_slow_before_the_pace_is_known() -> None:
    assert measured([1.0] * 4).timeout(1) == float("inf")
