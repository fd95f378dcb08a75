"""The training stage: a task's adapter, or a note that says why the base has to answer alone.

Out of memory is met by lessons of half the longest length, then by recomputing activations too. A
full disk is waited for: an answer of the base in place of every later adapter would look like
success. Knows nothing of samples or votes.
"""

from collections.abc import Callable, Iterator

import anyio

from arcd.backends.protocols import Adapter, TrainingStep, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.errors import DiskFull, OutOfMemory, TrainerFailed
from arcd.jobs import events
from arcd.jobs.events import Emit
from arcd.model.prompts import Lesson, TooLong
from arcd.solver.assignment import Assignment
from arcd.system.seeds import seed_of

ROOM_POLL_S = 10.0
"""Seconds after which a training that waits for room on the disk is tried again."""


async def train(
    assignment: Assignment,
    lessons: list[Lesson] | TooLong,
    runtime: Runtime,
    emit: Emit,
    note: Callable[[str], None],
) -> Adapter | None:
    """The task's adapter, or None if it has no lessons or its training fails.

    While the disk has no room for the adapter it waits, which a note says; a deadline or a
    cancellation ends that as it ends a training. Call it with one of the trainer's slots held.
    Raises no TrainerFailed: that becomes a note.
    """
    if isinstance(lessons, TooLong):
        note(f"answered by the base: {lessons}")
        return None
    if not lessons:
        return None
    if len(assignment.task.train) == 1:
        note("one demonstration pair: nothing to leave out, trained without pairs shown")
    for given_up, remaining, frugal in _fallbacks(assignment, lessons, runtime):
        if given_up:
            note(f"out of memory in training, tried again with {given_up}")
        try:
            return await _train_with_room(assignment, remaining, runtime, emit, note, frugal=frugal)
        except OutOfMemory:
            continue
        except TrainerFailed as error:
            note(f"answered by the base: {error}")
            return None
    note("answered by the base: out of memory in training")
    return None


def _fallbacks(
    assignment: Assignment, lessons: list[Lesson], runtime: Runtime
) -> Iterator[tuple[str, list[Lesson], bool]]:
    """(what is given up, lessons, frugal?) from the plan to what takes the least memory."""
    yield "", lessons, False
    half = max(len(lesson.tokens) for lesson in lessons) // 2
    shorter = assignment.lessons(runtime.encoding, half)
    if not isinstance(shorter, TooLong):
        lessons = shorter
        yield f"lessons of at most {half} tokens", lessons, False
    yield "activations recomputed", lessons, True


async def _train_with_room(
    assignment: Assignment,
    lessons: list[Lesson],
    runtime: Runtime,
    emit: Emit,
    note: Callable[[str], None],
    *,
    frugal: bool,
) -> Adapter:
    """As `_train_once`, which is tried again as long as the disk is full."""
    while True:
        try:
            return await _train_once(assignment, lessons, runtime, emit, frugal=frugal)
        except DiskFull as error:
            if not assignment.make_room():
                note(f"had to wait for room on the disk: {error}")
                await anyio.sleep(ROOM_POLL_S)


async def _train_once(
    assignment: Assignment, lessons: list[Lesson], runtime: Runtime, emit: Emit, *, frugal: bool
) -> Adapter:
    task, config = assignment.task.id, assignment.round_config

    def progress(now: TrainingStep) -> None:
        emit(events.Training(task, now.step, now.steps, now.loss, now.tokens_per_second))

    request = TrainRequest(
        lessons,
        config.train,
        seed=seed_of(config.seed, task, "adapter"),
        serial=runtime.serial(),
        frugal=frugal,
        start=assignment.start,
    )
    done = await runtime.trainer.train(request, progress)
    emit(
        events.Trained(
            task,
            done.adapter.serial,
            done.steps,
            done.tokens,
            done.seconds,
            done.loss,
            done.resident_bytes,
        )
    )
    return done.adapter
