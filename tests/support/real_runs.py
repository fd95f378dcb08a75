"""`arcd` with the real trainer and the real engine, in processes of its own.

Each start of a daemon loads torch, vLLM and a model, which takes 15 s: a test that starts one
proves several things.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from arcd.errors import StoreFailed
from arcd.jobs import events
from arcd.jobs.store import Store

E = TypeVar("E", bound=events.Event)

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
SMALL = ["--set", "train.steps=4", "--set", "sample.samples=3"]
CACHE = ["--set", "engine.cpu_cache_gib=1"]


def arcd(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "arcd", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env={**os.environ, **env}
    )


@contextmanager
def start(*arguments: object) -> "Iterator[subprocess.Popen[str]]":
    """A command that goes on; a test that fails does not wait for its end."""
    command = [sys.executable, "-m", "arcd", *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as running:
        try:
            yield running
        except BaseException:
            running.kill()
            raise


def wait_for(home: Path, kind: str) -> events.Record:
    """The first record of a kind after those that are there already."""
    after = Store(home, "read").journal.state().seq if (home / "arcd.db").is_file() else 0
    for _ in range(1200):
        time.sleep(0.1)
        with suppress(StoreFailed):
            found = Store(home, "read").journal.records(after)
            if record := next((r for r in found if events.kind(r.event) == kind), None):
                return record
    raise TimeoutError(kind)


def kill_daemon_at(home: Path, kind: str) -> None:
    wait_for(home, kind)
    holders = json.loads((home / "lock").read_text())
    os.kill(holders["daemon"]["pid"], signal.SIGKILL)


def without_solutions(names: Iterable[str]) -> dict[str, Any]:
    """Tasks of the examples as in a challenges file of Kaggle's."""
    found = {}
    for name in names:
        value = json.loads((EXAMPLES / f"{name}.json").read_text())
        found[name] = {**value, "test": [{"input": t["input"]} for t in value["test"]]}
    return found


def write_tasks(folder: Path, tasks: dict[str, Any]) -> Path:
    path = folder / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


def few_tasks(folder: Path) -> Path:
    """Two small tasks, and one that is too long."""
    full = [[7] * 30] * 30
    too_long = {"train": [{"input": full, "output": full}] * 2, "test": [{"input": full}]}
    return write_tasks(folder, {**without_solutions(["6ea4a07e", "2072aba6"]), "toolong": too_long})


def small_tasks(folder: Path, count: int) -> Path:
    """The smallest of the examples, each of which is trained in a second or two."""
    smallest = sorted(EXAMPLES.iterdir(), key=lambda path: path.stat().st_size)[:count]
    return write_tasks(folder, without_solutions(path.stem for path in smallest))


SHORT = [*CACHE, "--set", "train.max_seq_len=2000", "--set", "engine.max_model_len=2000"]


class Done:
    """A finished `arcd run`: what it printed, and the store it left."""

    def __init__(self, folder: Path, document: dict[str, Any], progress: str) -> None:
        self.document, self.progress = document, progress
        self.home = folder / "home"
        self.store = Store(self.home, "read")
        self.job = int(document["job"])

    def records(self, kind: type[E]) -> list[E]:
        found = (record.event for record in self.store.journal.records(job=self.job))
        return [event for event in found if isinstance(event, kind)]
