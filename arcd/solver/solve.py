"""The solver: one task from lessons to verdict, top to bottom in `solve`.

Everything it works with is in the `Runtime`: the backends behind their two protocols, the encoding,
the configuration, the ledger. Knows nothing of other tasks, of files or of screens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import anyio

from arcd.arc.selection import NO_LIKELIHOODS, Candidate, Likelihoods, Verdict, verdict
from arcd.backends.protocols import (
    Adapter,
    Completion,
    Request,
    TrainingStep,
    TrainRequest,
)
from arcd.backends.runtime import Runtime
from arcd.config import Config
from arcd.errors import OutOfMemory, SampleRefused, TrainerFailed
from arcd.jobs import events
from arcd.jobs.events import Emit
from arcd.model.encoding import Encoding
from arcd.model.prompts import Lesson, Question, TooLong, build_questions
from arcd.solver.assignment import Assignment, build_requests, open_requests
from arcd.solver.rescoring import rescore
from arcd.system.seeds import seed_of


async def solve(assignment: Assignment, runtime: Runtime, emit: Emit) -> Verdict:
    """Train on the task's demonstrations, sample its tests, rescore, vote.

    Always ends in a verdict: what went wrong on the way stands in its notes. Nothing that is there
    is done again. Raises EngineFailed only, because without an engine no other task can be
    answered either.
    """
    task, config = assignment.task, assignment.settings
    notes = _Notes(task.id, emit, list(assignment.notes))
    with runtime.ledger.span("host", "build"):
        lessons = assignment.lessons(runtime.encoding, config.train.max_seq_len)
        questions = list(build_questions(task, config, runtime.encoding))
        all_requests = build_requests(task, questions, config, assignment.first_sample)
        requests = open_requests(all_requests, assignment.candidates)
    taught = 0 if isinstance(lessons, TooLong) else len(lessons)
    emit(events.Started(task.id, taught, len(requests), assignment.predicted))
    _note_too_long(questions, notes)

    adapter = assignment.adapter
    if requests and adapter is None:
        async with runtime.trainer.slots:
            adapter = await _train(assignment, lessons, runtime, notes, emit)

    candidates = list(assignment.candidates)
    likelihoods = NO_LIKELIHOODS
    patience = assignment.patience() if requests else math.inf
    with anyio.move_on_after(patience) as limit:
        if requests:
            adapter = await _sample(requests, adapter, candidates, runtime, notes, emit)
        likelihoods = await _rescore(questions, candidates, adapter, config, runtime, notes)
    if limit.cancelled_caught:
        notes.add(f"sampling took more than {patience:.0f} s and was ended")
    with runtime.ledger.span("host", "select"):
        serial = adapter.serial if adapter else None
        found = verdict(task.id, len(task.tests), candidates, serial, tuple(notes.all), likelihoods)
    emit(events.Answered(task.id, found))
    return found


@dataclass
class _Notes:
    """What went other than planned with a task, told as it happens and kept for the verdict.

    What is known from an earlier attempt is not told again.
    """

    task: str
    emit: Emit
    all: list[str]

    def add(self, note: str) -> None:
        if note not in self.all:
            self.all.append(note)
            self.emit(events.Noted(self.task, note))


def to_candidate(completion: Completion, adapter: Adapter | None, encoding: Encoding) -> Candidate:
    """The completion parsed and carried back from its view."""
    question = completion.request.question
    grid = encoding.parse(completion.tokens) if completion.finish == "stop" else None
    return Candidate(
        task=question.task,
        test=question.test,
        view=question.view,
        shown=question.shown,
        sample=completion.request.sample,
        adapter=adapter.serial if adapter else None,
        grid=None if grid is None else question.view.undo(grid),
        logprob=sum(completion.logprobs),
        length=len(completion.tokens),
    )


def _note_too_long(questions: Sequence[Question | TooLong], notes: _Notes) -> None:
    """One note for all questions that do not fit."""
    too_long = next((found for found in questions if isinstance(found, TooLong)), None)
    if too_long:
        notes.add(f"not asked in every view: {too_long}")


async def _sample(
    requests: list[Request],
    adapter: Adapter | None,
    candidates: list[Candidate],
    runtime: Runtime,
    notes: _Notes,
    emit: Emit,
) -> Adapter | None:
    """Add a candidate for each request; returns the adapter, or None where the base had to help."""

    def deliver(completion: Completion) -> None:
        with runtime.ledger.span("host", "parse"):
            candidate = to_candidate(completion, adapter, runtime.encoding)
        candidates.append(candidate)
        emit(events.Sampled(candidate.task, candidate))

    try:
        await runtime.engine.sample(requests, adapter, deliver)
    except SampleRefused as error:
        if adapter is None:
            notes.add(f"not sampled: {error}")
            return None
        notes.add(f"answered by the base: {error}")
        return await _sample(
            open_requests(requests, candidates), None, candidates, runtime, notes, emit
        )
    return adapter


async def _rescore(
    questions: Sequence[Question | TooLong],
    candidates: Sequence[Candidate],
    adapter: Adapter | None,
    config: Config,
    runtime: Runtime,
    notes: _Notes,
) -> Likelihoods:
    """How likely the contenders are, by the model that answered."""
    if adapter is None and any(candidate.adapter is not None for candidate in candidates):
        return NO_LIKELIHOODS
    try:
        engine, encoding = runtime.engine, runtime.encoding
        return await rescore(questions, candidates, adapter, engine, encoding, config)
    except SampleRefused as error:
        notes.add(f"votes alone decided: {error}")
        return NO_LIKELIHOODS


async def _train(
    assignment: Assignment,
    lessons: list[Lesson] | TooLong,
    runtime: Runtime,
    notes: _Notes,
    emit: Emit,
) -> Adapter | None:
    """The task's adapter, or None, with a note, where the base has to answer alone.

    Out of memory is met by lessons of half the longest length, then by recomputing activations.
    """
    if isinstance(lessons, TooLong):
        notes.add(f"answered by the base: {lessons}")
        return None
    if not lessons:
        return None
    task = assignment.task
    if len(task.train) == 1:
        notes.add("one demonstration pair: nothing to leave out, trained without pairs shown")
    for what, found, frugal in _fallbacks(assignment, lessons, runtime):
        if what:
            notes.add(f"out of memory in training, tried again with {what}")
        try:
            return await _train_once(assignment, found, runtime, emit, frugal=frugal)
        except OutOfMemory:
            continue
        except TrainerFailed as error:
            notes.add(f"answered by the base: {error}")
            return None
    notes.add("answered by the base: out of memory in training")
    return None


def _fallbacks(
    assignment: Assignment, lessons: list[Lesson], runtime: Runtime
) -> Iterator[tuple[str, list[Lesson], bool]]:
    """(what is given up, lessons, frugal?) from the plan down to what takes the least memory."""
    yield "", lessons, False
    half = max(len(lesson.tokens) for lesson in lessons) // 2
    shorter = assignment.lessons(runtime.encoding, half)
    if not isinstance(shorter, TooLong):
        lessons = shorter
        yield f"lessons of at most {half} tokens", lessons, False
    yield "activations recomputed", lessons, True


async def _train_once(
    assignment: Assignment, lessons: list[Lesson], runtime: Runtime, emit: Emit, *, frugal: bool
) -> Adapter:
    task, config = assignment.task, assignment.settings

    def progress(now: TrainingStep) -> None:
        emit(events.Training(task.id, now.step, now.steps, now.loss, now.tokens_per_second))

    seed = seed_of(config.seed, task.id, "adapter")
    request = TrainRequest(
        lessons, config.train, seed, runtime.serial(), frugal, start=assignment.start
    )
    done = await runtime.trainer.train(request, progress)
    emit(
        events.Trained(
            task.id,
            done.adapter.serial,
            done.steps,
            done.tokens,
            done.seconds,
            done.loss,
            done.resident_bytes,
        )
    )
    return done.adapter
