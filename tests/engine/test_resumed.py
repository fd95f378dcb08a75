"""A run with real models that is taken up again by the same command."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from support.real_runs import SHORT, SMALL, Done, arcd, small_tasks, start, wait_for

from arcd.arc import submission
from arcd.arc.tasks import load
from arcd.jobs import events
from arcd.jobs.store import Store

pytestmark = pytest.mark.engine


def test_a_run_killed_whole_and_then_interrupted_goes_on_with_the_same_command(
    tmp_path: Path,
) -> None:
    home, out = tmp_path / "home", tmp_path / "submission.json"
    file = small_tasks(tmp_path, 8)
    tasks = {task.id: len(task.tests) for task in load(str(file)).tasks}
    command = ["run", file, "--out", out, "--home", home, "--json", *SMALL, *SHORT]
    with start(*command) as first:
        record = wait_for(home, "Sampled")
        first.kill()
    assert {name: len(tests) for name, tests in submission.read(out).items()} == tasks
    with start(*command) as second:
        wait_for(home, "Training")
        second.send_signal(signal.SIGINT)
        _, stderr = second.communicate(timeout=60)
    assert second.returncode == 130, stderr
    assert "the same command goes on from here" in stderr
    state = Store(home, "read").journal.state()
    assert record.job is not None
    assert (state.daemon, state.jobs[record.job].state, state.in_flight()) == (None, "paused", [])
    done = arcd(*command)
    assert done.returncode == 0, done.stderr
    third = Done(tmp_path, json.loads(done.stdout), done.stderr)
    assert third.job == record.job
    answered = Counter(event.task for event in third.records(events.Answered))
    assert answered == dict.fromkeys(tasks, 1)
    sampled = [(c.task, c.test, c.sample) for c in third.store.jobs.candidates(third.job)]
    assert len(sampled) == len(set(sampled)) == 3 * sum(tasks.values())
