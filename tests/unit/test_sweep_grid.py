"""Sweeps: what a grid of settings is written as, its points, and what makes a trial."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.arc.metrics import evaluate
from arcd.cli.sweep import Axis, axes, points, trial
from arcd.errors import BadConfig, BadJob
from arcd.jobs.history import History
from arcd.jobs.state import Job


def test_axes_are_keys_with_their_values() -> None:
    steps = Axis("train.steps", ("20", "60"))
    rate = Axis("train.lr", ("1e-3", "4e-3"))
    assert axes(["train.lr=1e-3,4e-3,train.steps=20,60"]) == (rate, steps)
    assert axes(["train.steps=20,60", "train.lr=1e-3, 4e-3"]) == (steps, rate)
    modules = Axis("train.target_modules", ('["q_proj","v_proj"]', '["q_proj"]'))
    assert axes(['train.target_modules=["q_proj","v_proj"],["q_proj"]']) == (modules,)


@pytest.mark.parametrize("wrong", ["", "20", "20,train.lr=1", "a=", "a=1,,b=2", "=1", "a=1,a=2"])
def test_what_is_no_axis_is_refused(wrong: str) -> None:
    with pytest.raises(BadConfig, match="--over"):
        axes([wrong])


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True), max_size=3))
def test_the_points_are_all_combinations(values: list[list[int]]) -> None:
    grid = [Axis(f"k{i}", tuple(map(str, each))) for i, each in enumerate(values)]
    found = [tuple(point.values()) for point in points(grid)]
    expected = 1
    for each in values:
        expected *= len(each)
    assert len(found) == len(set(found)) == expected


def test_a_sweep_ends_at_a_job_that_is_cancelled() -> None:
    history = History(1, solutions={})
    history.state.jobs[1] = Job(1, "a", 1, 0.0, {}, 1, cancelled=True)
    with pytest.raises(BadJob, match="job 1 was cancelled"):
        trial({}, history, evaluate({"a": (((1,),),)}, {}))
