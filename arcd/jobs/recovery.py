"""What a daemon finds of earlier daemons in the store, and what it has to do about it.

A pure plan: nothing is read or written here. Knows nothing of how it is carried out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from arcd.jobs.state import State


@dataclass(frozen=True, slots=True)
class Recovery:
    """What follows from the state that earlier daemons have left."""

    interrupted: tuple[tuple[int, str], ...]
    """(job, task) of the tasks that were in flight when a daemon ended."""
    foreign: Mapping[int, str]
    """Jobs that were given to another base model, with its name."""
    held: frozenset[int]
    """Jobs that this daemon leaves alone until they are resumed."""
    waiting_for_base: frozenset[int]
    """Unfinished jobs that need a daemon with their own base."""
    adapters: frozenset[int]
    """Serial numbers of the adapters that are still needed."""


def plan(state: State, bases: Mapping[int, str], base: str, since: int) -> Recovery:
    """The plan of a daemon with this base.

    `bases` names the base of each job, where it is known. A job whose last request has a record
    number below `since` is left alone.
    """
    unfinished = {job.id: job for job in state.jobs.values() if not job.finished}
    foreign = {number: other for number, other in bases.items() if other != base}
    waiting = frozenset(foreign.keys() & unfinished.keys())
    old = {job.id for job in state.jobs.values() if job.asked < since}
    needed = {
        serial
        for job in unfinished.values()
        for task in job.tasks.values()
        # A job with a budget goes on from the adapter of its last round.
        for serial in (task.adapter, task.answered_by if job.budget is not None else None)
        if serial is not None
    }
    return Recovery(tuple(state.in_flight()), foreign, waiting | old, waiting, frozenset(needed))
