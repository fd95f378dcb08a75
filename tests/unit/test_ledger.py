import math
import threading

import pytest

from arcd.system.ledger import RESOURCES, Account, Ledger


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(clock)


def test_a_ledger_counts_from_its_making(ledger: Ledger, clock: Clock) -> None:
    clock.sleep(5)
    account = ledger.account()
    assert account.wall == 5
    assert account.outside_steps == 1
    assert [account.idle(resource) for resource in RESOURCES] == [5, 5, 5]


def test_time_is_accounted_by_resource_and_kind(ledger: Ledger, clock: Clock) -> None:
    for seconds in (1, 2):
        with ledger.span("trainer", "step"):
            clock.sleep(seconds)
    with ledger.span("host", "build"):
        clock.sleep(4)
    account = ledger.account()
    assert account.seconds == {"trainer": {"step": 3}, "engine": {}, "host": {"build": 4}}
    assert account.idle("trainer") == 4
    assert account.idle("host") == 3


def test_the_overlap_of_two_resources_is_in_steps_once(ledger: Ledger, clock: Clock) -> None:
    with ledger.span("trainer", "step"):
        clock.sleep(2)
        with ledger.span("engine", "step"):
            clock.sleep(3)
    clock.sleep(5)
    account = ledger.account()
    assert account.seconds["trainer"]["step"] == 5
    assert account.seconds["engine"]["step"] == 3
    assert account.in_steps == 5
    assert account.outside_steps == 0.5


def test_steps_that_take_turns_in_overlapping_are_one_stretch(ledger: Ledger, clock: Clock) -> None:
    trainer, engine = ledger.span("trainer", "step"), ledger.span("engine", "step")
    with trainer:
        clock.sleep(1)
        engine.__enter__()
        clock.sleep(1)
    clock.sleep(1)
    engine.__exit__(None, None, None)
    account = ledger.account()
    assert account.in_steps == account.wall == 3
    assert account.outside_steps == 0


def test_other_work_is_outside_steps_unless_a_step_runs_beside_it(
    ledger: Ledger, clock: Clock
) -> None:
    with ledger.span("engine", "hand-over"):
        clock.sleep(1)
    with ledger.span("trainer", "step"), ledger.span("host", "parse"):
        clock.sleep(3)
    assert ledger.account().outside_steps == 0.25


def test_hand_over_is_told_apart(ledger: Ledger, clock: Clock) -> None:
    with ledger.span("host", "load"):
        clock.sleep(6)
    with ledger.span("trainer", "hand-over"):
        clock.sleep(1)
    with ledger.span("engine", "hand-over"):
        clock.sleep(2)
    with ledger.span("engine", "step"):
        clock.sleep(7)
    account = ledger.account()
    assert (account.hand_over, account.hand_over_share) == (3, 0.3)
    value = account.to_json()
    assert (value["hand_over"], value["hand_over_share"]) == (3, 0.3)
    assert Account.from_json(value) == account


def test_without_any_time_nothing_was_handed_over(ledger: Ledger) -> None:
    assert ledger.account().hand_over_share == 0


def test_start_up_is_kept_apart(ledger: Ledger, clock: Clock) -> None:
    with ledger.span("host", "load"):
        clock.sleep(6)
    with ledger.span("engine", "step"):
        clock.sleep(3)
    clock.sleep(1)
    account = ledger.account()
    assert (account.wall, account.loading, account.solving) == (10, 6, 4)
    assert account.outside_steps == 0.25
    assert account.idle("engine") == 1
    assert account.idle("host") == 4


def test_a_span_that_fails_is_accounted_all_the_same(ledger: Ledger, clock: Clock) -> None:
    def fail() -> None:
        with ledger.span("trainer", "step"):
            clock.sleep(2)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    with ledger.span("trainer", "step"):
        clock.sleep(1)
    assert ledger.account().in_steps == 3


def test_an_open_span_is_not_in_the_account_yet(ledger: Ledger, clock: Clock) -> None:
    with ledger.span("trainer", "step"):
        clock.sleep(2)
        assert ledger.account().seconds["trainer"] == {}
    assert ledger.account().seconds["trainer"] == {"step": 2}


def test_an_account_does_not_change_after_it_is_given(ledger: Ledger, clock: Clock) -> None:
    account = ledger.account()
    with ledger.span("trainer", "step"):
        clock.sleep(2)
    assert account.wall == 0
    assert account.outside_steps == 0
    assert account.seconds["trainer"] == {}


def test_the_json_of_an_account_adds_up(ledger: Ledger, clock: Clock) -> None:
    with ledger.span("host", "load"):
        clock.sleep(1)
    with ledger.span("engine", "step"):
        clock.sleep(3)
    clock.sleep(1)
    value = ledger.account().to_json()
    assert value["wall"] == 5
    assert value["solving"] == 4
    assert value["outside_steps"] == 0.25
    assert value["lanes"] == {
        "trainer": {"idle": 4},
        "engine": {"step": 3, "idle": 1},
        "host": {"load": 1, "idle": 4},
    }


def test_many_threads_lose_nothing(ledger: Ledger, clock: Clock) -> None:
    def work() -> None:
        for _ in range(500):
            with ledger.span("trainer", "step"), ledger.span("engine", "parse"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The clock stands still; a step left open would count from here on.
    with ledger.span("host", "record"):
        clock.sleep(7)
    assert math.isclose(ledger.account().in_steps, 0)


def test_the_stages_of_a_start_are_kept_in_their_order(ledger: Ledger, clock: Clock) -> None:
    ledger.add_stage("daemon", 0.5)
    with ledger.stage("torch"):
        clock.sleep(2)
    account = ledger.account()
    assert list(account.stages.items()) == [("daemon", 0.5), ("torch", 2)]
    assert Account.from_json(account.to_json()) == account
    told = account.to_json()
    del told["stages"]  # as an earlier daemon has stored it
    assert Account.from_json(told).stages == {}


def test_the_stages_under_way_are_told(ledger: Ledger) -> None:
    assert ledger.stages_open == ""
    with ledger.stage("base model"):
        with ledger.stage("engine"):
            assert ledger.stages_open == "base model, engine"
        assert ledger.stages_open == "base model"
    with pytest.raises(KeyError), ledger.stage("engine"):
        raise KeyError
    assert ledger.stages_open == ""
