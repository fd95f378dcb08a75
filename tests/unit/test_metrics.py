import json
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import grids

from arcd.arc.grids import Grid
from arcd.arc.metrics import Answers, Metrics, evaluate
from arcd.arc.submission import BLANK
from arcd.arc.tasks import Solutions
from arcd.errors import BadInput

RIGHT: Grid = ((1, 2), (3, 4))
NEAR: Grid = ((1, 2), (3, 0))
WIDE: Grid = ((1, 2, 3),)

TRUTH: Solutions = {"aa": (RIGHT, ((5,),)), "bb": (((7, 7),),)}
SAMPLES: Answers = {
    "aa": [[RIGHT, NEAR, None, WIDE], [((5,),), ((5,),), ((4,),), None]],
    "bb": [[None, None, None, None]],
}

NOTHING = Metrics(0, 0, 0, 0, 0, 0, unanswered=1, pass_1=0, pass_2=0)
PERFECT = Metrics(1, 1, 1, 1, 1, 1, unanswered=0, pass_1=1, pass_2=1)


def small() -> st.SearchStrategy[Grid | None]:
    return st.one_of(st.none(), grids(max_side=2))


def answers() -> st.SearchStrategy[Answers]:
    """Answers to some of the tests of some of the tasks a, b, c."""
    tests = st.lists(st.lists(small(), max_size=4), max_size=3)
    return st.dictionaries(st.sampled_from("abc"), tests)


def truths() -> st.SearchStrategy[Solutions]:
    tests = st.lists(grids(max_side=2), min_size=1, max_size=2).map(tuple)
    return st.dictionaries(st.sampled_from("abc"), tests, min_size=1)


def test_the_golden_numbers() -> None:
    assert evaluate(TRUTH, SAMPLES).total == Metrics(
        accuracy=0.1875,
        correct_pixels=0.234375,
        max_correct_pixels=0.5,
        correct_size=0.3125,
        any_correct_size=0.5,
        pass_n=0.5,
        unanswered=0.625,
        pass_1=0.5,
        pass_2=0.5,
    )


def test_each_task_is_the_mean_of_its_tests() -> None:
    report = evaluate(TRUTH, SAMPLES)
    assert report.tasks == {
        "aa": Metrics(
            accuracy=0.375,
            correct_pixels=0.46875,
            max_correct_pixels=1,
            correct_size=0.625,
            any_correct_size=1,
            pass_n=1,
            unanswered=0.25,
            pass_1=1,
            pass_2=1,
        ),
        "bb": NOTHING,
    }


def test_samples_and_attempts_are_judged_apart() -> None:
    attempts: Answers = {"aa": [[NEAR, RIGHT], [((5,),)]], "bb": [[]]}
    total = evaluate(TRUTH, attempts, SAMPLES).total
    golden = evaluate(TRUTH, SAMPLES).total
    assert astuple(total)[:7] == astuple(golden)[:7]
    assert (total.pass_1, total.pass_2) == (0.25, 0.5)


def test_samples_can_hold_what_the_attempts_missed() -> None:
    total = evaluate({"a": (RIGHT,)}, {"a": [[NEAR, WIDE]]}, {"a": [[RIGHT, NEAR, WIDE]]}).total
    assert (total.pass_n, total.pass_2) == (1, 0)


def test_only_the_first_two_attempts_count() -> None:
    total = evaluate({"a": (RIGHT,)}, {"a": [[NEAR, WIDE, RIGHT]]}).total
    assert (total.pass_1, total.pass_2, total.pass_n) == (0, 0, 1)


def test_the_score_weighs_tasks_alike_whatever_their_tests() -> None:
    truth = {"one": (RIGHT,), "three": (RIGHT, WIDE, NEAR)}
    report = evaluate(truth, {"one": [[RIGHT]], "three": [[WIDE, RIGHT], [NEAR], [NEAR]]})
    assert report.score == report.total.pass_2 == pytest.approx((1 + 2 / 3) / 2)


def test_a_test_without_answers_is_unanswered_and_wrong() -> None:
    nothing: list[Answers] = [{}, {"a": []}, {"a": [[]]}, {"a": [[None]]}, {"other": [[RIGHT]]}]
    for missing in nothing:
        report = evaluate({"a": (RIGHT,)}, missing)
        assert report.tasks == {"a": NOTHING}
        assert report.total == NOTHING


def test_a_blank_attempt_is_no_answer_unless_it_is_right() -> None:
    blank = [BLANK, BLANK]
    assert evaluate({"a": (RIGHT,)}, {"a": [blank]}).total == NOTHING
    assert evaluate({"a": (BLANK,)}, {"a": [blank]}).total == PERFECT
    half = evaluate({"a": (RIGHT,)}, {"a": [[RIGHT, BLANK]]}).total
    assert (half.unanswered, half.pass_1) == (0.5, 1)


def test_a_sample_that_is_the_blank_grid_is_a_grid() -> None:
    total = evaluate({"a": (RIGHT,)}, {"a": [[BLANK, BLANK]]}, {"a": [[BLANK, None]]}).total
    assert total.unanswered == 0.5


def test_a_missing_second_test_halves_a_task() -> None:
    found = evaluate({"a": (RIGHT, WIDE)}, {"a": [[RIGHT]]}).tasks["a"]
    assert found == Metrics(*(0.5,) * 9)


def test_answers_that_the_truth_does_not_know_are_not_looked_at() -> None:
    found: Answers = {"a": [[RIGHT], [NEAR], [None]], "other": [[WIDE]]}
    assert evaluate({"a": (RIGHT,)}, found).total == PERFECT


def test_no_pixel_is_right_where_the_size_differs() -> None:
    found = evaluate({"a": (((1, 1), (1, 1)),)}, {"a": [[((1, 1),), ((1, 1, 1, 1),)]]}).total
    assert (found.correct_pixels, found.correct_size) == (0, 0)


def test_without_truth_there_is_nothing_to_evaluate() -> None:
    with pytest.raises(BadInput, match="no task with a known solution"):
        evaluate({}, {"a": [[RIGHT]]})


@given(truths(), answers(), answers())
def test_every_number_is_from_0_to_1_and_they_are_ordered(
    truth: Solutions, attempts: Answers, samples: Answers
) -> None:
    report = evaluate(truth, attempts, samples)
    assert set(report.tasks) == set(truth)
    for found in (*report.tasks.values(), report.total):
        assert all(0 <= number <= 1 for number in astuple(found))
        assert found.pass_1 <= found.pass_2
        assert found.accuracy <= found.correct_pixels <= found.max_correct_pixels
        assert found.correct_pixels <= found.correct_size <= found.any_correct_size
        assert found.accuracy <= found.pass_n <= found.max_correct_pixels
        assert found.correct_size + found.unanswered <= 1 + 1e-9


@given(truths())
def test_the_truth_itself_is_perfect(truth: Solutions) -> None:
    report = evaluate(
        truth, {task_id: [[grid] for grid in grids] for task_id, grids in truth.items()}
    )
    assert report.total == PERFECT
    assert report.score == 1


@given(truths(), answers())
def test_a_report_survives_its_json_form(truth: Solutions, found: Answers) -> None:
    report = evaluate(truth, found)
    value = json.loads(json.dumps(report.to_json()))
    assert value["score"] == report.score
    assert Metrics(**value["total"]) == report.total
    assert {i: Metrics(**numbers) for i, numbers in value["tasks"].items()} == report.tasks
