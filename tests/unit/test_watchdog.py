import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.daemon.heartbeat import Activity, Beat
from arcd.daemon.watchdog import Limits, Watchdog

LIMITS = Limits()
IDLE = Activity(busy=False, steps=0)

lanes = st.builds(Activity, busy=st.booleans(), steps=st.integers(0, 5))
stages = st.sampled_from(["", "base model", "engine"])
beats = st.builds(Beat, ready=st.booleans(), engine=lanes, trainer=lanes, loading=stages)
# Whole milliseconds, so that sums are the same in whatever order they are taken.
waits = st.integers(0, 2_000_000).map(lambda milliseconds: milliseconds / 1024)
histories = st.lists(st.tuples(waits, beats), max_size=30)


History = list[tuple[float, Beat]]
"""Beats, each with the seconds before it."""


def beat(
    engine: Activity = IDLE, trainer: Activity = IDLE, ready: bool = True, loading: str = ""
) -> Beat:
    return Beat(ready, engine, trainer, loading=loading)


def told(history: History) -> tuple[Watchdog, float]:
    """A watchdog that has heard it all, and the time of the last beat."""
    watchdog, now = Watchdog(LIMITS), 1000.0
    watchdog.begin(now)
    for wait, heard in history:
        now += wait
        watchdog.hear(heard, now)
    return watchdog, now


def stepping(watchdog: Watchdog, now: float, gap: float, count: int) -> float:
    """The engine makes `count` steps, one every `gap` seconds; returns the time of the last."""
    for steps in range(count + 1):
        watchdog.hear(beat(Activity(True, steps)), now + steps * gap)
    return now + count * gap


def beating(watchdog: Watchdog, heard: Beat, start: float, end: float) -> list[str]:
    """The same beat every half floor from start to end; the reasons for a stall on the way."""
    now, reasons = start, []
    while now <= end:
        reasons.append(watchdog.stalled(now))
        watchdog.hear(heard, now)
        now += LIMITS.floor / 2
    reasons.append(watchdog.stalled(end))
    return [reason for reason in reasons if reason]


@given(histories, st.floats(0, LIMITS.floor, exclude_max=True))
def test_nothing_stalls_before_the_floor(history: History, wait: float) -> None:
    watchdog, now = told(history)
    watchdog.hear(beat(IDLE, IDLE), now)
    watchdog.hear(beat(Activity(True, 0), Activity(True, 0)), now)
    assert watchdog.stalled(now + wait) is None or now + wait == now + LIMITS.floor


@given(st.floats(0.001, 80), st.integers(1, 300))
def test_a_lane_that_becomes_ten_times_slower_is_let_alone(gap: float, count: int) -> None:
    watchdog, now = told([])
    now = stepping(watchdog, now, gap, count)
    assert beating(watchdog, beat(Activity(True, count)), now, now + 10 * gap) == []


@given(histories, st.sampled_from(["engine", "trainer"]))
def test_a_lane_that_stops_for_ever_is_stalled_at_the_ceiling_at_the_latest(
    history: History, lane: str
) -> None:
    watchdog, now = told(history)
    busy = Activity(True, 9)
    stuck = beat(engine=busy) if lane == "engine" else beat(trainer=busy)
    watchdog.hear(stuck, now)
    beating(watchdog, stuck, now, now + LIMITS.ceiling)
    reason = watchdog.stalled(now + LIMITS.ceiling)
    assert reason is not None
    assert f"no {lane} step for" in reason


@given(histories)
def test_silence_is_a_stall_at_the_ceiling_at_the_latest(history: History) -> None:
    watchdog, now = told(history)
    assert watchdog.stalled(now + LIMITS.ceiling)


@given(st.lists(st.tuples(st.floats(0, 59), st.integers(0, 9), st.integers(0, 9))))
def test_idle_lanes_never_stall(history: list[tuple[float, int, int]]) -> None:
    watchdog, now = told([])
    watchdog.hear(beat(), now)
    for wait, engine, trainer in history:
        now += wait
        assert watchdog.stalled(now) is None
        watchdog.hear(beat(Activity(False, engine), Activity(False, trainer)), now)


@given(histories, st.lists(st.floats(0, 2000)))
def test_a_stall_lasts_as_time_goes_on_and_begins_at_the_deadline(
    history: History, delays: list[float]
) -> None:
    watchdog, now = told(history)
    for delay in sorted(delays):
        stalled = watchdog.stalled(now + delay) is not None
        assert stalled == (now + delay >= watchdog.deadline())


@given(histories)
def test_the_deadline_is_the_first_time_of_a_stall(history: History) -> None:
    watchdog, _ = told(history)
    assert watchdog.stalled(watchdog.deadline())


@given(histories, st.integers(1, 5))
def test_a_new_life_starts_without_open_lanes(history: History, steps: int) -> None:
    watchdog, now = told(history)
    watchdog.begin(now)
    assert watchdog.deadline() == now + LIMITS.ceiling
    watchdog.hear(beat(Activity(False, steps)), now)
    assert watchdog.deadline() == now + LIMITS.floor


def test_a_new_life_keeps_the_learnt_gaps() -> None:
    watchdog, now = told([])
    now = stepping(watchdog, now, 30, 10)
    watchdog.begin(now)
    stuck = beat(Activity(True, 0))
    watchdog.hear(stuck, now)
    assert beating(watchdog, stuck, now, now + 599) == []
    assert watchdog.stalled(now + 600) == "no engine step for 600 s (limit 600 s)"


def test_the_time_between_two_lives_is_no_gap() -> None:
    watchdog, now = told([])
    now = stepping(watchdog, now, 1, 10)
    watchdog.begin(now + 800)
    now = stepping(watchdog, now + 800, 1, 3)
    assert beating(watchdog, beat(Activity(True, 3)), now, now + 59) == []
    assert watchdog.stalled(now + 60)


def test_before_its_first_step_a_lane_has_until_the_ceiling() -> None:
    watchdog, now = told([])
    first = beat(trainer=Activity(True, 0))
    watchdog.hear(first, now)
    assert beating(watchdog, first, now, now + 899) == []
    assert watchdog.stalled(now + 900) == "no trainer step for 900 s (limit 900 s)"


def test_the_clock_of_a_lane_starts_when_it_becomes_busy() -> None:
    watchdog, now = told([])
    now = stepping(watchdog, now, 1, 10)
    idle, busy = beat(Activity(False, 10)), beat(Activity(True, 10))
    assert beating(watchdog, idle, now, now + 500) == []
    watchdog.hear(busy, now + 500)
    assert beating(watchdog, busy, now + 500, now + 559) == []
    assert watchdog.stalled(now + 561) == "no engine step for 61 s (limit 60 s)"


def test_a_rare_outlier_is_not_the_usual_gap() -> None:
    watchdog, now = told([])
    now = stepping(watchdog, now, 1, 200)
    watchdog.hear(beat(Activity(True, 201)), now + 50)
    watchdog.hear(beat(Activity(True, 201)), now + 80)
    assert watchdog.stalled(now + 110) == "no engine step for 60 s (limit 60 s)"


def test_gaps_of_long_ago_are_forgotten() -> None:
    watchdog, now = told([])
    now = stepping(watchdog, now, 45, 10)
    now = stepping(watchdog, now, 0.5, LIMITS.window)
    stuck = beat(Activity(True, LIMITS.window))
    assert beating(watchdog, stuck, now, now + 59) == []
    assert watchdog.stalled(now + 60)


def test_a_ready_daemon_must_give_signs_of_life() -> None:
    watchdog, now = told([])
    watchdog.hear(beat(), now)
    assert watchdog.stalled(now + 59.9) is None
    assert watchdog.stalled(now + 60) == "no sign of life for 60 s (limit 60 s)"


@pytest.mark.parametrize("heard", [[], [(0.0, beat(Activity(True, 3), ready=False))]])
def test_before_it_is_ready_a_daemon_may_be_silent_up_to_the_ceiling(heard: History) -> None:
    watchdog, now = told(heard)
    assert watchdog.stalled(now + 899) is None
    assert watchdog.stalled(now + 900) == "no sign of life for 900 s (limit 900 s)"


def test_short_limits_are_told_in_tenths() -> None:
    watchdog = Watchdog(Limits(floor=0.5))
    watchdog.hear(beat(), 10.0)
    assert watchdog.stalled(10.75) == "no sign of life for 0.8 s (limit 0.5 s)"


def loading(*stages: str) -> list[Beat]:
    return [beat(ready=False, loading=stage) for stage in stages]


def test_a_daemon_that_beats_and_never_becomes_ready_is_stalled() -> None:
    watchdog, now = told([])
    (hanging,) = loading("engine")
    watchdog.hear(hanging, now + 10)
    assert beating(watchdog, hanging, now + 10, now + 10 + 1799) == []
    assert watchdog.stalled(now + 1810) == (
        "no progress in loading (engine) for 1800 s (limit 1800 s)"
    )
    watchdog.begin(now + 1811)
    assert watchdog.stalled(now + 1812) is None, "the next daemon has its own time"


def test_a_daemon_that_hangs_before_its_first_stage_is_stalled() -> None:
    watchdog, now = told([])
    (hanging,) = loading("")
    assert beating(watchdog, hanging, now, now + 1799) == []
    assert watchdog.stalled(now + 1800) == "no progress in loading for 1800 s (limit 1800 s)"


def test_a_slow_start_whose_stages_get_on_is_left_alone() -> None:
    watchdog, now = told([])
    for hanging in loading("torch", "base model", "vLLM", "engine"):
        watchdog.hear(hanging, now)
        assert beating(watchdog, hanging, now, now + 1700) == []
        now += 1700
    assert beating(watchdog, beat(), now, now + 9999) == [], "and ready, it may be idle for ever"


def test_a_user_who_wants_patience_gets_it_while_loading_too() -> None:
    watchdog = Watchdog(Limits(floor=7200, ceiling=7200))
    watchdog.begin(0.0)
    for now in range(0, 7200, 600):
        watchdog.hear(loading("engine")[0], now)
        assert watchdog.stalled(now + 599.0) is None


@given(st.lists(st.tuples(st.floats(0, 59), beats), max_size=30))
def test_a_hang_while_loading_is_noticed_whatever_was_before(
    history: list[tuple[float, Beat]],
) -> None:
    watchdog, now = told(history)
    watchdog.begin(now)
    (hanging,) = loading("engine")
    assert beating(watchdog, hanging, now, now + LIMITS.loading + LIMITS.floor)
