"""The training stage: a task's adapter, or a note that says why the base has to answer alone.

Out of memory is met by lessons of half the longest length, then by recomputing activations too. A
full disk is waited for: an answer of the base in place of every later adapter would look like
success. Knows nothing of samples or votes.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import anyio

from arcd.backends.protocols import Adapter, TrainingStep, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.errors import DiskFull, OutOfMemory, TrainerFailed
from arcd.jobs import events
from arcd.jobs.events import Emit
from arcd.model.lessons import Lessons
from arcd.model.prompts import TooLong
from arcd.solver.assignment import Assignment
from arcd.system.seeds import seed_of

ROOM_POLL_S = 10.0
"""Seconds after which a training that waits for room on the disk is tried again."""


async def train(
    assignment: Assignment, runtime: Runtime, emit: Emit, note: Callable[[str], None]
) -> Adapter | None:
    """The task's adapter, or None if it has no lessons or its training fails.

    While the disk has no room for the adapter it waits, which a note says; a deadline or a
    cancellation ends that as it ends a training.
    Raises no TrainerFailed: that becomes a note.
    """
    lessons = await _lessons(assignment, runtime)
    if isinstance(lessons, TooLong):
        note(f"answered by the base: {lessons}")
        return None
    if not lessons:
        return None
    if len(assignment.task.train) == 1:
        note("one demonstration pair: nothing to leave out, trained without pairs shown")
    # One slot for all attempts: a task that runs out of memory does not queue again.
    async with (
        runtime.trainer.slots,
        aclosing(_fallbacks(assignment, lessons, runtime)) as attempts,
    ):
        async for given_up, left, frugal in attempts:
            if given_up:
                note(f"out of memory in training, tried again with {given_up}")
            try:
                return await _train_with_room(assignment, left, runtime, emit, note, frugal=frugal)
            except OutOfMemory:
                continue
            except TrainerFailed as error:
                note(f"answered by the base: {error}")
                return None
    note("answered by the base: out of memory in training")
    return None


async def _lessons(
    assignment: Assignment, runtime: Runtime, max_tokens: int | None = None
) -> Lessons | TooLong:
    """The lessons, built in the background: those of a large group take a minute."""

    def build(check: Callable[[], None]) -> Lessons | TooLong:
        with runtime.ledger.span("host", "build"):
            return assignment.lessons(runtime.encoding, max_tokens, check)

    return await runtime.background(build)


async def _fallbacks(
    assignment: Assignment, lessons: Lessons, runtime: Runtime
) -> AsyncGenerator[tuple[str, Lessons, bool], None]:
    """(what is given up, lessons, frugal?) from the plan to what takes the least memory."""
    yield "", lessons, False
    half = max(lessons.lengths) // 2
    shorter = await _lessons(assignment, runtime, half)
    if not isinstance(shorter, TooLong):
        lessons = shorter
        yield f"lessons of at most {half} tokens", lessons, False
    yield "activations recomputed", lessons, True


async def _train_with_room(
    assignment: Assignment,
    lessons: Lessons,
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
    assignment: Assignment, lessons: Lessons, runtime: Runtime, emit: Emit, *, frugal: bool
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
