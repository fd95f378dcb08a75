"""The solver: one task from lessons to verdict, top to bottom in `solve`.

    lessons  --train-->  Adapter
    requests, Adapter  --sample-->  Candidates  --rescore-->  Likelihoods
    Candidates, Likelihoods  --verdict-->  two attempts for each test

The stages have a module each (`training`, `sampling`, `rescoring`) and use the trainer and the
engine through `arcd.backends.protocols`. Knows nothing of other tasks: the scheduler runs several
`solve` at once, so that one task trains while another is sampled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from arcd.arc.selection import NO_LIKELIHOODS, Candidate, Likelihoods, Verdict, taught, verdict
from arcd.backends.protocols import Adapter, Request
from arcd.backends.runtime import Runtime
from arcd.errors import SampleRefused
from arcd.jobs import events
from arcd.jobs.events import Emit
from arcd.model.prompts import Question, TooLong
from arcd.solver.assignment import Assignment
from arcd.solver.rescoring import rescore
from arcd.solver.sampling import sample
from arcd.solver.training import train


async def solve(assignment: Assignment, runtime: Runtime, emit: Emit) -> Verdict:
    """Train an adapter on the task's lessons, sample its tests, rescore the best answers, vote.

    What earlier attempts have left (an adapter, candidates) is used and not made again. Always
    returns a verdict: where a stage fails, a simpler one takes its place and a note says so. Every
    step is emitted as an event when it happens. Raises EngineFailed alone: without an engine no
    other task can be answered either.
    """
    task = assignment.task
    notes = _Notes(task.id, emit, list(assignment.notes))
    # First of all: if the daemon dies of what follows, the task is charged for it.
    lessons, samples = assignment.planned_lessons, assignment.planned_samples
    emit(events.Started(task.id, lessons, samples, assignment.predicted))

    def ask(check: Callable[[], None]) -> tuple[list[Question | TooLong], list[Request]]:
        with runtime.ledger.span("host", "build"):
            questions = assignment.questions(runtime.encoding, check)
            return questions, assignment.requests(questions)

    questions, requests = await runtime.background(ask)
    _note_too_long(questions, notes)

    adapter = assignment.adapter
    if requests and adapter is None:
        adapter = await train(assignment, runtime, emit, notes.add)

    candidates = list(assignment.candidates)
    likelihoods = NO_LIKELIHOODS
    timeout_s = assignment.sampling_timeout_s() if requests else math.inf
    with anyio.move_on_after(timeout_s) as timeout:
        if requests:
            adapter = await sample(requests, adapter, candidates, runtime, emit, notes.add)
        likelihoods = await _rescore(assignment, questions, candidates, adapter, runtime, notes)
    if timeout.cancelled_caught:
        notes.add(f"sampling took more than {timeout_s:.0f} s and was ended")

    with runtime.ledger.span("host", "select"):
        # Where this round has no adapter, that of an earlier one still has the votes that count.
        earlier = assignment.answered_by if taught(candidates) else None
        serial = adapter.serial if adapter else earlier
        tests, noted = len(task.tests), tuple(notes.all)
        found = verdict(task.id, tests, candidates, serial, noted, likelihoods)
    emit(events.Answered(task.id, found))
    return found


@dataclass
class _Notes:
    """What went other than planned with a task: emitted when it happens, kept for the verdict."""

    task: str
    emit: Emit
    all: list[str]
    """First those of earlier attempts, which are not emitted again."""

    def add(self, note: str) -> None:
        if note not in self.all:
            self.all.append(note)
            self.emit(events.Noted(self.task, note))


def _note_too_long(questions: Sequence[Question | TooLong], notes: _Notes) -> None:
    """One note for all questions that do not fit the context."""
    too_long = next((found for found in questions if isinstance(found, TooLong)), None)
    if too_long:
        notes.add(f"not asked in every view: {too_long}")


async def _rescore(
    assignment: Assignment,
    questions: Sequence[Question | TooLong],
    candidates: Sequence[Candidate],
    adapter: Adapter | None,
    runtime: Runtime,
    notes: _Notes,
) -> Likelihoods:
    """The contenders' likelihoods under the model that drew them, if that can be had."""
    if adapter is None and any(candidate.adapter is not None for candidate in candidates):
        return NO_LIKELIHOODS
    engine, encoding, config = runtime.engine, runtime.encoding, assignment.round_config
    try:
        return await rescore(questions, candidates, adapter, engine, encoding, config)
    except SampleRefused as error:
        notes.add(f"votes alone decided: {error}")
        return NO_LIKELIHOODS
