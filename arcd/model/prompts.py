"""Prompts: lessons to train on and questions to answer, of a task seen in a view.

A lesson shows some demonstration pairs and asks for another one, whose output is known
(leave-one-out). A question shows pairs and asks for a test. Pairs that do not fit the limit of
tokens are dropped at random by the seeded generator; what cannot fit is a `TooLong` value. A prompt
names its task, target or test, view and pairs. What a training learns are `lessons.Lessons`. Knows
nothing of models or engines.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from arcd.arc.grids import MAX_SIDE, Grid, shape
from arcd.arc.tasks import Pair, Task
from arcd.arc.views import View, spread
from arcd.config import Config
from arcd.model.encoding import Encoding
from arcd.system.seeds import generator

IGNORED = -100
"""The label of a token without loss (PyTorch's `ignore_index`)."""

Loss = Literal["target", "outputs"]
"""Which tokens of a lesson have a loss; see `TrainConfig.loss`."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A training prompt: some pairs of a task, the input of another, and its output."""

    task: str
    target: int
    """The index of the pair that is asked for."""
    view: View
    shown: tuple[int, ...]
    """The indices of the pairs before it, in the order in which they are shown."""
    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    """For each token itself if it has a loss, else IGNORED."""


@dataclass(frozen=True, slots=True)
class Question:
    """A test prompt: pairs of a task and the input of its test number `test`."""

    task: str
    test: int
    view: View
    shown: tuple[int, ...]
    """The indices of the pairs, in the order in which they are shown."""
    tokens: tuple[int, ...]
    max_new_tokens: int
    """Most tokens of an answer."""


@dataclass(frozen=True, slots=True)
class TooLong:
    """A prompt that does not fit `limit` tokens even with a single pair."""

    task: str
    purpose: Literal["lesson", "question"]
    needed: int
    """Tokens that it takes with the shortest pair."""
    limit: int

    def __str__(self) -> str:
        return (
            f"{self.task}: the smallest {self.purpose} takes {self.needed} tokens, "
            f"{self.limit} are allowed"
        )


def lesson(
    task: Task,
    target: int,
    view: View,
    encoding: Encoding,
    limit: int,
    rng: random.Random,
    *,
    loss: Loss = "target",
) -> Lesson | TooLong:
    """A lesson of at most `limit` tokens that shows the other pairs and asks for pair `target`.

    With loss "outputs" the outputs of the pairs shown have a loss too, except the first: nothing
    before that one tells the rule. The lesson of a task with a single pair shows no pair and asks
    for the only one, which still teaches how the task's grids look.
    """
    parts = _Parts.of(task, view, encoding)
    answer = encoding.answer(view.apply(task.train[target].output))
    others = [i for i in view.order if i != target]
    query = view.apply(task.train[target].input)
    shown = parts.fit(others, query, len(answer), limit, rng)
    if isinstance(shown, int):
        return TooLong(task.id, "lesson", shown, limit)
    return _written(task, target, view, shown, parts, loss)


def written(
    task: Task, target: int, view: View, shown: Sequence[int], encoding: Encoding, loss: Loss
) -> Lesson:
    """The lesson that shows these pairs and asks for pair `target`."""
    return _written(task, target, view, shown, _Parts.of(task, view, encoding), loss)


def _written(
    task: Task, target: int, view: View, shown: Sequence[int], parts: "_Parts", loss: Loss
) -> Lesson:
    answer = parts.encoding.answer(view.apply(task.train[target].output))
    tokens, labels = parts.show(shown, view.apply(task.train[target].input))
    if loss == "target":
        labels = [IGNORED] * len(tokens)
    tokens, labels = tokens + answer, labels + answer
    return Lesson(task.id, target, view, tuple(shown), tuple(tokens), tuple(labels))


def question(
    task: Task, test: int, view: View, encoding: Encoding, limit: int, rng: random.Random
) -> Question | TooLong:
    """A question after all pairs that fit into `limit` tokens, room for the answer included."""
    parts = _Parts.of(task, view, encoding)
    query = view.apply(task.tests[test])
    max_new_tokens = _longest_answer(task, test, view, encoding)
    shown = parts.fit(list(view.order), query, max_new_tokens, limit, rng)
    if isinstance(shown, int):
        return TooLong(task.id, "question", shown, limit)
    tokens, _ = parts.show(shown, query)
    return Question(task.id, test, view, tuple(shown), tuple(tokens), max_new_tokens)


def each_lesson(
    task: Task,
    views: Iterable[View],
    encoding: Encoding,
    limit: int,
    rng: random.Random,
    *,
    loss: Loss = "target",
) -> Iterator[Lesson | TooLong]:
    """One lesson for each of the views, one after the other.

    Each pair is the target equally often, give or take one. A target that does not fit in a view
    (a turned grid has another length) is tried again in the next, and another pair takes its place.
    A view in which no target fits has no lesson. Each target that was tried in vain is a TooLong.
    """
    taught = [0] * len(task.train)
    for view in views:
        for target in sorted(range(len(taught)), key=lambda i: (taught[i], rng.random())):
            found = lesson(task, target, view, encoding, limit, rng, loss=loss)
            yield found
            if isinstance(found, Lesson):
                taught[target] += 1
                break


def lessons_of(
    task: Task,
    views: Sequence[View],
    encoding: Encoding,
    limit: int,
    rng: random.Random,
    *,
    loss: Loss = "target",
) -> list[Lesson] | TooLong:
    """The lessons of `each_lesson`; TooLong if no view, of which there must be one, has one."""
    found = list(each_lesson(task, views, encoding, limit, rng, loss=loss))
    built = [each for each in found if isinstance(each, Lesson)]
    refused = (each for each in found if isinstance(each, TooLong))
    return built or min(refused, key=lambda too_long: too_long.needed)


def build_questions(task: Task, config: Config, encoding: Encoding) -> Iterator[Question | TooLong]:
    """For each test a question in each view, the same for the same seed on every machine."""
    rng = generator(config.seed, task.id, "questions")
    count = config.sample.views or config.sample.samples
    for test in range(len(task.tests)):
        for view in views_of(task, count, config, f"question views {test}"):
            yield question(task, test, view, encoding, config.engine.max_model_len, rng)


def views_of(task: Task, count: int, config: Config, purpose: str) -> list[View]:
    """The views in which a task is shown for this purpose."""
    rng = generator(config.seed, task.id, purpose)
    shown = config.views
    return spread(
        count, len(task.train), rng, keep_black=shown.keep_black, colours=shown.permute_colours
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """A task's demonstration pairs in one view, each by its index."""

    encoding: Encoding
    inputs: tuple[Grid, ...]
    answers: tuple[list[int], ...]
    """The outputs as tokens."""
    lengths: tuple[int, ...]
    """Tokens of each pair, input and output, if it does not open the conversation."""

    @classmethod
    def of(cls, task: Task, view: View, encoding: Encoding) -> "_Parts":
        pairs: list[Pair] = [view.pair(pair) for pair in task.train]
        inputs = tuple(pair.input for pair in pairs)
        answers = tuple(encoding.answer(pair.output) for pair in pairs)
        lengths = tuple(
            len(encoding.question(grid, first=False)) + len(answer)
            for grid, answer in zip(inputs, answers, strict=True)
        )
        return cls(encoding, inputs, answers, lengths)

    def show(self, shown: Sequence[int], query: Grid) -> tuple[list[int], list[int]]:
        """Tokens up to the query's answer, and labels on the outputs of all pairs but the first."""
        tokens: list[int] = []
        labels: list[int] = []
        for place, i in enumerate(shown):
            asked = self.encoding.question(self.inputs[i], first=place == 0)
            output = self.answers[i]
            tokens += asked + output
            labels += [IGNORED] * len(asked) + (output if place else [IGNORED] * len(output))
        asked = self.encoding.question(query, first=not shown)
        return tokens + asked, labels + [IGNORED] * len(asked)

    def fit(
        self, order: list[int], query: Grid, answer: int, limit: int, rng: random.Random
    ) -> list[int] | int:
        """The pairs to show, in order, or the number of tokens that a single pair would take.

        Pairs are dropped in a random order until the rest fits or one is left. If that one does not
        fit, the shortest of all takes its place. `answer` counts the tokens of the query's answer.
        """
        # Exactly one question opens the conversation; here it is counted as if it were this one.
        rest = len(self.encoding.question(query, first=True))
        room = limit - rest - answer
        kept = list(order)
        for i in rng.sample(order, len(order)):
            if sum(self.lengths[j] for j in kept) <= room or len(kept) == 1:
                break
            kept.remove(i)
        if sum(self.lengths[j] for j in kept) <= room:
            return kept
        shortest = min(order, key=self.lengths.__getitem__, default=None)
        if shortest is not None and self.lengths[shortest] <= room:
            return [shortest]
        return rest + answer + (self.lengths[shortest] if shortest is not None else 0)


def _longest_answer(task: Task, test: int, view: View, encoding: Encoding) -> int:
    """Most tokens that the answer to a test needs.

    If all outputs are scaled by one factor, or all have one size, the answer is too. Otherwise it
    may be as large as the query or any output. The tokens are those of a blank grid in the view,
    because rows and columns take different numbers of them.
    """
    height, width = shape(task.tests[test])
    ratios = {
        (len(pair.output) / len(pair.input), len(pair.output[0]) / len(pair.input[0]))
        for pair in task.train
    }
    sizes = {shape(pair.output) for pair in task.train}
    guesses: set[tuple[int, int]] = set()
    if len(ratios) == 1:
        tall, wide = ratios.pop()
        guesses.add((_side(height * tall), _side(width * wide)))
    if len(sizes) == 1:
        guesses |= sizes
    if not guesses:
        guesses = sizes | {(height, width)}
    blank = (view.apply(((0,) * columns,) * rows) for rows, columns in guesses)
    return max(len(encoding.answer(grid)) for grid in blank)


def _side(length: float) -> int:
    return max(1, min(MAX_SIDE, round(length)))
