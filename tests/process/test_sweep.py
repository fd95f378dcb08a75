"""Sweeps through a daemon of fakes: a small one, and what is refused before the first job."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import arcd
from support.fakedaemon import SOLUTIONS
from support.homes import stored
from support.running import Running

from arcd.arc.grids import to_lists
from arcd.arc.tasks import load


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.toml"
    path.write_text(f'tasks = "{SOLUTIONS}"\n[train]\nsteps = 2\n[sample]\nsamples = 2\n')
    return path


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A daemon that never gets a job."""
    found = Running(tmp_path_factory.mktemp("sweep") / "home")
    yield found.wait(ready=False)
    found.close()


def test_a_sweep_does_each_point_once(tmp_path: Path, config: Path) -> None:
    running = Running(tmp_path / "home").wait()
    try:
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
    finally:
        running.close()


def test_a_sweep_over_tcp_measures_the_far_jobs(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The home here has a job 1, too, which is another."""
    stored(tmp_path / "here")
    running = Running(tmp_path / "home", host="127.0.0.1", port=0).wait()
    try:
        (port,) = re.findall(r"listening on 127\.0\.0\.1:(\d+)", running.log)
        monkeypatch.setenv("ARCD_HOME", str(tmp_path / "here"))
        monkeypatch.setenv("ARCD_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("ARCD_TOKEN", (running.home / "token").read_text().strip())
        done = arcd("sweep", config, "--over", "train.share=1", "--json")
        assert done.returncode == 0, done.stderr
        trial = json.loads(done.stdout)
        near = json.loads(arcd("eval", 1, "--home", running.home, "--json").stdout)
        assert (trial["job"], trial["accuracy"]) == (1, near["total"]["accuracy"])
        assert json.loads(arcd("eval", 1, "--json").stdout) == near
    finally:
        running.close()


def test_tasks_without_solutions_are_refused(tmp_path: Path, idle: Running, config: Path) -> None:
    (task,) = load("arc1-train:1").tasks
    asked = [{"input": to_lists(test)} for test in task.tests]
    shown = [{"input": to_lists(p.input), "output": to_lists(p.output)} for p in task.train]
    blind = tmp_path / "blind.json"
    blind.write_text(json.dumps({"train": shown, "test": asked}))
    over = ("--over", "train.steps=1", "--tasks", blind)
    done = arcd("sweep", config, *over, "--home", idle.home)
    assert (done.returncode, "no solutions to compare" in done.stderr) == (2, True)
    assert idle.client.jobs() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--over", "train.stepz=1"), "train.stepz: unknown key"),
        (("--over", "train.steps=1,x"), "train.steps"),
        (("--over", "train.steps=1", "--tasks", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_tried(
    idle: Running, config: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = arcd("sweep", config, *arguments, "--home", idle.home)
    assert (done.returncode, said in done.stderr) == (2, True)
    assert idle.client.jobs() == []
