"""A real terminal, tmux, in which a daemon of fakes is watched."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fakedaemon import SOLUTIONS, Plan
from support.running import ENDLESS, SETTINGS, Running

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux here")

TIMEOUT_S = 30.0
"""For something to be seen on the terminal."""


class Terminal:
    """A shell in a tmux server of its own."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._socket = str(folder / "tmux")
        size = ("-x", str(width), "-y", str(height))
        self.tmux("-f", "/dev/null", "new-session", "-d", *size, "env PS1='READY> ' TERM=xterm sh")
        self.tmux("set-option", "-g", "window-size", "manual")
        self.until(lambda: "READY>" in self.seen())

    def tmux(self, *arguments: str) -> str:
        # COLUMNS and LINES, which pytest-xdist sets, would hide the size of the terminal.
        hidden = {"TMUX", "COLUMNS", "LINES"}
        env = {key: value for key, value in os.environ.items() if key not in hidden}
        command = ["tmux", "-S", self._socket, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        return done.stdout

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def seen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def flag(self, name: str) -> str:
        return self.tmux("display-message", "-p", f"#{{{name}}}").strip()

    def until(self, condition: Callable[[], bool]) -> str:
        """What is seen as soon as the condition holds."""
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end, self.seen()
            time.sleep(0.02)
        return self.seen()

    def close(self) -> None:
        self.tmux("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path, 80, 24)
    yield found
    found.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    plan = Plan(str(tmp_path / "marker"), seconds_per_step=0.3)
    with Running(tmp_path / "home", plan) as found:
        yield found.wait()


def arcd(running: Running, *arguments: object) -> str:
    words = (sys.executable, "-m", "arcd", *arguments, "--home", running.home)
    return " ".join(map(str, words))


def test_the_screen_appears_moves_resizes_and_leaves_a_clean_terminal(
    running: Running, terminal: Terminal
) -> None:
    job = running.client.submit(SOLUTIONS, settings=ENDLESS)
    terminal.type("echo before", "Enter", arcd(running, "watch", job), "Enter")
    first = terminal.until(lambda: "step" in terminal.seen())
    assert terminal.flag("alternate_on") == "1"
    assert terminal.flag("cursor_flag") == "0"
    assert f"job {job}" in first.splitlines()[0]
    assert "before" not in first
    terminal.until(lambda: terminal.seen() != first)

    terminal.tmux("resize-window", "-x", "120", "-y", "30")
    # The clock at the right edge has moved along.
    wide = terminal.until(lambda: len(terminal.seen().splitlines()[0]) == 120)
    assert "trained" in wide

    terminal.type("C-c")
    after = terminal.until(lambda: terminal.flag("alternate_on") == "0")
    assert terminal.flag("cursor_flag") == "1"
    assert "before" in after
    assert "step" not in after
    terminal.type("echo exit code $?", "Enter")
    terminal.until(lambda: "exit code 130" in terminal.seen())
    assert running.client.job(job)["state"] == "running"


def test_ctrl_z_gives_the_terminal_back_until_the_command_goes_on(
    running: Running, terminal: Terminal
) -> None:
    job = running.client.submit(SOLUTIONS, settings=ENDLESS)
    terminal.type("set -m; echo before", "Enter", arcd(running, "watch", job), "Enter")
    terminal.until(lambda: terminal.flag("alternate_on") == "1" and "step" in terminal.seen())
    terminal.type("C-z")
    seen = terminal.until(lambda: terminal.flag("alternate_on") == "0")
    assert terminal.flag("cursor_flag") == "1"
    assert "before" in seen
    terminal.type("fg", "Enter")
    terminal.until(lambda: terminal.flag("alternate_on") == "1" and "step" in terminal.seen())
    assert terminal.flag("cursor_flag") == "0"
    terminal.type("C-c")
    terminal.until(lambda: terminal.flag("alternate_on") == "0")


def test_a_job_that_is_watched_to_its_end_leaves_its_status(
    running: Running, terminal: Terminal
) -> None:
    submit = arcd(running, "submit", SOLUTIONS, "--watch", "--set", "sample.samples=2")
    terminal.type(f"{submit} --set train.steps=2", "Enter")
    terminal.until(lambda: terminal.flag("alternate_on") == "1")
    end = terminal.until(lambda: "): done" in terminal.seen())
    assert terminal.flag("alternate_on") == "0"
    assert "4 of 4 tasks answered" in end


def test_killed_it_leaves_a_clean_terminal(running: Running, terminal: Terminal) -> None:
    job = running.client.submit(SOLUTIONS, settings=ENDLESS)
    terminal.type(f"{arcd(running, 'watch', job)} & wait", "Enter")
    terminal.until(lambda: terminal.flag("alternate_on") == "1")
    pane = int(terminal.flag("pane_pid"))
    (child,) = Path(f"/proc/{pane}/task/{pane}/children").read_text().split()
    os.kill(int(child), 15)
    terminal.until(lambda: terminal.flag("alternate_on") == "0")
    assert terminal.flag("cursor_flag") == "1"


def test_without_a_job_it_waits_for_one(running: Running, terminal: Terminal) -> None:
    terminal.type(arcd(running, "watch"), "Enter")
    terminal.until(lambda: "no job yet" in terminal.seen())
    job = running.client.submit(SOLUTIONS, settings=SETTINGS)
    terminal.until(lambda: f"job {job}" in terminal.seen() and "done" in terminal.seen())
    another = running.client.submit(SOLUTIONS, settings=SETTINGS)
    terminal.until(lambda: f"job {another}" in terminal.seen())
    terminal.type("C-c")
    terminal.until(lambda: terminal.flag("alternate_on") == "0")


def test_a_run_of_fakes_shows_the_screen_and_then_the_report(
    tmp_path: Path, terminal: Terminal
) -> None:
    tasks = Path(__file__).parents[2] / "examples" / "tasks"
    run = (sys.executable, "-m", "arcd", "run", tasks, "--backend", "fake")
    command = " ".join(map(str, (*run, "--home", tmp_path / "home")))
    terminal.type(command, "Enter")
    terminal.until(lambda: terminal.flag("alternate_on") == "1")
    terminal.until(lambda: "trained" in terminal.seen())
    end = terminal.until(lambda: "submission" in terminal.seen())
    assert terminal.flag("alternate_on") == "0"
    assert "score 100.0% of 12 tasks" in end
