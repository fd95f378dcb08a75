"""The fakes that a user can start: a run and a daemon where torch cannot be imported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import arcd_process

TASKS = Path(__file__).parents[2] / "examples" / "tasks"

HEAVY = ("torch", "vllm", "transformers", "peft", "safetensors")

BLOCKER = f"""\
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ImportError(f"{{name}} is not installed here")


sys.meta_path.insert(0, Blocker())
"""
"""A `sitecustomize`: Python imports it first of all, in every process that inherits the path."""


@pytest.fixture
def light(tmp_path: Path) -> dict[str, str]:
    """An environment like that of a machine without torch, with a home of its own."""
    folder = tmp_path / "light"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(folder), str(TASKS.parents[1])])
    return {**os.environ, "PYTHONPATH": path, "ARCD_HOME": str(tmp_path / "home")}


def test_where_torch_cannot_be_imported_the_real_ones_say_so(light: dict[str, str]) -> None:
    """This also shows that the blocker works in the daemon's process."""
    done = arcd_process("run", TASKS, env=light)
    assert done.returncode == 1
    assert "A package that this command needs is not installed" in done.stderr


def test_a_run_of_fakes_shows_each_answer_and_the_report(
    light: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "submission.json"
    done = arcd_process("run", TASKS, "--backend", "fake", "--out", out, env=light)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("✓ solved") == len(list(TASKS.iterdir())) == 12
    assert "where the time went" in done.stdout
    assert "score 100.0% of 12 tasks" in done.stdout
    assert len(json.loads(out.read_text())) == 12
    log = (tmp_path / "home" / "daemon.log").read_text()
    assert "fake on cpu" in log
    assert "Traceback" not in log


def test_a_run_writes_its_submission_into_what_is_no_file(tmp_path: Path) -> None:
    # Not /dev/stdout, which root would replace where there is a mistake.
    out = "/dev/fd/1"
    run = ("run", "arc1-train:2", "--backend", "fake", "--home", tmp_path / "home")
    done = arcd_process(*run, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    written, end = json.JSONDecoder().raw_decode(done.stdout)
    document = json.loads(done.stdout[end:])
    assert document["submission"] == out
    assert written == json.loads((tmp_path / "home/jobs/1/submission.json").read_text())


def test_a_daemon_of_fakes_serves_jobs(light: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "arcd", "serve", "--backend", "fake", "--json"],
        env=light,
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        try:
            assert serving.stdout is not None
            assert json.loads(serving.stdout.readline())["event"] == "loading"
            settings = ("--set", "train.steps=2", "--set", "sample.samples=2")
            done = arcd_process("submit", TASKS, "--wait", *settings, env=light)
            assert "done, 12 of 12 tasks answered" in done.stdout, done.stderr
            assert json.loads(arcd_process("status", "--json", env=light).stdout)["base"] == "fake"
            assert arcd_process("stop", env=light).stdout == "stopped\n"
            assert serving.wait(timeout=30) == 0
        finally:
            serving.kill()


def test_interrupted_a_run_of_fakes_goes_on_with_the_same_call(tmp_path: Path) -> None:
    out, fake = tmp_path / "out.json", ("--backend", "fake", "--home", tmp_path / "home")
    run = ("run", TASKS, "--out", out, *fake)
    command = [sys.executable, "-m", "arcd", *map(str, run)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        assert any("answered" in line for line in running.stderr)
        running.send_signal(signal.SIGINT)
        assert "the same command goes on from here" in running.stderr.read()
        assert running.wait(timeout=30) == 130
    out.write_text("merged by hand")
    other = arcd_process("run", "arc1-train:1", "--out", tmp_path / "other.json", *fake)
    assert other.returncode == 0, other.stderr
    assert out.read_text() == "merged by hand", "another job's run leaves it alone"
    done = arcd_process(*run, "--json")
    assert "note: going on with job 1" in done.stderr
    assert json.loads(done.stdout)["metrics"]["score"] == 1.0
    assert len(json.loads(out.read_text())) == 12
