"""The lessons of an adapter: those of 0.1.0 for the same seed, and tokens only where asked for."""

import hashlib
from collections.abc import Callable

import pytest
from support.small import task

from arcd.arc.tasks import load
from arcd.config import resolve
from arcd.model.encoding import CellEncoding
from arcd.model.lessons import Lessons, build_lessons, lengths
from arcd.model.prompts import Lesson, TooLong

TASKS = load("arc1-train:4").tasks


def lessons(
    count: int, limit: int, *settings: str, check: Callable[[], None] = lambda: None
) -> Lessons:
    config = resolve(settings=settings, seed=7)
    found = build_lessons(TASKS[:count], config, CellEncoding(), limit, check)
    assert isinstance(found, Lessons)
    return found


@pytest.mark.parametrize(
    ("count", "limit", "settings", "many", "digest"),
    [
        (1, 4096, ["train.steps=20"], 40, "a32184cd19b893a5"),
        (4, 700, ["train.steps=5", "train.share=4"], 30, "2454ea34a4e665c6"),
        (4, 400, ["train.steps=5", "train.share=4"], 30, "8db66ce00146e9d7"),
        (3, 4096, ["train.steps=9", "train.share=3", "train.loss=target"], 54, "47b59d83d10660d2"),
    ],
)
def test_the_same_seed_gives_the_lessons_that_it_gave_in_0_1_0(
    count: int, limit: int, settings: list[str], many: int, digest: str
) -> None:
    found = lessons(count, limit, *settings)
    told = hashlib.sha256()
    for one in found:
        shown = (one.task, one.target, one.view, one.shown, one.tokens, one.labels)
        told.update(repr(shown).encode())
    assert len(found) == many
    assert told.hexdigest()[:16] == digest


def test_lessons_are_a_sequence() -> None:
    found = lessons(1, 4096, "train.steps=5")
    every = list(found)
    assert all(isinstance(one, Lesson) for one in every)
    assert [found[i] for i in range(len(found))] == every
    assert list(found[2:7:2]) == every[2:7:2]
    assert found[-1] == every[-1]


def test_the_lengths_are_known_without_the_tokens() -> None:
    found = lessons(4, 700, "train.steps=5", "train.share=4")
    assert found.lengths == lengths(found) == lengths(list(found))
    assert found[3:5].lengths == found.lengths[3:5]


def test_building_can_be_ended_before_any_lesson() -> None:
    class Ended(Exception):
        pass

    asked: list[None] = []

    def check() -> None:
        asked.append(None)
        if len(asked) == 7:
            raise Ended

    with pytest.raises(Ended):
        lessons(1, 4096, "train.steps=20000", check=check)
    assert len(asked) == 7


def test_no_steps_are_no_lessons_and_none_that_fits_is_too_long() -> None:
    assert len(lessons(2, 700, "train.steps=0")) == 0
    large = task(side=20)
    refused = build_lessons([large], resolve(), CellEncoding(), 100)
    assert isinstance(refused, TooLong)
    assert refused.limit == 100
