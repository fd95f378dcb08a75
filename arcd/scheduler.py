"""The scheduler: which task next, and how many are in hand at once.

Tasks start in order, each as one `solve`; training and inference overlap because several are in
hand: one trains, the others are sampled or wait with a trained adapter. Knows the rig only as
something that `solve` takes.
"""

from collections.abc import Sequence

import anyio

from arcd.events import Emit
from arcd.selection import Verdict
from arcd.solver import Rig, solve
from arcd.tasks import Task


async def solve_all(tasks: Sequence[Task], rig: Rig, emit: Emit) -> dict[str, Verdict]:
    """The verdict of every task by id.

    At most `config.lookahead` tasks are in hand beside the one in training, so that trained
    adapters cannot pile up before a slower engine.
    """
    in_hand = anyio.Semaphore(1 + rig.config.lookahead)
    verdicts: dict[str, Verdict] = {}

    async def one(task: Task) -> None:
        try:
            verdicts[task.id] = await solve(task, rig, emit)
        finally:
            in_hand.release()

    async with anyio.create_task_group() as solving:
        for task in tasks:
            await in_hand.acquire()
            solving.start_soon(one, task)
    return verdicts
