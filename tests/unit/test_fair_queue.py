"""The queue: Johnson's order, shares by priority, and nothing lost or given twice."""

from collections import Counter
from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arcd.jobs.events import Times
from arcd.scheduling.fair_queue import FairQueue, Item, Order, makespan, ordered


def seconds() -> st.SearchStrategy[float]:
    return st.integers(0, 20).map(float)


def items(job: int = 1, max_size: int = 6) -> st.SearchStrategy[list[Item]]:
    return st.lists(st.builds(Times, seconds(), seconds()), max_size=max_size).map(
        lambda found: [Item(job, f"t{i}", each) for i, each in enumerate(found)]
    )


def plain(job: int, tasks: int, each: float = 1.0) -> list[Item]:
    """Tasks that all take the same time."""
    return [Item(job, f"t{i}", Times(each / 2, each / 2)) for i in range(tasks)]


def given_out(
    queue: FairQueue, tasks: int, runnable: Callable[[int], bool] = lambda job: True
) -> list[Item]:
    """The next so many tasks, taken."""
    found = []
    for _ in range(tasks):
        item = queue.next(runnable)
        assert item is not None
        queue.take(item, item.times.total)
        found.append(item)
    return found


def jobs(found: list[Item]) -> str:
    return "".join(str(item.job) for item in found)


# Orders.


def makespan_of(found: list[Item]) -> float:
    return makespan([item.times for item in found])


@settings(max_examples=60)
@given(items())
def test_no_order_is_shorter_than_johnsons(found: list[Item]) -> None:
    best = min(makespan_of(list(order)) for order in permutations(found))
    assert makespan_of(ordered(found, "johnson")) == best


@given(items(max_size=30))
def test_no_schedule_is_shorter_than_the_bound_of_two_machines(found: list[Item]) -> None:
    a = [item.times.train for item in found]
    b = [item.times.infer for item in found]
    span = makespan_of(ordered(found, "johnson"))
    if found:
        bound = max(sum(a) + min(b), sum(b) + min(a), *(item.times.total for item in found))
        assert bound <= span
        assert span <= sum(a) + sum(b)
        assert span <= makespan_of(ordered(found, "file"))
    else:
        assert span == 0


@pytest.mark.parametrize("order", ["johnson", "file", "cheapest"])
@given(found=items(max_size=30))
def test_an_order_gives_each_item_once(order: Order, found: list[Item]) -> None:
    assert Counter(ordered(found, order)) == Counter(found)


@given(items(max_size=30))
def test_the_file_is_kept_and_the_cheapest_comes_first_when_asked_for(found: list[Item]) -> None:
    assert ordered(found, "file") == found
    totals = [item.times.total for item in ordered(found, "cheapest")]
    assert totals == sorted(totals)


@pytest.mark.parametrize("order", ["johnson", "cheapest"])
def test_equals_stay_in_the_order_of_the_file(order: Order) -> None:
    assert ordered(plain(1, 5), order) == plain(1, 5)


# Shares.


def test_a_single_job_is_worked_off_in_its_order() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 3))
    queue.add(1, 10, [Item(1, "later", Times(0, 0))])
    assert [item.task for item in given_out(queue, 4)] == ["t0", "t1", "t2", "later"]
    assert queue.next() is None


def test_what_is_asked_for_but_not_taken_stays() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 2))
    assert queue.next() == queue.next() == plain(1, 1)[0]
    assert len(queue) == 2


@given(st.lists(st.tuples(st.integers(1, 20), items(max_size=40)), min_size=2, max_size=4))
def test_shares_follow_the_priorities_within_one_task_of_each_job(
    found: list[tuple[int, list[Item]]],
) -> None:
    queue = FairQueue()
    left: dict[int, list[Item]] = {}
    for job, (priority, waiting) in enumerate(found):
        left[job] = [Item(job, item.task, item.times) for item in waiting]
        queue.add(job, priority, left[job])
    priorities = {job: priority for job, (priority, _) in enumerate(found)}
    largest = {
        job: max((item.times.total for item in waiting), default=0.0) / priorities[job]
        for job, waiting in left.items()
    }
    charged = dict.fromkeys(left, 0.0)
    while all(left.values()):  # as long as all have something to do
        (item,) = given_out(queue, 1)
        left[item.job].remove(item)
        charged[item.job] += item.times.total / priorities[item.job]
        for one in charged:
            for other in charged:
                assert charged[one] - charged[other] <= largest[one] + 1e-9


def test_a_job_of_twice_the_priority_gets_twice_the_time() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 100))
    queue.add(2, 20, plain(2, 100))
    assert Counter(jobs(given_out(queue, 90))) == {"1": 30, "2": 60}


def test_a_job_of_large_tasks_gets_fewer_of_them() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 100, each=1))
    queue.add(2, 10, plain(2, 100, each=4))
    assert Counter(jobs(given_out(queue, 50))) == {"1": 40, "2": 10}


def test_a_job_that_comes_late_shares_from_then_on() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 200))
    given_out(queue, 100)
    queue.add(2, 10, plain(2, 100))
    assert Counter(jobs(given_out(queue, 20))) == {"1": 10, "2": 10}


def test_a_job_that_had_nothing_to_do_has_no_claim_to_the_time_in_between() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 200))
    queue.add(2, 10, plain(2, 1))
    given_out(queue, 100)
    queue.add(2, 10, plain(2, 100))
    assert Counter(jobs(given_out(queue, 20))) == {"1": 10, "2": 10}


def test_a_job_that_was_paused_has_no_claim_to_the_time_in_between() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 200))
    queue.add(2, 10, plain(2, 100))
    given_out(queue, 10)
    assert jobs(given_out(queue, 100, runnable=lambda job: job == 1)) == "1" * 100
    assert Counter(jobs(given_out(queue, 21))) == {"1": 10, "2": 11}


def test_a_job_of_which_nobody_may_begin_a_task_is_passed_over() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 3))
    queue.add(2, 10, plain(2, 3))
    assert jobs(given_out(queue, 3, runnable=lambda job: job == 2)) == "222"
    assert queue.next(lambda job: job == 2) is None
    assert jobs(given_out(queue, 3)) == "111"


def test_a_job_that_is_dropped_is_forgotten() -> None:
    queue = FairQueue()
    queue.add(1, 10, plain(1, 3))
    queue.add(2, 10, plain(2, 3))
    queue.drop(1)
    queue.drop(7)
    assert len(queue) == 3
    assert jobs(given_out(queue, 3)) == "222"


class Agendas(RuleBasedStateMachine):
    """An queue of three jobs beside the plain lists of what waits."""

    @initialize()
    def begin(self) -> None:
        self.queue = FairQueue()
        self.waiting: dict[int, list[Item]] = {}
        self.names = 0

    @rule(job=st.integers(1, 3), times=st.lists(st.builds(Times, seconds(), seconds())))
    def add(self, job: int, times: list[Times]) -> None:
        items = [Item(job, f"t{self.names + i}", each) for i, each in enumerate(times)]
        self.names += len(items)
        self.queue.add(job, job, items)
        self.waiting.setdefault(job, []).extend(items)

    @rule(job=st.integers(1, 3))
    def drop(self, job: int) -> None:
        self.queue.drop(job)
        self.waiting.pop(job, None)

    @rule(runnable=st.sets(st.integers(1, 3)))
    def take(self, runnable: set[int]) -> None:
        item = self.queue.next(runnable.__contains__)
        possible = [left[0] for job, left in self.waiting.items() if left and job in runnable]
        if item is None:
            assert possible == []
        else:
            assert item in possible
            self.queue.take(item, item.times.total)
            self.waiting[item.job].remove(item)

    @precondition(lambda self: hasattr(self, "queue"))
    @invariant()
    def nothing_is_lost_or_there_twice(self) -> None:
        assert len(self.queue) == sum(map(len, self.waiting.values()))


TestAgendas = Agendas.TestCase
TestAgendas.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
