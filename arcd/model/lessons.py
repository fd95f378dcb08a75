"""The lessons of an adapter: what each of them shows, as tokens when it is asked for.

A group of 400 tasks has 160 000 lessons at 200 steps. Their tokens would take gigabytes, what they
show takes some MB; making the tokens anew takes a third of a millisecond, a step of training a
hundred. Knows nothing of trainers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from arcd.arc.tasks import Task
from arcd.arc.views import View
from arcd.config import Config
from arcd.model.encoding import Encoding
from arcd.model.prompts import Lesson, Loss, TooLong, each_lesson, views_of, written
from arcd.system.seeds import generator


@dataclass(frozen=True, slots=True)
class _Place:
    """A lesson without its tokens."""

    task: Task
    target: int
    view: View
    shown: tuple[int, ...]
    length: int
    """Its tokens."""


class Lessons(Sequence[Lesson]):
    """Lessons in training order; each access makes the tokens anew."""

    def __init__(self, places: Sequence[_Place], encoding: Encoding, loss: Loss) -> None:
        self._places, self._encoding, self._loss = places, encoding, loss

    @property
    def lengths(self) -> list[int]:
        """The tokens of each lesson, without making them."""
        return [place.length for place in self._places]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Lesson: ...
    @overload
    def __getitem__(self, index: slice) -> "Lessons": ...
    def __getitem__(self, index: int | slice) -> "Lesson | Lessons":
        if isinstance(index, slice):
            return Lessons(self._places[index], self._encoding, self._loss)
        place = self._places[index]
        return written(
            place.task, place.target, place.view, place.shown, self._encoding, self._loss
        )


def lengths(lessons: Sequence[Lesson]) -> list[int]:
    """The tokens of each lesson."""
    if isinstance(lessons, Lessons):
        return lessons.lengths
    return [len(lesson.tokens) for lesson in lessons]


def build_lessons(
    tasks: Sequence[Task],
    config: Config,
    encoding: Encoding,
    limit: int,
    check: Callable[[], None] = lambda: None,
) -> Lessons | TooLong:
    """All lessons for an adapter in training order, the same for the same seed on every machine.

    Those of several tasks are shuffled together. TooLong if no lesson of any task fits. `check` is
    called before each lesson; what it raises ends the building.
    """
    found: list[_Place] = []
    too_long: list[TooLong] = []
    for task in tasks:
        taught, refused = _taught(task, config, encoding, limit, check)
        found += taught
        too_long += refused
    if len(tasks) > 1:
        generator(config.seed, *(task.id for task in tasks), "mixed").shuffle(found)
    if too_long and not found:
        return min(too_long, key=lambda refused: refused.needed)
    return Lessons(found, encoding, config.train.loss)


def _taught(
    task: Task, config: Config, encoding: Encoding, limit: int, check: Callable[[], None]
) -> tuple[list[_Place], list[TooLong]]:
    """The lessons of one task, and the shortest that did not fit if none does."""
    found: list[_Place] = []
    shortest: TooLong | None = None
    for lesson in _built(task, config, encoding, limit):
        check()
        if isinstance(lesson, Lesson):
            place = _Place(task, lesson.target, lesson.view, lesson.shown, len(lesson.tokens))
            found.append(place)
        elif shortest is None or lesson.needed < shortest.needed:
            shortest = lesson
    return found, [shortest] if shortest and not found else []


def _built(
    task: Task, config: Config, encoding: Encoding, limit: int
) -> Iterator[Lesson | TooLong]:
    rng = generator(config.seed, task.id, "lessons")
    views = views_of(task, config.train.steps * config.train.batch_size, config, "lesson views")
    return each_lesson(task, views, encoding, limit, rng, loss=config.train.loss)
