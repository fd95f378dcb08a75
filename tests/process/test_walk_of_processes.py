"""A random walk of real processes: `arcd serve` and `arcd run`, killed by every signal at any time.

What a death leaves on the disk is walked over in test_walk, thousands of steps in one process; here
it is the processes that are tried: who starts whom, who kills whom, who charges a death.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from support.running import END_TIMEOUT_S, until
from support.witness import Witness

from arcd import Client
from arcd.arc.tasks import TaskSet, load
from arcd.errors import ArcdError, NoDaemon
from arcd.system.home import Home

TASKS = load("arc1-train:3")
KNOWN = {task.id: TASKS.solutions[task.id] for task in TASKS.tasks}

SETTINGS = {"train": {"steps": 200}, "sample": {"samples": 4}}
"""Half a second for each task: time to be killed in."""

GATE_STEPS, FULL_STEPS = 8, 40

LONGEST_S = 0.8
"""Between two steps at most: a daemon of fakes is ready after half a second."""


class Processes:
    """A home, a file of its user, and the command that runs, if one does."""

    def __init__(self, folder: Path, random: Random) -> None:
        self._random = random
        self.home, self.out = Home(folder / "home"), folder / "out.json"
        self._tasks = folder / "tasks.json"
        self._tasks.write_text(json.dumps(_with_solutions(TASKS)))
        self.witness = Witness(self.home, (self.out,), KNOWN)
        self.command: subprocess.Popen[bytes] | None = None
        self._kills_of_daemons = 0

    def step(self) -> str:
        """Do something; returns what it was."""
        if self.command is not None and self.command.poll() is not None:
            self.command = None
        acts = (
            [self.serve, self.run]
            if self.command is None
            else [
                *(self.submit, self.submit, self.control, self.kill_daemon, self.kill_daemon),
                *(self.kill, self.interrupt, self.interrupt_twice),
            ]
        )
        act = self._random.choice(acts)
        act()
        time.sleep(self._random.uniform(0.0, LONGEST_S))
        self.check()
        return act.__name__

    def serve(self) -> None:
        self._start("serve")

    def run(self) -> None:
        settings = [f"--set=train.steps={self._random.choice((200, 100))}"]
        self._start("run", str(self._tasks), *settings, "--out", str(self.out))

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "arcd", *arguments, "--home", str(self.home.path)]
        self.command = subprocess.Popen(
            [*command, "--backend", "fake"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def submit(self) -> None:
        with self._client() as client:
            outs = self._random.choice((None, self.out))
            client.submit(TASKS, settings=SETTINGS, out=outs)

    def control(self) -> None:
        with self._client() as client:
            jobs = client.jobs()
            act = self._random.choice((client.pause, client.resume, client.cancel, client.retry))
            if jobs:
                act(self._random.choice(jobs)["job"])

    def kill_daemon(self) -> None:
        with suppress(ValueError, KeyError, TypeError, ProcessLookupError, FileNotFoundError):
            holders = json.loads((self.home.path / "lock").read_text())
            os.kill(holders["daemon"]["pid"], signal.SIGKILL)
            self._kills_of_daemons += 1

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def interrupt(self) -> None:
        self._send(self._random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)))

    def interrupt_twice(self) -> None:
        self._send(signal.SIGINT)
        self._send(signal.SIGINT)

    def _send(self, number: signal.Signals) -> None:
        assert self.command is not None
        self.command.send_signal(number)
        if number == signal.SIGKILL:
            self.command.wait(END_TIMEOUT_S)

    @contextmanager
    def _client(self) -> Iterator[Client]:
        """What the daemon refuses, or is not there for, is no failure."""
        with Client(self.home.path) as client, suppress(ArcdError):
            yield client

    def check(self) -> None:
        """What must hold while others write: records are read first, then what follows of them."""
        rows, witness = self.witness.archive.rows(), self.witness
        witness.check_records(rows)
        deaths = Counter(
            (row.job, row.fields["task"]) for row in rows.values() if row.kind == "Interrupted"
        )
        assert all(times <= self._kills_of_daemons for times in deaths.values())
        for store in witness.archive.stores():
            for job in store.journal.state().jobs.values():
                witness.check_submission(store, job)

    def finish(self) -> None:
        """With a daemon that nobody kills all gets done; then all of it must be there."""
        self.close()
        self.serve()
        with Client(self.home.path) as client:
            until(lambda: self._answers(client))
            for status in client.jobs():
                with suppress(ArcdError):
                    client.resume(status["job"])
            for status in client.jobs():
                with suppress(ArcdError):
                    for _ in client.follow(status["job"]):
                        pass
            client.stop()
        assert self.command is not None
        assert self.command.wait(END_TIMEOUT_S) == 0
        self.witness.check_kept()
        for store in self.witness.archive.stores():
            for job in store.journal.state().jobs.values():
                assert job.finished
                text = self.home.submission(job.id).read_text()
                assert text == store.jobs.submission(job.id)
        assert not any(self.home.adapters.glob("*"))

    def _answers(self, client: Client) -> bool:
        with suppress(NoDaemon):
            return bool(client.health()["state"] == "ready")
        return False

    def close(self) -> None:
        """End whatever runs."""
        if self.command is not None:
            self.command.kill()
            self.command.wait(END_TIMEOUT_S)
            self.command = None


def _with_solutions(tasks: TaskSet) -> dict[str, object]:
    """A challenges file that tells the outputs of its tests."""
    return {
        task.id: {
            "train": [{"input": pair.input, "output": pair.output} for pair in task.train],
            "test": [
                {"input": grid, "output": output}
                for grid, output in zip(task.tests, tasks.solutions[task.id], strict=True)
            ],
        }
        for task in tasks.tasks
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "steps"),
    [(0, GATE_STEPS), *(pytest.param(s, FULL_STEPS, marks=pytest.mark.full) for s in range(1, 4))],
)
def test_whatever_is_killed_nothing_is_lost_or_charged_to_the_innocent(
    tmp_path: Path, seed: int, steps: int
) -> None:
    processes, done = Processes(tmp_path, Random(seed)), list[str]()
    try:
        for _ in range(steps):
            done.append(processes.step())
        processes.finish()
    except AssertionError as error:
        raise AssertionError(f"after {', '.join(done)}: {error}") from error
    finally:
        processes.close()
