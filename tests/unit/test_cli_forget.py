"""`arcd forget`: which jobs it takes, with a daemon and without one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.commands import arcd
from support.small import candidate, task, task_set
from support.stores import opened, take_on

from arcd.arc.selection import verdict
from arcd.cli import forget
from arcd.config import Config
from arcd.daemon.client import Client
from arcd.jobs import events
from arcd.jobs.journal import new_job
from arcd.jobs.service import JobService


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Jobs 1 and 2 are done, job 3 waits."""
    with opened(tmp_path) as store:
        service = JobService(store)
        for number in (1, 2, 3):
            take_on(service, new_job("job", 10, task_set(task("t")), Config()))
            if number < 3:
                answer = verdict("t", 1, [candidate(task("t"))], 3)
                service.emit(number, events.Answered("t", answer))
    return tmp_path


def left(home: Path) -> list[int]:
    return [job["job"] for job in json.loads(arcd("jobs", "--home", home, "--json").stdout)]


def test_a_finished_job_is_forgotten(home: Path) -> None:
    done = arcd("forget", "1", "--home", home)
    assert (done.returncode, done.stdout) == (0, "forgotten: 1\n")
    assert left(home) == [2, 3]
    assert arcd("status", "1", "--home", home).returncode == 2


def test_all_that_are_old_enough_are_forgotten(home: Path) -> None:
    young = arcd("forget", "--older-than", "30d", "--home", home)
    assert (young.returncode, young.stdout) == (0, "forgotten: no job\n")
    done = arcd("forget", "--older-than", "0s", "--home", home, "--json")
    assert json.loads(done.stdout) == {"forgotten": [1, 2]}
    assert left(home) == [3]


@pytest.mark.parametrize(
    "words", [["3"], ["9"], [], ["1", "--older-than", "1d"], ["--older-than", "soon"]]
)
def test_anything_else_is_refused_and_nothing_is_forgotten(home: Path, words: list[str]) -> None:
    done = arcd("forget", *words, "--home", home)
    assert (done.returncode, done.stdout) == (2, "")
    assert left(home) == [1, 2, 3]


def test_where_a_daemon_runs_it_does_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    class Daemon(Client):
        def job(self, job: int) -> dict[str, Any]:
            return {"job": job, "state": "done"}

        def forget(self, job: int) -> dict[str, Any]:
            told.append(job)
            return {}

    @contextmanager
    def reading(home: Path | None) -> Iterator[Client]:
        with Daemon(home) as client:
            yield client

    monkeypatch.setattr(forget, "reading", reading)
    assert arcd("forget", "2", "--home", home).returncode == 0
    assert told == [2]
    assert left(home) == [1, 2, 3]
