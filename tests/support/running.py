"""A daemon of fakes in a process of its own, and what its users do with it.

`Running` stands for the daemon's supervisor: it starts `fakedaemon.py`, hears its beats until it is
ready, gives a client and the command line, and ends the process. Knows nothing of what the daemon
does inside.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from arcd import Client
from arcd.config import resolve
from arcd.daemon.heartbeat import PULSE_FD, SUPERVISOR_PID, Beat, from_line
from arcd.daemon.options import Options
from arcd.jobs.events import Record
from arcd.model.base_model import bundled
from support.fakedaemon import Plan

FAKE_DAEMON = Path(__file__).with_name("fakedaemon.py")

SETTINGS = {"train": {"steps": 2}, "sample": {"samples": 3}}
"""A job that is done in less than a second."""

PACE_S = 0.05
"""Of a training step, unless a plan says otherwise."""

ENDLESS = {"train": {"steps": 200, "batch_size": 1}}
"""A job whose end no test waits for: at PACE_S the first of its tasks is trained after 10 s."""

START_TIMEOUT_S = 60.0
"""For a daemon of fakes, which needs one second on an idle machine, to be ready."""

END_TIMEOUT_S = 30.0
"""For a daemon that was asked to end."""

COMMAND_TIMEOUT_S = 60.0
"""For an `arcd` command, which needs half a second on an idle machine."""

UNTIL_TIMEOUT_S = 30.0
"""For a condition that is looked at again and again."""


def until(condition: Callable[[], bool]) -> None:
    """Look again and again, for what no event tells of; fails after UNTIL_TIMEOUT_S."""
    deadline = time.monotonic() + UNTIL_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


class Running:
    """A daemon of fakes; this process stands for its supervisor."""

    def __init__(self, home: Path, plan: Plan | None = None, **options: object) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        self.home = home
        self._log = home / "daemon.log"
        given = {"home": home, "base": bundled(), "config": resolve(), "grace": 0.2, **options}
        asked = Options.model_validate(given)
        plan = plan or Plan(str(home / "marker"), seconds_per_step=PACE_S)
        command = [sys.executable, str(FAKE_DAEMON), asked.model_dump_json(), plan.to_json()]
        self._beats, writing = os.pipe()
        env = {**os.environ, SUPERVISOR_PID: str(os.getpid()), PULSE_FD: str(writing)}
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, pass_fds=[writing]
            )
        os.close(writing)
        self.client = Client(home)

    @property
    def log(self) -> str:
        """What the daemons of this home have printed."""
        return self._log.read_text()

    def wait(self, *, ready: bool = True) -> Self:
        """Until its beats say that it serves, and, unless told otherwise, that it is ready."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while left := max(0.0, deadline - time.monotonic()):
            if not select.select([self._beats], [], [], left)[0]:
                break
            heard = os.read(self._beats, 65536)
            if not heard:
                raise AssertionError(f"the daemon has ended: {self.log}")
            beats = [from_line(line) for line in heard.splitlines()]
            if any(isinstance(beat, Beat) and beat.ready >= ready for beat in beats):
                return self
        raise AssertionError(f"the daemon is not ready after {START_TIMEOUT_S} s: {self.log}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def follow(self, job: int) -> list[Record]:
        """The records of a job, which is over then."""
        return list(self.client.follow(job))

    def arcd(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """An `arcd` command on this home."""
        command = [sys.executable, "-m", "arcd", *map(str, arguments), "--home", str(self.home)]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
        )

    def json(self, *arguments: object) -> Any:
        """The document that a command prints with `--json`."""
        done = self.arcd(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self) -> int:
        """The exit code after it was asked to end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=END_TIMEOUT_S)

    def close(self) -> None:
        """Whatever it does: it is gone."""
        self.client.close()
        self.process.kill()
        self.process.wait(timeout=END_TIMEOUT_S)
        os.close(self._beats)
