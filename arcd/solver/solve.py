"""The solver: one task from lessons to verdict, top to bottom in `solve`.

Everything it works with is in the `Rig`: the backends behind their two protocols, the encoding,
the configuration, the ledger. Knows nothing of other tasks, of files or of screens.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from arcd.arc.selection import NOT_JUDGED, Candidate, Judged, Verdict, verdict
from arcd.arc.tasks import Task
from arcd.arc.views import View, spread
from arcd.backends.protocols import (
    Adapter,
    Completion,
    Engine,
    Request,
    Trainer,
    TrainingStep,
    TrainRequest,
)
from arcd.config import Config
from arcd.errors import OutOfMemory, SampleRefused, TrainerFailed
from arcd.jobs import events
from arcd.jobs.events import Emit
from arcd.model import prompts
from arcd.model.encoding import Encoding
from arcd.model.prompts import Lesson, Question, TooLong
from arcd.scheduling.forecast import Times
from arcd.solver.rescoring import judge
from arcd.system.ledger import Ledger
from arcd.system.seeds import generator, seed_of


@dataclass(frozen=True)
class Rig:
    """What tasks are solved with; shared by all of them. `serial` numbers an adapter."""

    trainer: Trainer
    engine: Engine
    encoding: Encoding
    ledger: Ledger
    serial: Callable[[], int]
    trainings: int = 1
    """As many as the trainer can do at once."""
    trainer_slot: anyio.Semaphore = field(init=False)
    """Held while training; given out in the order of asking."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "trainer_slot", anyio.Semaphore(self.trainings))


@dataclass(frozen=True)
class Assignment:
    """A task, how it is to be solved, and what earlier attempts at it have left.

    In round 0 a task is solved for the first time, in each later one with other lessons, views and
    samples, which are numbered from `first_sample` on. `adapter` was trained in this round already,
    `start` in an earlier one, to go on from; `candidates` are those of all rounds. The adapter
    learns from the demonstrations of all tasks in `taught`.
    """

    task: Task
    config: Config
    taught: tuple[Task, ...] = ()
    """By default the task alone."""
    round: int = 0
    first_sample: int = 0
    adapter: Adapter | None = None
    start: Path | None = None
    candidates: tuple[Candidate, ...] = ()
    notes: tuple[str, ...] = ()
    predicted: Times | None = None
    patience: Callable[[], float] = lambda: math.inf
    """Asked when sampling begins: seconds until it is ended, and the samples there are voted on."""

    def lessons(self, encoding: Encoding, limit: int) -> list[Lesson] | TooLong:
        """What the adapter is to learn, each lesson of at most `limit` tokens."""
        return build_lessons(self.taught or (self.task,), self.settings, encoding, limit)

    @property
    def settings(self) -> Config:
        """The configuration with the seed of this round."""
        if self.round == 0:
            return self.config
        return self.config.model_copy(
            update={"seed": seed_of(self.config.seed, "round", self.round)}
        )


async def solve(assignment: Assignment, rig: Rig, emit: Emit) -> Verdict:
    """Train on the task's demonstrations, sample its tests, vote, judge.

    Always ends in a verdict: what went wrong on the way stands in its notes. Nothing that is there
    is done again. Raises EngineFailed only, because without an engine no other task can be
    answered either.
    """
    task, config = assignment.task, assignment.settings
    notes = _Notes(task.id, emit, list(assignment.notes))
    with rig.ledger.span("host", "build"):
        lessons = assignment.lessons(rig.encoding, config.train.max_seq_len)
        questions = list(build_questions(task, config, rig.encoding))
        all_requests = build_requests(task, questions, config, assignment.first_sample)
        requests = _open(all_requests, assignment.candidates)
    taught = 0 if isinstance(lessons, TooLong) else len(lessons)
    emit(events.Started(task.id, taught, len(requests), assignment.predicted))
    _note_too_long(questions, notes)

    adapter = assignment.adapter
    if requests and adapter is None:
        async with rig.trainer_slot:
            adapter = await _train(assignment, lessons, rig, notes, emit)

    candidates = list(assignment.candidates)
    judged = NOT_JUDGED
    patience = assignment.patience() if requests else math.inf
    with anyio.move_on_after(patience) as limit:
        if requests:
            adapter = await _sample(requests, adapter, candidates, rig, notes, emit)
        judged = await _judge(questions, candidates, adapter, config, rig, notes)
    if limit.cancelled_caught:
        notes.add(f"sampling took more than {patience:.0f} s and was ended")
    with rig.ledger.span("host", "select"):
        serial = adapter.serial if adapter else None
        found = verdict(task.id, len(task.tests), candidates, serial, tuple(notes.all), judged)
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


def build_lessons(
    tasks: Sequence[Task], config: Config, encoding: Encoding, limit: int
) -> list[Lesson] | TooLong:
    """All lessons for an adapter in training order, the same for the same seed on every machine.

    Those of several tasks are mixed; TooLong where none of any of them fits.
    """
    found: list[Lesson] = []
    too_long: list[TooLong] = []
    for task in tasks:
        rng = generator(config.seed, task.id, "lessons")
        views = _views(config.train.steps * config.train.batch_size, task, config, "lesson views")
        if not views:
            return []
        match prompts.lessons(task, views, encoding, limit, rng, loss=config.train.loss):
            case TooLong() as lacking:
                too_long.append(lacking)
            case lessons:
                found += lessons
    if len(tasks) > 1:
        generator(config.seed, *(task.id for task in tasks), "mixed").shuffle(found)
    return found or min(too_long, key=lambda lacking: lacking.needed)


def build_questions(task: Task, config: Config, encoding: Encoding) -> Iterator[Question | TooLong]:
    """For each test one question a view, the same for the same seed on every machine."""
    rng = generator(config.seed, task.id, "questions")
    count = config.sample.views or config.sample.samples
    for test in range(len(task.tests)):
        for view in _views(count, task, config, f"question views {test}"):
            yield prompts.question(task, test, view, encoding, config.engine.max_model_len, rng)


def build_requests(
    task: Task, questions: Sequence[Question | TooLong], config: Config, first: int = 0
) -> list[Request]:
    """The samples of each test dealt out to its questions in turn, numbered from `first` on."""
    requests = []
    count = config.sample.samples
    for test in range(len(task.tests)):
        asked = [q for q in questions if isinstance(q, Question) and q.test == test]
        for i in range(count if asked else 0):
            seed = seed_of(config.seed, task.id, "sample", test, i)
            question = asked[i % len(asked)]
            requests.append(Request(question, first + i, seed, config.sample.temperature))
    return requests


def _open(requests: list[Request], candidates: Iterable[Candidate]) -> list[Request]:
    """The requests of which there is no candidate yet."""
    done = {(candidate.test, candidate.sample) for candidate in candidates}
    return [r for r in requests if (r.question.test, r.sample) not in done]


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


def _views(count: int, task: Task, config: Config, purpose: str) -> list[View]:
    rng = generator(config.seed, task.id, purpose)
    shown = config.views
    return spread(
        count, len(task.train), rng, keep_black=shown.keep_black, colours=shown.permute_colours
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
    rig: Rig,
    notes: _Notes,
    emit: Emit,
) -> Adapter | None:
    """Add a candidate for each request; returns the adapter, or None where the base had to help."""

    def deliver(completion: Completion) -> None:
        with rig.ledger.span("host", "parse"):
            candidate = to_candidate(completion, adapter, rig.encoding)
        candidates.append(candidate)
        emit(events.Sampled(candidate.task, candidate))

    try:
        await rig.engine.sample(requests, adapter, deliver)
    except SampleRefused as error:
        if adapter is None:
            notes.add(f"not sampled: {error}")
            return None
        notes.add(f"answered by the base: {error}")
        return await _sample(_open(requests, candidates), None, candidates, rig, notes, emit)
    return adapter


async def _judge(
    questions: Sequence[Question | TooLong],
    candidates: Sequence[Candidate],
    adapter: Adapter | None,
    config: Config,
    rig: Rig,
    notes: _Notes,
) -> Judged:
    """How likely the contenders are, by the model that answered."""
    if adapter is None and any(candidate.adapter is not None for candidate in candidates):
        return NOT_JUDGED
    try:
        return await judge(questions, candidates, adapter, rig.engine, rig.encoding, config)
    except SampleRefused as error:
        notes.add(f"votes alone decided: {error}")
        return NOT_JUDGED


async def _train(
    assignment: Assignment,
    lessons: list[Lesson] | TooLong,
    rig: Rig,
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
    for what, found, frugal in _fallbacks(assignment, lessons, rig):
        if what:
            notes.add(f"out of memory in training, tried again with {what}")
        try:
            return await _train_once(assignment, found, rig, emit, frugal=frugal)
        except OutOfMemory:
            continue
        except TrainerFailed as error:
            notes.add(f"answered by the base: {error}")
            return None
    notes.add("answered by the base: out of memory in training")
    return None


def _fallbacks(
    assignment: Assignment, lessons: list[Lesson], rig: Rig
) -> Iterator[tuple[str, list[Lesson], bool]]:
    """(what is given up, lessons, frugal?) from the plan down to what takes the least memory."""
    yield "", lessons, False
    half = max(len(lesson.tokens) for lesson in lessons) // 2
    shorter = assignment.lessons(rig.encoding, half)
    if not isinstance(shorter, TooLong):
        lessons = shorter
        yield f"lessons of at most {half} tokens", lessons, False
    yield "activations recomputed", lessons, True


async def _train_once(
    assignment: Assignment, lessons: list[Lesson], rig: Rig, emit: Emit, *, frugal: bool
) -> Adapter:
    task, config = assignment.task, assignment.settings

    def progress(now: TrainingStep) -> None:
        emit(events.Training(task.id, now.step, now.steps, now.loss, now.tokens_per_second))

    seed = seed_of(config.seed, task.id, "adapter")
    request = TrainRequest(
        lessons, config.train, seed, rig.serial(), frugal, start=assignment.start
    )
    done = await rig.trainer.train(request, progress)
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
