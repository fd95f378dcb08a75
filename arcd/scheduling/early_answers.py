"""Early answers: the order of a job's tasks in which a person soon sees the first ones answered.

Johnson's rule alone begins with the longest samplings where training takes longer than sampling,
so that nothing is answered for minutes. And it knows of one training at a time: where several run,
a long one may begin last and go on alone. Pure; knows nothing of jobs, clocks or budgets.
"""

from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest

from arcd.scheduling.fair_queue import Item, johnson
from arcd.scheduling.flow_shop import FlowShop

TOLERANCE = 1.01
"""The whole takes at most this many times as long as in the order of Johnson's rule."""


def early(items: Iterable[Item], shop: FlowShop) -> list[Item]:
    """The items in the order in which to begin them; equals stay as they are.

    Short tasks come first. The others follow in the order of Johnson's rule, and at the end the
    longest first, so that the trainings end together; or all as the rule has them, where that is
    shorter. Fewer or no short tasks come first where the whole would take longer than TOLERANCE.
    """
    rule = _rule(list(items), shop)
    most = TOLERANCE * _makespan(rule, shop)
    orders = (_followed(rule, head, shop) for head in _heads(rule, shop.trainings))
    # Without a head it takes no longer than the rule, so that there is such an order.
    return next(order for order, seconds in orders if seconds <= most)


def _rule(items: Sequence[Item], shop: FlowShop) -> list[Item]:
    """Johnson's order with all trainings as one fast machine, or, if better, with one of them."""
    orders = [johnson(items, trainings) for trainings in sorted({1, shop.trainings})]
    return min(orders, key=lambda order: _makespan(order, shop))


def _heads(rule: Sequence[Item], trainings: int) -> Iterator[list[int]]:
    """What to begin with, as indices; the best choice first, the last is nothing.

    The shortest tasks, one for each training at once; then half as many, and so on. Then all this
    without the shortest task of all, which may be needed at the end.
    """
    shortest = nsmallest(trainings + 1, range(len(rule)), key=lambda i: rule[i].times.total)
    for left in shortest, shortest[1:]:
        count = trainings
        while count:
            yield left[:count]
            count //= 2
    yield []


def _followed(
    rule: Sequence[Item], head: Sequence[int], shop: FlowShop
) -> tuple[list[Item], float]:
    """The head, the others behind it in the order that takes less time, and the seconds of all."""
    first, chosen = [rule[index] for index in head], set(head)
    rest = [item for index, item in enumerate(rule) if index not in chosen]
    orders = first + _longest_first_at_the_end(rest, shop.trainings), first + rest
    return min(((order, _makespan(order, shop)) for order in orders), key=lambda found: found[1])


def _longest_first_at_the_end(items: list[Item], trainings: int) -> list[Item]:
    """The items, of which the last are sorted: the longest first.

    They are so many that together their trainings take as long as the longest training of all:
    whatever runs when the first of them begins is done before the last of them is.
    """
    if trainings == 1:
        return items
    longest = max((item.times.train for item in items), default=0.0)
    work, end = 0.0, len(items)
    while end and work < trainings * longest:
        end -= 1
        work += items[end].times.train
    return items[:end] + sorted(items[end:], key=lambda item: -item.times.total)


def _makespan(items: Sequence[Item], shop: FlowShop) -> float:
    return shop.makespan([item.times for item in items])
