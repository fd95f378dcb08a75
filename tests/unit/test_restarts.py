"""When another daemon is started after one has ended: later and later, and not for ever."""

import math

from hypothesis import given
from hypothesis import strategies as st

from arcd.daemon.heartbeat import Activity, Beat, Failure
from arcd.daemon.restarts import (
    CALM_S,
    LONGEST_PAUSE_S,
    MOST_FRUITLESS,
    RELEASE_S,
    Life,
    Restarts,
)

IDLE = Activity(False, 0)


def beat(engine: Activity = IDLE, trainer: Activity = IDLE, ready: bool = True) -> Beat:
    return Beat(ready, engine, trainer)


def life(*beats: Beat, every: float = 0.5) -> Life:
    """With these beats, the first at 1000 seconds."""
    found = Life()
    for i, each in enumerate(beats):
        found.hear(each, 1000.0 + i * every)
    return found


UNREADY = life(beat(ready=False))
FRUITLESS = life(beat())
FRUITFUL = life(beat(), beat(trainer=Activity(True, 1)))


def after(*lives: Life) -> Restarts:
    restarts = Restarts()
    for each in lives:
        restarts.count(each)
    return restarts


def test_a_life_with_a_step_was_fruitful() -> None:
    assert life(beat(), beat(engine=Activity(True, 1))).fruitful
    assert FRUITFUL.fruitful
    assert not FRUITLESS.fruitful
    assert not life().fruitful


def test_a_step_before_the_first_beat_that_arrives_counts() -> None:
    """Beats are dropped while nobody reads them."""
    assert life(beat(ready=False), beat(trainer=Activity(True, 1))).fruitful


def test_a_daemon_that_hangs_with_work_is_not_fruitful_however_long_it_lives() -> None:
    hanging = beat(engine=Activity(True, 0))
    assert not life(beat(), *[hanging] * 5, every=CALM_S).fruitful


def test_a_daemon_without_work_has_proved_itself_after_a_while() -> None:
    assert life(beat(), beat(), every=CALM_S).fruitful
    assert not life(beat(), beat(), every=CALM_S - 1).fruitful


def test_the_first_daemons_are_started_at_once_and_others_later_and_later() -> None:
    pauses = [after(*[FRUITLESS] * n).pause for n in range(MOST_FRUITLESS)]
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 30, 30, 30]


def test_whoever_gets_something_done_begins_anew() -> None:
    restarts = after(*[FRUITLESS] * (MOST_FRUITLESS - 1), FRUITFUL)
    assert (restarts.pause, restarts.hopeless) == (0, None)


def test_three_that_were_never_ready_are_enough() -> None:
    assert after(UNREADY, UNREADY).hopeless is None
    assert after(UNREADY, UNREADY, FRUITLESS, UNREADY).hopeless is None
    found = after(FRUITLESS, UNREADY, UNREADY, UNREADY)
    assert found.hopeless == "the daemon ended 3 times before it was ready"


def test_a_poisoned_home_is_given_up() -> None:
    assert after(*[FRUITLESS] * (MOST_FRUITLESS - 1)).hopeless is None
    found = after(*[FRUITLESS] * MOST_FRUITLESS)
    assert found.hopeless == "the daemon ended 10 times in a row and got nothing done"


@given(st.lists(st.sampled_from([UNREADY, FRUITLESS, FRUITFUL]), max_size=40))
def test_a_pause_is_short_and_only_the_last_lives_count(lives: list[Life]) -> None:
    restarts = after(*lives)
    assert 0 <= restarts.pause <= LONGEST_PAUSE_S
    last = [each.fruitful for each in reversed(lives)]
    row = last.index(True) if True in last else len(last)
    assert (row >= MOST_FRUITLESS) <= (restarts.hopeless is not None)
    assert not math.isnan(restarts.pause)


FULL = Failure("out of memory", 1, passing=True)


def test_a_failure_is_final_unless_a_dead_process_may_be_the_reason() -> None:
    assert not after().may_pass(FULL), "nobody has died"
    assert after(FRUITFUL).may_pass(FULL)
    assert not after(FRUITFUL).may_pass(Failure("no such base", 2))


def test_a_second_try_comes_after_a_while_and_there_is_no_third() -> None:
    restarts = after(FRUITFUL)
    restarts.count(UNREADY, FULL)
    assert (restarts.pause, restarts.hopeless) == (RELEASE_S, None)
    assert not restarts.may_pass(FULL)
    restarts.count(FRUITFUL)
    assert restarts.may_pass(FULL), "after the next death"
    assert restarts.pause == 0


def test_tasks_can_be_in_flight_only_where_a_daemon_was_ready() -> None:
    assert not after(UNREADY, UNREADY).any_ready
    assert after(UNREADY, FRUITLESS, UNREADY).any_ready
