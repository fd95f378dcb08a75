"""The solver: one task from lessons to verdict, top to bottom in `solve`.

Everything it works with is in the `Rig`: the backends behind their two protocols, the encoding,
the configuration, the ledger. Knows nothing of other tasks, of files or of screens.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import anyio

from arcd import events, prompts
from arcd.backends import Adapter, Completion, Engine, Request, Trainer, TrainingStep
from arcd.config import Config
from arcd.encoding import Encoding
from arcd.errors import OutOfMemory, TrainerFailed
from arcd.events import Emit
from arcd.ledger import Ledger
from arcd.prompts import Lesson, Question, TooLong
from arcd.seeds import generator, seed_of
from arcd.selection import Candidate, Verdict, verdict
from arcd.tasks import Task
from arcd.views import View, spread


@dataclass(frozen=True)
class Rig:
    """What a task is solved with; shared by all tasks of a run."""

    trainer: Trainer
    engine: Engine
    encoding: Encoding
    config: Config
    ledger: Ledger
    trainer_slot: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while training: one adapter at a time, in the order of asking."""


async def solve(task: Task, rig: Rig, emit: Emit) -> Verdict:
    """Train on the task's demonstrations, sample its tests, vote.

    Always ends in a verdict: what went wrong on the way stands in its notes. Raises EngineFailed
    only, because without an engine no other task can be answered either.
    """
    notes = _Notes(task.id, emit)
    with rig.ledger.span("host", "build"):
        lessons = build_lessons(task, rig.config, rig.encoding, rig.config.train.max_seq_len)
        questions = list(_fitting(build_questions(task, rig.config, rig.encoding), notes))
    requests = build_requests(task, questions, rig.config)
    emit(
        events.Started(task.id, 0 if isinstance(lessons, TooLong) else len(lessons), len(requests))
    )

    async with rig.trainer_slot:
        adapter = await _train(task, lessons, rig, notes, emit) if requests else None

    candidates: list[Candidate] = []

    def deliver(completion: Completion) -> None:
        with rig.ledger.span("host", "parse"):
            candidate = to_candidate(completion, adapter, rig.encoding)
        candidates.append(candidate)
        emit(events.Sampled(task.id, candidate))

    await rig.engine.sample(requests, adapter, deliver)
    with rig.ledger.span("host", "select"):
        serial = adapter.serial if adapter else None
        found = verdict(task.id, len(task.tests), candidates, serial, tuple(notes.all))
    emit(events.Answered(task.id, found))
    return found


@dataclass
class _Notes:
    """What went other than planned with a task, told as it happens and kept for the verdict."""

    task: str
    emit: Emit
    all: list[str] = field(default_factory=list)

    def add(self, note: str) -> None:
        self.all.append(note)
        self.emit(events.Noted(self.task, note))


def build_lessons(
    task: Task, config: Config, encoding: Encoding, limit: int
) -> list[Lesson] | TooLong:
    """All lessons of a task in training order, the same for the same seed on every machine."""
    rng = generator(config.seed, task.id, "lessons")
    views = _views(config.train.steps * config.train.batch_size, task, config, "lesson views")
    if not views:
        return []
    return prompts.lessons(task, views, encoding, limit, rng, loss=config.train.loss)


def build_questions(task: Task, config: Config, encoding: Encoding) -> Iterator[Question | TooLong]:
    """For each test one question a view, the same for the same seed on every machine."""
    rng = generator(config.seed, task.id, "questions")
    count = config.sample.views or config.sample.samples
    for test in range(len(task.tests)):
        for view in _views(count, task, config, f"question views {test}"):
            yield prompts.question(task, test, view, encoding, config.engine.max_model_len, rng)


def build_requests(task: Task, questions: list[Question], config: Config) -> list[Request]:
    """The samples of each test dealt out to its questions in turn."""
    requests = []
    for test in range(len(task.tests)):
        asked = [question for question in questions if question.test == test]
        for sample in range(config.sample.samples if asked else 0):
            seed = seed_of(config.seed, task.id, "sample", test, sample)
            requests.append(Request(asked[sample % len(asked)], sample, seed))
    return requests


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


def _fitting(found: Iterator[Question | TooLong], notes: _Notes) -> Iterator[Question]:
    """The questions that fit; one note for all that do not."""
    too_long: TooLong | None = None
    for question in found:
        if isinstance(question, Question):
            yield question
        else:
            too_long = too_long or question
    if too_long:
        notes.add(f"not asked in every view: {too_long}")


async def _train(
    task: Task, lessons: list[Lesson] | TooLong, rig: Rig, notes: _Notes, emit: Emit
) -> Adapter | None:
    """The task's adapter, or None, with a note, where the base has to answer alone.

    Out of memory is met by lessons of half the longest length, then by recomputing activations.
    """
    if isinstance(lessons, TooLong):
        notes.add(f"answered by the base: {lessons}")
        return None
    if not lessons:
        return None
    if len(task.train) == 1:
        notes.add("one demonstration pair: nothing to leave out, trained without pairs shown")
    for what, found, frugal in _fallbacks(task, lessons, rig):
        if what:
            notes.add(f"out of memory in training, tried again with {what}")
        try:
            return await _train_once(task, found, rig, emit, frugal=frugal)
        except OutOfMemory:
            continue
        except TrainerFailed as error:
            notes.add(f"answered by the base: {error}")
            return None
    notes.add("answered by the base: out of memory in training")
    return None


def _fallbacks(
    task: Task, lessons: list[Lesson], rig: Rig
) -> Iterator[tuple[str, list[Lesson], bool]]:
    """(what is given up, lessons, frugal?) from the plan down to what takes the least memory."""
    yield "", lessons, False
    half = max(len(lesson.tokens) for lesson in lessons) // 2
    shorter = build_lessons(task, rig.config, rig.encoding, half)
    if not isinstance(shorter, TooLong):
        lessons = shorter
        yield f"lessons of at most {half} tokens", lessons, False
    yield "activations recomputed", lessons, True


async def _train_once(
    task: Task, lessons: list[Lesson], rig: Rig, emit: Emit, *, frugal: bool = False
) -> Adapter:
    def progress(now: TrainingStep) -> None:
        emit(events.Training(task.id, now.step, now.steps, now.loss, now.tokens_per_second))

    seed = seed_of(rig.config.seed, task.id, "adapter")
    done = await rig.trainer.train(lessons, seed, progress, frugal=frugal)
    emit(
        events.Trained(
            task.id, done.adapter.serial, done.steps, done.tokens, done.seconds, done.loss
        )
    )
    return done.adapter
