import random
from collections import Counter
from collections.abc import Iterable
from typing import Literal, TypeVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.strategies import CHARACTERS, ENCODINGS, WORDS, encodings, tasks, text_encoding, views

from arcd.arc.grids import MAX_SIDE, Grid
from arcd.arc.tasks import Pair, Task, load
from arcd.arc.views import PLAIN_COLOURS, View, identity, spread
from arcd.model.encoding import CellEncoding, Encoding
from arcd.model.prompts import IGNORED, Lesson, Question, TooLong, lesson, lessons_of, question

CELLS = CellEncoding()
AMPLE = 100_000
"""A limit that no task of the tests comes near."""

Loss = Literal["target", "outputs"]
T = TypeVar("T")


def built(found: T | TooLong) -> T:
    """What was built, where nothing is too long."""
    assert not isinstance(found, TooLong)
    return found


def blank(rows: int, columns: int) -> Grid:
    return ((0,) * columns,) * rows


def task_of(*pairs: Pair, tests: tuple[Grid, ...] = (((0,),),)) -> Task:
    return Task("task", pairs, tests)


def alike(rows: int, columns: int) -> Pair:
    """A pair whose grids are both of this size."""
    return Pair(blank(rows, columns), blank(rows, columns))


def turned(task: Task, turns: int) -> View:
    return View(False, turns, PLAIN_COLOURS, identity(task).order)


def conversation(
    task: Task, view: View, shown: Iterable[int], query: Grid, encoding: Encoding
) -> list[int]:
    """What a prompt that shows these pairs and asks for `query` has to look like."""
    tokens: list[int] = []
    for place, i in enumerate(shown):
        pair = view.pair(task.train[i])
        tokens += encoding.question(pair.input, first=place == 0) + encoding.answer(pair.output)
    return tokens + encoding.question(view.apply(query), first=not shown)


@st.composite
def seen_tasks(draw: st.DrawFn) -> tuple[Task, View]:
    """A task with a view of it."""
    task = draw(tasks())
    return task, draw(views(len(task.train)))


@st.composite
def left_out(draw: st.DrawFn) -> tuple[Task, View, int]:
    """A task with a view of it and a pair to leave out."""
    task, view = draw(seen_tasks())
    return task, view, draw(st.integers(0, len(task.train) - 1))


@given(left_out(), encodings(), st.sampled_from(["target", "outputs"]))
def test_a_lesson_shows_the_other_pairs_and_asks_for_the_target(
    given_: tuple[Task, View, int], encoding: Encoding, loss: Loss
) -> None:
    task, view, target = given_
    found = built(lesson(task, target, view, encoding, AMPLE, random.Random(0), loss=loss))
    others = tuple(i for i in view.order if i != target)
    query, output = task.train[target].input, task.train[target].output
    asked = conversation(task, view, others, query, encoding)
    assert (found.task, found.target, found.view, found.shown) == (task.id, target, view, others)
    assert list(found.tokens) == asked + encoding.answer(view.apply(output))


@given(seen_tasks(), encodings(), st.data())
def test_a_question_shows_all_pairs_and_asks_for_the_test(
    given_: tuple[Task, View], encoding: Encoding, data: st.DataObject
) -> None:
    task, view = given_
    test = data.draw(st.integers(0, len(task.tests) - 1))
    found = built(question(task, test, view, encoding, AMPLE, random.Random(0)))
    asked = conversation(task, view, view.order, task.tests[test], encoding)
    assert (found.task, found.test, found.view, found.shown) == (task.id, test, view, view.order)
    assert list(found.tokens) == asked


@given(left_out(), encodings(), st.integers(), st.integers(0, 400))
def test_a_lesson_never_exceeds_the_limit(
    given_: tuple[Task, View, int], encoding: Encoding, seed: int, limit: int
) -> None:
    task, view, target = given_
    found = lesson(task, target, view, encoding, limit, random.Random(seed))
    if isinstance(found, Lesson):
        assert len(found.tokens) <= limit
        assert len(found.labels) == len(found.tokens)


@given(seen_tasks(), encodings(), st.integers(), st.integers(0, 400))
def test_a_question_and_its_longest_answer_never_exceed_the_limit(
    given_: tuple[Task, View], encoding: Encoding, seed: int, limit: int
) -> None:
    task, view = given_
    found = question(task, 0, view, encoding, limit, random.Random(seed))
    if isinstance(found, Question):
        assert len(found.tokens) + found.max_new_tokens <= limit


@given(left_out(), encodings(), st.integers(), st.integers(0, 400))
def test_the_target_is_never_among_the_pairs_shown(
    given_: tuple[Task, View, int], encoding: Encoding, seed: int, limit: int
) -> None:
    task, view, target = given_
    found = lesson(task, target, view, encoding, limit, random.Random(seed))
    if isinstance(found, Lesson):
        assert target not in found.shown
        # In the order of the view, each at most once.
        assert found.shown == tuple(i for i in view.order if i in found.shown)
        assert found.shown or len(task.train) == 1


@given(left_out(), encodings(), st.integers(), st.integers(-5, 40))
def test_a_lesson_is_too_long_exactly_when_no_single_pair_fits(
    given_: tuple[Task, View, int], encoding: Encoding, seed: int, spare: int
) -> None:
    task, view, target = given_
    query, output = task.train[target].input, task.train[target].output
    answer = len(encoding.answer(view.apply(output)))
    choices: list[tuple[int, ...]] = [(i,) for i in view.order if i != target] or [()]
    needed = answer + min(
        len(conversation(task, view, shown, query, encoding)) for shown in choices
    )
    found = lesson(task, target, view, encoding, needed + spare, random.Random(seed))
    if spare < 0:
        assert found == TooLong(task.id, "lesson", needed, needed + spare)
    else:
        assert isinstance(found, Lesson)


@given(seen_tasks(), encodings(), st.integers(), st.integers(-5, 40))
def test_a_question_is_too_long_exactly_when_no_single_pair_fits(
    given_: tuple[Task, View], encoding: Encoding, seed: int, spare: int
) -> None:
    task, view = given_
    answer = built(question(task, 0, view, encoding, AMPLE, random.Random(0))).max_new_tokens
    needed = answer + min(
        len(conversation(task, view, (i,), task.tests[0], encoding)) for i in view.order
    )
    found = question(task, 0, view, encoding, needed + spare, random.Random(seed))
    if spare < 0:
        assert found == TooLong(task.id, "question", needed, needed + spare)
    else:
        assert isinstance(found, Question)


@given(left_out(), encodings(), st.integers())
def test_no_pair_is_dropped_where_all_fit(
    given_: tuple[Task, View, int], encoding: Encoding, seed: int
) -> None:
    task, view, target = given_
    whole = built(lesson(task, target, view, encoding, AMPLE, random.Random(0)))
    again = lesson(task, target, view, encoding, len(whole.tokens), random.Random(seed))
    assert again == whole


def test_pairs_are_dropped_by_chance_not_always_the_same() -> None:
    task = task_of(*[alike(3, 3)] * 4)
    whole = built(lesson(task, 0, identity(task), CELLS, AMPLE, random.Random(0)))
    limit, rng = len(whole.tokens) - 1, random.Random(0)
    shown = {built(lesson(task, 0, identity(task), CELLS, limit, rng)).shown for _ in range(50)}
    assert shown == {(1, 2), (1, 3), (2, 3)}


def test_too_long_says_so_in_one_line() -> None:
    assert str(TooLong("aa", "lesson", 5000, 4096)) == (
        "aa: the smallest lesson takes 5000 tokens, 4096 are allowed"
    )


@given(left_out(), encodings())
def test_the_loss_is_on_the_target_alone_where_that_is_asked_for(
    given_: tuple[Task, View, int], encoding: Encoding
) -> None:
    task, view, target = given_
    found = built(lesson(task, target, view, encoding, AMPLE, random.Random(0), loss="target"))
    answer = encoding.answer(view.apply(task.train[target].output))
    assert list(found.labels[-len(answer) :]) == answer
    assert set(found.labels[: -len(answer)]) == {IGNORED}


@given(left_out(), encodings())
def test_the_loss_is_on_all_outputs_but_the_first_where_that_is_asked_for(
    given_: tuple[Task, View, int], encoding: Encoding
) -> None:
    task, view, target = given_
    found = built(lesson(task, target, view, encoding, AMPLE, random.Random(0), loss="outputs"))
    labels: list[int] = []
    for place, i in enumerate((*found.shown, target)):
        pair = view.pair(task.train[i])
        answer = encoding.answer(pair.output)
        labels += [IGNORED] * len(encoding.question(pair.input, first=place == 0))
        # The only pair of a task is first and target at once: without it there is no lesson.
        learnt = place > 0 or i == target
        labels += answer if learnt else [IGNORED] * len(answer)
    assert list(found.labels) == labels


@given(tasks(), st.integers(1, 40), encodings(), st.integers())
def test_every_pair_is_a_target_equally_often(
    task: Task, n: int, encoding: Encoding, seed: int
) -> None:
    seen = spread(n, len(task.train), random.Random(seed), keep_black=0.5)
    found = built(lessons_of(task, seen, encoding, AMPLE, random.Random(seed)))
    counts = Counter(one.target for one in found)
    every = [counts[target] for target in range(len(task.train))]
    assert [one.view for one in found] == seen
    assert max(every) - min(every) <= 1


@given(
    tasks(), encodings(), st.integers(0, 300), st.integers(), st.sampled_from(["target", "outputs"])
)
def test_the_same_seed_gives_the_same_lessons(
    task: Task, encoding: Encoding, limit: int, seed: int, loss: Loss
) -> None:
    seen = spread(8, len(task.train), random.Random(seed), keep_black=0.5)
    first, second = (
        lessons_of(task, seen, encoding, limit, random.Random(seed), loss=loss) for _ in range(2)
    )
    assert first == second


def test_another_seed_gives_other_lessons() -> None:
    task = task_of(*[alike(3, 3)] * 5)
    seen = [identity(task)] * 5
    first, second = (lessons_of(task, seen, CELLS, AMPLE, random.Random(s)) for s in (0, 1))
    assert first != second


@given(tasks(), encodings(), st.integers(0, 300), st.integers())
def test_lessons_are_too_long_exactly_when_none_of_them_fits(
    task: Task, encoding: Encoding, limit: int, seed: int
) -> None:
    seen = spread(8, len(task.train), random.Random(seed), keep_black=0.5)
    found = lessons_of(task, seen, encoding, limit, random.Random(seed))
    single = [
        lesson(task, target, view, encoding, limit, random.Random(0))
        for view in seen
        for target in range(len(task.train))
    ]
    refused = [one for one in single if isinstance(one, TooLong)]
    if len(refused) < len(single):
        assert built(found)
        assert all(isinstance(one, Lesson) for one in built(found))
        assert all(len(one.tokens) <= limit for one in built(found))
    else:
        assert found == min(refused, key=lambda too_long: too_long.needed)


@given(tasks(), encodings(), st.integers(0, 300), st.integers())
def test_every_target_that_fits_some_view_often_enough_is_taught(
    task: Task, encoding: Encoding, limit: int, seed: int
) -> None:
    seen = spread(8 * len(task.train), len(task.train), random.Random(seed), keep_black=0.5)
    fitting = {
        target
        for target in range(len(task.train))
        if all(
            isinstance(lesson(task, target, v, encoding, limit, random.Random(0)), Lesson)
            for v in seen
        )
    }
    assume(fitting)
    found = built(lessons_of(task, seen, encoding, limit, random.Random(seed)))
    assert fitting <= {one.target for one in found}
    assert len(found) == len(seen)


def test_a_target_that_cannot_fit_passes_its_turn() -> None:
    task = task_of(alike(2, 2), alike(2, 2), alike(30, 30))
    found = built(lessons_of(task, [identity(task)] * 10, CELLS, 500, random.Random(0)))
    assert Counter(one.target for one in found) == {0: 5, 1: 5}


@pytest.mark.parametrize("first", [0, 1])
def test_a_target_that_fits_lying_but_not_standing_is_taught_where_it_lies(first: int) -> None:
    # 30 x 3 cells take 121 tokens, 3 x 30 take 94: the first view must not decide for all.
    task = task_of(alike(3, 30), alike(1, 1), alike(1, 1))
    seen = [turned(task, first), turned(task, 1 - first)] * 6
    lying, standing = (
        len(built(lesson(task, 0, turned(task, turns), CELLS, AMPLE, random.Random(0))).tokens) - 6
        for turns in (0, 1)
    )
    assert lying < standing
    found = built(lessons_of(task, seen, CELLS, (lying + standing) // 2, random.Random(0)))
    assert [one.view for one in found] == seen
    assert {one.view.turns for one in found if one.target == 0} == {0}
    assert {one.target for one in found} == {0, 1, 2}


def test_a_task_with_one_pair_is_taught_its_look() -> None:
    task = task_of(alike(2, 2))
    lessons = lessons_of(task, [identity(task)], CELLS, AMPLE, random.Random(0), loss="outputs")
    (found,) = built(lessons)
    answer = CELLS.answer(blank(2, 2))
    assert (found.target, found.shown) == (0, ())
    assert list(found.tokens) == CELLS.question(blank(2, 2), first=True) + answer
    assert list(found.labels) == [IGNORED] * (len(found.tokens) - len(answer)) + answer


def test_a_task_with_one_pair_can_be_too_long() -> None:
    task = task_of(alike(30, 30))
    # BEGIN, INPUT, 30 rows of 30 cells and a NEWLINE, OUTPUT, and the answer.
    needed = 3 + 930 + 931
    found = lessons_of(task, [identity(task)], CELLS, needed - 1, random.Random(0))
    assert found == TooLong("task", "lesson", needed, needed - 1)
    assert isinstance(lessons_of(task, [identity(task)], CELLS, needed, random.Random(0)), list)


def longest(*pairs: Pair, test: Grid, turns: int = 0) -> int:
    task = task_of(*pairs, tests=(test,))
    asked = question(task, 0, turned(task, turns), CELLS, AMPLE, random.Random(0))
    return built(asked).max_new_tokens


def tokens_of(rows: int, columns: int) -> int:
    return len(CELLS.answer(blank(rows, columns)))


def test_an_answer_may_be_as_large_as_its_input_where_outputs_are() -> None:
    assert longest(alike(2, 3), alike(4, 5), test=blank(7, 8)) == tokens_of(7, 8)


def test_an_answer_may_be_as_large_as_all_outputs_are() -> None:
    pairs = Pair(blank(9, 9), blank(3, 2)), Pair(blank(4, 4), blank(3, 2))
    assert longest(*pairs, test=blank(20, 20)) == tokens_of(3, 2)


def test_an_answer_may_be_scaled_as_outputs_are_up_to_the_largest_grid() -> None:
    pairs = Pair(blank(1, 2), blank(3, 4)), Pair(blank(2, 3), blank(6, 6))
    assert longest(*pairs, test=blank(5, 5)) == tokens_of(15, 10)
    assert longest(*pairs, test=blank(20, 20)) == tokens_of(MAX_SIDE, MAX_SIDE)


def test_an_answer_of_unknown_size_may_be_as_large_as_the_query_or_any_output() -> None:
    pairs = Pair(blank(1, 2), blank(2, 2)), Pair(blank(2, 3), blank(9, 3))
    assert longest(*pairs, test=blank(3, 3)) == tokens_of(9, 3)
    assert longest(*pairs, test=blank(10, 3)) == tokens_of(10, 3)


def test_the_longest_answer_is_counted_as_the_view_shows_it() -> None:
    assert longest(alike(1, 9), test=blank(1, 9), turns=0) == tokens_of(1, 9)
    assert longest(alike(1, 9), test=blank(1, 9), turns=1) == tokens_of(9, 1)
    assert tokens_of(9, 1) > tokens_of(1, 9)


LARGE = ("25094a63", "f9d67f8b", "981571dc", "b9630600")


@pytest.fixture(scope="module")
def large() -> dict[str, Task]:
    return {task.id: task for task in load(f"arc1-eval:{','.join(LARGE)}").tasks}


@pytest.mark.parametrize("task_id", LARGE)
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("layering", "cut"),
    # Four grids take 4044 tokens with rows numbered: the frame around them decides, which is
    # 41 words or a hundred characters.
    [("rows+digits", CHARACTERS), ("shape+rows+digits", WORDS), ("code+shape+rows+digits", WORDS)],
)
def test_the_largest_tasks_are_too_long_as_text(
    large: dict[str, Task], task_id: str, chat: bool, layering: str, cut: str
) -> None:
    task, encoding = large[task_id], text_encoding(layering, chat=chat, cut=cut)
    seen = spread(8, len(task.train), random.Random(0), keep_black=0.9)
    taught = lessons_of(task, seen, encoding, 4096, random.Random(0))
    asked = question(task, 0, identity(task), encoding, 4096, random.Random(0))
    assert isinstance(taught, TooLong)
    assert isinstance(asked, TooLong)
    assert (taught.purpose, asked.purpose) == ("lesson", "question")
    assert min(taught.needed, asked.needed) > 4096 == taught.limit == asked.limit


@pytest.mark.parametrize("task_id", LARGE)
def test_the_largest_tasks_fit_as_cells(large: dict[str, Task], task_id: str) -> None:
    task = large[task_id]
    seen = spread(8, len(task.train), random.Random(0), keep_black=0.9)
    taught = built(lessons_of(task, seen, CELLS, 4096, random.Random(0)))
    asked = question(task, 0, identity(task), CELLS, 4096, random.Random(0))
    assert len(taught) == 8
    assert isinstance(asked, Question)
    assert all(one.shown for one in taught)
    assert asked.shown


def test_every_kind_of_encoding_is_tested() -> None:
    assert set(ENCODINGS) == {"cells", "text", "chat"}
