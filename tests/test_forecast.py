"""Forecasts: more work takes longer, and nothing else does."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small import task
from strategies import tasks

from arcd.config import Config, resolve
from arcd.encoding import CellEncoding
from arcd.forecast import Rates, Times, Work, times, work
from arcd.prompts import Lesson, Question
from arcd.solver import build_lessons, build_questions

SETTINGS = {
    "train.steps": (5, 6),
    "train.batch_size": (2, 3),
    "sample.samples": (4, 5),
}


def configured(**changed: int) -> Config:
    values = {key: low for key, (low, _) in SETTINGS.items()} | changed
    return resolve(settings=[f"{key}={value}" for key, value in values.items()])


@pytest.mark.parametrize("key", SETTINGS)
@given(of=tasks())
def test_more_steps_lessons_or_samples_take_longer_in_their_lane_alone(key, of):
    low, high = (work(of, configured(**{key: value})) for value in SETTINGS[key])
    if key.startswith("train"):
        assert high.train > low.train
        assert (high.prefill, high.decode) == (low.prefill, low.decode)
    else:
        assert high.train == low.train
        assert high.prefill > low.prefill
        assert high.decode > low.decode


@pytest.mark.parametrize(
    "larger",
    [task(side=4), task(pairs=4)],
    ids=["larger grids", "more pairs"],
)
def test_a_larger_task_takes_longer_in_both_lanes(larger):
    small, large = work(task(), Config()), work(larger, Config())
    assert large.train > small.train
    assert large.prefill > small.prefill
    assert large.decode >= small.decode


def test_each_test_is_asked_for_itself():
    one, two = work(task(tests=1), Config()), work(task(tests=2), Config())
    assert two == Work(one.train, 2 * one.prefill, 2 * one.decode)


def test_without_steps_nothing_is_trained():
    assert work(task(), resolve(settings=["train.steps=0"])).train == 0


@given(tasks(max_pairs=3, max_side=8))
def test_tokens_are_those_of_an_encoding_with_one_for_each_cell(of):
    assume(len(of.train) > 1)
    config, encoding = configured(), CellEncoding()
    lessons = build_lessons(of, config, encoding, config.train.max_seq_len)
    assert isinstance(lessons, list)
    questions = list(build_questions(of, config, encoding))
    found = work(of, config)
    trained = sum(len(lesson.tokens) for lesson in lessons if isinstance(lesson, Lesson))
    prompts = sum(len(q.tokens) for q in questions if isinstance(q, Question))
    assert found.train == pytest.approx(trained, rel=0.3)
    assert found.prefill == pytest.approx(prompts, rel=0.3)


@given(tasks())
def test_no_prompt_is_longer_than_it_may_be(of):
    config = resolve(settings=["train.max_seq_len=20", "engine.max_model_len=30"])
    found = work(of, config)
    assert found.train <= config.train.steps * config.train.batch_size * 20
    assert found.prefill <= config.sample.samples * len(of.tests) * 30


def test_seconds_are_work_over_rates():
    found = times(Work(100, 60, 40), Rates(train=10, prefill=20, decode=5))
    assert found == Times(10, 11)
    assert found.total == 21


@given(tasks(), st.floats(0.1, 10))
def test_a_machine_that_is_faster_in_everything_changes_all_times_alike(of, factor):
    found = work(of, Config())
    slow = times(found, Rates(1000, 1000, 100))
    fast = times(found, Rates(1000 * factor, 1000 * factor, 100 * factor))
    assert fast.train * factor == pytest.approx(slow.train)
    assert fast.infer * factor == pytest.approx(slow.infer)
