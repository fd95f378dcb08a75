"""Kills that are nobody's fault: whatever a user, a power cut or a preemption ends, no task pays.

`arcd run` with the fakes is killed again and again, more often than a task may die with its daemon.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.commands import arcd_process

from arcd.errors import StoreFailed
from arcd.jobs.store import Store
from arcd.scheduling.rounds import MOST_DEATHS

TASKS = Path(__file__).parents[2] / "examples" / "tasks"

SLOW = ("--set", "train.steps=400")
"""Half a second of fake training for each of the twelve tasks: time to be killed in."""

IN_FLIGHT_TIMEOUT_S = 30.0
"""For a run of fakes to have tasks in flight, which takes a second on an idle machine."""


def command(home: Path) -> list[str]:
    return ["run", str(TASKS), "--backend", "fake", "--home", str(home), "--json", *SLOW]


def wait_for_tasks_in_flight(home: Path) -> None:
    deadline = time.monotonic() + IN_FLIGHT_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with closing(Store(home, "read")) as store:
                state = store.journal.state()
                if state.ready and state.in_flight():
                    return
        except StoreFailed:
            pass  # it is still being made
        time.sleep(0.02)
    raise AssertionError("no task is in flight")


def kill(run: "subprocess.Popen[bytes]") -> None:
    run.kill()


def interrupt_twice(run: "subprocess.Popen[bytes]") -> None:
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGINT)


@pytest.mark.parametrize("end", [kill, interrupt_twice])
def test_more_kills_than_a_task_may_die_blank_no_task(
    tmp_path: Path, end: "Callable[[subprocess.Popen[bytes]], None]"
) -> None:
    home = tmp_path / "home"
    for _ in range(MOST_DEATHS + 1):
        run = subprocess.Popen(
            [sys.executable, "-m", "arcd", *command(home)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_tasks_in_flight(home)
        end(run)
        run.wait(timeout=30)
    done = arcd_process(*command(home))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["score"] == 1
    with closing(Store(home, "read")) as store:
        jobs = store.journal.state().jobs.values()
    tasks = [task for job in jobs for task in job.tasks.values()]
    assert {task.deaths for task in tasks} == {0}
    assert all(task.answer and task.answer.samples for task in tasks)
