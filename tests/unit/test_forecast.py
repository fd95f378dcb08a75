"""Forecasts: more work takes longer, and nothing else does."""

from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support.small import task
from support.strategies import tasks

from arcd.arc.grids import Grid
from arcd.arc.selection import ATTEMPTS, CONTENDERS
from arcd.arc.tasks import Pair, Task
from arcd.config import Config, on_device, resolve
from arcd.jobs.events import Times
from arcd.model.encoding import CellEncoding
from arcd.model.lessons import build_lessons
from arcd.model.prompts import Question, TooLong, build_questions
from arcd.scheduling.forecast import NO_WORK, Rates, Sizes, Work, times, work

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
def test_more_steps_lessons_or_samples_take_longer_in_their_lane_alone(key: str, of: Task) -> None:
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
def test_a_larger_task_takes_longer_in_both_lanes(larger: Task) -> None:
    small, large = work(task(), Config()), work(larger, Config())
    assert large.train > small.train
    assert large.prefill > small.prefill
    assert large.decode >= small.decode


@given(tasks(max_pairs=3, max_side=8), st.integers(1, 20), st.integers(1, 20))
def test_each_contender_is_read_once_more_in_each_view_that_it_is_judged_in(
    of: Task, samples: int, views: int
) -> None:
    changed = {"sample.samples": samples}
    votes = work(of, configured(**changed))
    found = work(of, configured(**changed, **{"sample.judging_views": views}))
    prompts = votes.prefill // samples
    answers = len(of.tests) * votes.decode // (samples * len(of.tests))
    judged = min(samples, CONTENDERS) * min(samples, views) if samples > ATTEMPTS else 0
    assert found == replace(votes, prefill=votes.prefill + judged * (prompts + answers))


def test_each_test_is_asked_for_itself() -> None:
    one, two = work(task(tests=1), Config()), work(task(tests=2), Config())
    assert two == replace(one, prefill=2 * one.prefill, decode=2 * one.decode)


def test_sequences_beyond_a_batch_take_another_round() -> None:
    one = work(task(), resolve(settings=["sample.samples=64"]))
    two = work(task(), resolve(settings=["sample.samples=65"]))
    assert two.rounds == 2 * one.rounds
    config = resolve(settings=["sample.samples=65"])
    assert work(task(), on_device(config, "cuda")).rounds == one.rounds


def test_works_add_up_to_what_they_are_together() -> None:
    works = [work(task(side=side), Config()) for side in (3, 5, 9)]
    together = sum(works, NO_WORK)
    assert times(together).train == pytest.approx(sum(times(each).train for each in works))
    assert times(together).infer == pytest.approx(sum(times(each).infer for each in works))
    assert together - works[0] == works[1] + works[2]


def test_without_work_there_is_nothing_to_wait_for() -> None:
    assert times(NO_WORK) == Times(0.0, 0.0)


def test_without_steps_nothing_is_trained() -> None:
    assert work(task(), resolve(settings=["train.steps=0"])).train == 0


def narrow(*heights: int) -> list[Grid]:
    """Grids of one column: on their sides they have one row, and fewer ends of rows."""
    return [((0,),) * height for height in heights]


@given(tasks(max_pairs=3, max_side=8))
@example(Task("00010000", (Pair(*narrow(1, 5)), Pair(*narrow(5, 6))), tuple(narrow(6))))
def test_tokens_are_those_of_an_encoding_with_one_for_each_cell(of: Task) -> None:
    assume(len(of.train) > 1)
    config, encoding = configured(), CellEncoding()
    lessons = build_lessons([of], config, encoding, config.train.max_seq_len)
    assert not isinstance(lessons, TooLong)
    questions = list(build_questions(of, config, encoding))
    found = work(of, config)
    trained = sum(lessons.lengths)
    prompts = sum(len(q.tokens) for q in questions if isinstance(q, Question))
    assert found.train == pytest.approx(trained, rel=0.3)
    assert found.prefill == pytest.approx(prompts, rel=0.3)


@given(tasks())
def test_no_prompt_is_longer_than_it_may_be(of: Task) -> None:
    limits = ["train.max_seq_len=20", "engine.max_model_len=30"]
    config = resolve(settings=[*limits, "sample.judging_views=8"])
    found = work(of, config)
    assert found.train <= config.train.steps * config.train.batch_size * 20
    judged = CONTENDERS * config.sample.judging_views
    assert found.prefill <= (config.sample.samples + judged) * len(of.tests) * 30


def test_seconds_are_amounts_times_rates() -> None:
    rates = Rates(task=5, step=2, token=0.1, round=3, prompt=0.05, row=0.2)
    found = times(Work(trainings=1, steps=4, train=100, prefill=60, decode=40, rounds=2), rates)
    assert found == Times(5 + 8 + 10, 6 + 3 + 8)
    assert found.total == 40


def test_the_cold_rates_decode_as_was_measured() -> None:
    """The 5M model with a rank-16 adapter on two cores, in tokens a second."""
    for sequences, measured in ((1, 46), (8, 297), (32, 688), (128, 1067)):
        assert Rates().decode(sequences) == pytest.approx(measured, rel=0.03)


def test_a_text_encoding_is_counted_in_its_own_tokens() -> None:
    class Wordy(CellEncoding):
        def answer(self, grid: Grid) -> list[int]:
            return [0] * 1000

    assert work(task(), configured(), Sizes(Wordy())).rounds == 1000


@given(tasks(), st.floats(0.1, 10))
def test_a_machine_that_is_faster_in_everything_changes_all_times_alike(
    of: Task, factor: float
) -> None:
    found = work(of, Config())
    some = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    fast, slow = times(found, Rates(*some)), times(found, Rates(*(r * factor for r in some)))
    assert fast.train * factor == pytest.approx(slow.train)
    assert fast.infer * factor == pytest.approx(slow.infer)
