"""The training stage: a task's adapter, or a note that says why the base has to answer alone.

Out of memory is met by recomputing activations, then by shorter lessons too: of the length that the
trainer says would fit, else of half the length. A full disk is waited for: an answer of the base in
place of every later adapter would look like success. Knows nothing of samples or votes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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


SHORTENINGS = 2
"""How often a task's lessons are shortened before the base has to answer."""


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
    async with runtime.trainer.slots:
        attempt: _Attempt | None = _Attempt(lessons)
        reason = ""
        while attempt is not None:
            if attempt.given_up:
                note(f"out of memory in training, tried again with {attempt.given_up}")
            try:
                return await _train_with_room(assignment, attempt, runtime, emit, note)
            except OutOfMemory as error:
                # Not the error itself: it has frames of the training.
                fits, reason = error.fits, "out of memory in training"
                if fits is not None:
                    reason += f": {error}"
            except TrainerFailed as error:
                note(f"answered by the base: {error}")
                return None
            attempt = await _less(attempt, fits, assignment, runtime)
    note(f"answered by the base: {reason}")
    return None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A training as it is tried."""

    lessons: Lessons
    frugal: bool = False
    """Whether activations are recomputed."""
    shortened: int = 0
    """How often the lessons were."""
    given_up: str = ""
    """What was given up last, compared with the plan."""


async def _less(
    attempt: _Attempt, fits: int | None, assignment: Assignment, runtime: Runtime
) -> _Attempt | None:
    """What to try after this one ran out of memory; None if nothing less is left.

    `fits` are the tokens of a lesson that would fit with activations recomputed, if that is known.
    """
    if fits is None and not attempt.frugal:
        return replace(attempt, frugal=True, given_up="activations recomputed")
    longest = max(attempt.lessons.lengths)
    limit = longest // 2 if fits is None else min(fits, longest - 1)
    if attempt.shortened == SHORTENINGS or limit < 1:
        return None
    shorter = await _lessons(assignment, runtime, limit)
    if isinstance(shorter, TooLong):
        return None
    given_up = f"lessons of at most {limit} tokens"
    return _Attempt(shorter, True, attempt.shortened + 1, given_up)


async def _lessons(
    assignment: Assignment, runtime: Runtime, max_tokens: int | None = None
) -> Lessons | TooLong:
    """The lessons, built in the background: those of a large group take a minute."""

    def build(check: Callable[[], None]) -> Lessons | TooLong:
        with runtime.ledger.span("host", "build"):
            return assignment.lessons(runtime.encoding, max_tokens, check)

    return await runtime.background(build)


async def _train_with_room(
    assignment: Assignment,
    attempt: _Attempt,
    runtime: Runtime,
    emit: Emit,
    note: Callable[[str], None],
) -> Adapter:
    """As `_train_once`, which is tried again as long as the disk is full."""
    while True:
        try:
            return await _train_once(assignment, attempt, runtime, emit)
        except DiskFull as error:
            if not assignment.make_room():
                note(f"had to wait for room on the disk: {error}")
                await anyio.sleep(ROOM_POLL_S)


async def _train_once(
    assignment: Assignment, attempt: _Attempt, runtime: Runtime, emit: Emit
) -> Adapter:
    task, config = assignment.task.id, assignment.round_config

    def progress(now: TrainingStep) -> None:
        emit(events.Training(task, now.step, now.steps, now.loss, now.tokens_per_second))

    request = TrainRequest(
        attempt.lessons,
        config.train,
        seed=seed_of(config.seed, task, "adapter"),
        serial=runtime.serial(),
        frugal=attempt.frugal,
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
