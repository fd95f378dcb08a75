"""Early answers: the first ones come soon, the whole takes no longer, nobody trains alone last."""

import random
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.arc.tasks import load
from arcd.config import Config
from arcd.jobs.events import Times
from arcd.scheduling.early_answers import TOLERANCE, early
from arcd.scheduling.fair_queue import Item, johnson
from arcd.scheduling.flow_shop import FlowShop
from arcd.scheduling.forecast import COLD, times, work

DEV100 = Path(__file__).parents[2] / "examples" / "dev100.json"


def named(needs: list[Times]) -> list[Item]:
    return [Item(1, f"t{i}", each) for i, each in enumerate(needs)]


def items() -> st.SearchStrategy[list[Item]]:
    seconds = st.integers(0, 50).map(float)
    return st.lists(st.builds(Times, seconds, seconds), max_size=30).map(named)


def shops() -> st.SearchStrategy[FlowShop]:
    def shop(trainings: int, waiting: int) -> FlowShop:
        return FlowShop(trainings, trainings + waiting)

    return st.builds(shop, st.integers(1, 5), st.integers(0, 4))


def answered(found: list[Item], shop: FlowShop) -> list[float]:
    return shop.answered([item.times for item in found])


def span(found: list[Item], shop: FlowShop) -> float:
    return max(answered(found, shop), default=0)


def totals(found: list[Item]) -> list[float]:
    return [item.times.total for item in found]


@given(items(), shops())
def test_each_item_is_there_once(found: list[Item], shop: FlowShop) -> None:
    assert Counter(early(found, shop)) == Counter(found)


@given(items(), shops())
def test_the_whole_takes_no_longer_than_in_johnsons_order(
    found: list[Item], shop: FlowShop
) -> None:
    rule = min(span(johnson(found, trainings), shop) for trainings in (1, shop.trainings))
    assert span(early(found, shop), shop) <= TOLERANCE * rule


@given(shops(), st.integers(0, 12), st.floats(0, 9), st.floats(0, 9))
def test_equals_stay_in_the_order_of_the_file(
    shop: FlowShop, count: int, train: float, infer: float
) -> None:
    found = named([Times(train, infer)] * count)
    assert early(found, shop) == found


@pytest.mark.parametrize("trainings", [1, 2, 3])
def test_the_shortest_tasks_come_first_one_for_each_training(trainings: int) -> None:
    found = named([Times(30 + i, 5 + i) for i in range(20)] + [Times(2 + i, 1) for i in range(20)])
    shop = FlowShop(trainings, trainings + 2)
    head = early(found, shop)[:trainings]
    assert totals(head) == sorted(totals(found))[:trainings]
    assert min(answered(early(found, shop), shop)) == 3
    assert min(answered(johnson(found), shop)) > 50


def test_no_short_task_comes_first_where_it_would_make_the_whole_longer() -> None:
    """The other one's sampling, during which it is trained, would end a second later."""
    found = named([Times(5, 5), Times(1, 0)])
    assert early(found, FlowShop(1, 3)) == found


def test_a_long_training_with_a_short_sampling_is_not_left_alone_at_the_end() -> None:
    found = named([Times(5 + i % 4, 3) for i in range(40)] + [Times(60, 0.5)])
    shop = FlowShop(2, 4)
    trainings = sum(item.times.train for item in found) / 2
    assert span(johnson(found), shop) > trainings + 25
    assert span(early(found, shop), shop) < trainings + 5


def dev100(training: float, sampling: float) -> list[Times]:
    """The seconds of the tasks of dev100, with the default settings, on a machine of this speed."""
    works = [work(task, Config()) for task in load(f"arc1-eval@{DEV100}").tasks]
    cold = [times(each, COLD) for each in works]
    return [Times(each.train * training, each.infer * sampling) for each in cold]


SPEEDS = [(1.0, 1.0), (0.5, 1.0), (0.5, 1.64), (0.2, 1.0)]
"""As measured; with training twice as fast; beside a slower engine; with sampling the longer."""


@pytest.mark.parametrize("trainings", [1, 2, 4])
@pytest.mark.parametrize("speed", SPEEDS)
def test_a_hundred_evaluation_tasks(speed: tuple[float, float], trainings: int) -> None:
    found, shop = named(dev100(*speed)), FlowShop(trainings, trainings + 2)
    before, after = answered(johnson(found), shop), answered(early(found, shop), shop)
    assert max(after) <= 1.002 * max(before)
    assert min(after) <= 1.5 * min(totals(found)) < 16
    if speed == (1.0, 1.0):
        assert min(before) > 170


@pytest.mark.parametrize("trainings", [1, 2])
def test_some_evaluation_tasks_of_each_size_of_a_set(trainings: int) -> None:
    """A hundred sets of each size: the fewer tasks, the less often a short one can come first."""
    chance, needs, shop = random.Random(1), dev100(1, 1), FlowShop(trainings, trainings + 2)
    for count, soon in ((12, 0.85), (20, 0.95), (50, 1.0)):
        sets = [named(chance.sample(needs, count)) for _ in range(100)]
        before = [answered(johnson(found), shop) for found in sets]
        after = [answered(early(found, shop), shop) for found in sets]
        ratios = [max(a) / max(b) for a, b in zip(after, before, strict=True)]
        assert max(ratios) <= TOLERANCE
        assert median(ratios) <= 1.002
        late = [min(a) > 2 * min(totals(found)) for a, found in zip(after, sets, strict=True)]
        assert late.count(False) >= soon * 100
        assert median(map(min, after)) < median(map(min, before)) / 5
