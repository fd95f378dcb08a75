"""Sweeps: what a grid is written as, and a small one through a daemon of fakes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakedaemon import SOLUTIONS
from support.running import Running

from arcd.arc.grids import to_lists
from arcd.arc.metrics import evaluate
from arcd.arc.tasks import load
from arcd.cli.sweep import Axis, axes, points, trial
from arcd.errors import BadConfig, BadJob
from arcd.jobs.history import History
from arcd.jobs.state import Job


def test_axes_are_keys_with_their_values():
    steps = Axis("train.steps", ("20", "60"))
    rate = Axis("train.lr", ("1e-3", "4e-3"))
    assert axes(["train.lr=1e-3,4e-3,train.steps=20,60"]) == (rate, steps)
    assert axes(["train.steps=20,60", "train.lr=1e-3, 4e-3"]) == (steps, rate)
    modules = Axis("train.target_modules", ('["q_proj","v_proj"]', '["q_proj"]'))
    assert axes(['train.target_modules=["q_proj","v_proj"],["q_proj"]']) == (modules,)


@pytest.mark.parametrize("wrong", ["", "20", "20,train.lr=1", "a=", "a=1,,b=2", "=1", "a=1,a=2"])
def test_what_is_no_axis_is_refused(wrong: str):
    with pytest.raises(BadConfig, match="--over"):
        axes([wrong])


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True), max_size=3))
def test_the_points_are_all_combinations(values: list[list[int]]):
    grid = [Axis(f"k{i}", tuple(map(str, each))) for i, each in enumerate(values)]
    found = [tuple(point.values()) for point in points(grid)]
    expected = 1
    for each in values:
        expected *= len(each)
    assert len(found) == len(set(found)) == expected


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(f'tasks = "{SOLUTIONS}"\n[train]\nsteps = 2\n[sample]\nsamples = 2\n')
    return path


def test_a_sweep_does_each_point_once(tmp_path: Path, config: Path):
    with Running(tmp_path / "home") as running:
        running.wait()
        sweep = ("sweep", config, "--over", "train.share=1,2,train.lr=1e-3,2e-3")
        done = running.arcd(*sweep, "--json")
        assert done.returncode == 0, done.stderr
        trials = [json.loads(line) for line in done.stdout.splitlines()]
        assert [trial["job"] for trial in trials] == [1, 2, 3, 4]
        assert [tuple(trial["settings"].values()) for trial in trials] == [
            ("1", "1e-3"),
            ("1", "2e-3"),
            ("2", "1e-3"),
            ("2", "2e-3"),
        ]
        assert all(trial["pass_2"] > 0 for trial in trials[:2])
        assert all(trial["seconds"] > 0 < trial["train_seconds"] for trial in trials)
        table = running.arcd(*sweep)
        assert "share" in table.stdout
        assert all(len(line) <= 80 and "…" not in line for line in table.stdout.splitlines())
        assert len(running.client.jobs()) == 4


def test_tasks_without_solutions_are_refused(tmp_path: Path, config: Path):
    (task,) = load("arc1-train:1").tasks
    asked = [{"input": to_lists(test)} for test in task.tests]
    shown = [{"input": to_lists(p.input), "output": to_lists(p.output)} for p in task.train]
    blind = tmp_path / "blind.json"
    blind.write_text(json.dumps({"train": shown, "test": asked}))
    with Running(tmp_path / "home") as running:
        running.wait(ready=False)
        done = running.arcd("sweep", config, "--over", "train.steps=1", "--tasks", blind)
        assert (done.returncode, "no solutions to compare" in done.stderr) == (2, True)
        assert running.client.jobs() == []


def test_a_sweep_ends_at_a_job_that_is_cancelled():
    history = History(1, solutions={})
    history.state.jobs[1] = Job(1, "a", 1, 0.0, {}, 1, cancelled=True)
    with pytest.raises(BadJob, match="job 1 was cancelled"):
        trial({}, history, evaluate({"a": (((1,),),)}, {}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--over", "train.stepz=1"), "train.stepz: unknown key"),
        (("--over", "train.steps=1,x"), "train.steps"),
        (("--over", "train.steps=1", "--tasks", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_tried(
    tmp_path: Path, config: Path, arguments: tuple[str, ...], said: str
):
    with Running(tmp_path / "home") as running:
        running.wait(ready=False)
        done = running.arcd("sweep", config, *arguments)
        assert (done.returncode, said in done.stderr) == (2, True)
        assert running.client.jobs() == []
