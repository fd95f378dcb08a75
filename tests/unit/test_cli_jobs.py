"""`arcd submit --wait` with a daemon that could not write the submission, and one that could."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from support.commands import arcd

from arcd.cli import jobs
from arcd.daemon.client import Client
from arcd.errors import NotPublished
from arcd.jobs.events import Record

DONE = {
    "job": 1,
    "name": "j",
    "priority": 10,
    "state": "done",
    "submitted": 0.0,
    "tasks": 2,
    "waiting": 0,
    "started": 0,
    "trained": 0,
    "answered": 2,
    "retriable": 0,
}
FULL = {"/full/o.json": "not written: No space left on device"}


class Finished(Client):
    """Whatever is asked for is done at once."""

    status: dict[str, Any] = DONE

    def __enter__(self) -> Self:
        return self

    def send(self, order: object) -> dict[str, Any]:
        return self.status

    def job(self, job: int) -> dict[str, Any]:
        return self.status

    def solutions(self, job: int) -> dict[str, Any]:
        return {}

    def _stream(self, job: int, after: int, *, brief: bool) -> Iterator[Record]:
        return iter(())


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> type[Finished]:
    class Told(Finished):
        pass

    monkeypatch.setattr(jobs, "client_of", Told)
    return Told


@pytest.mark.parametrize("also", [[], ["--json"]])
def test_who_waits_for_a_submission_that_is_not_written_gets_the_reason(
    tmp_path: Path, finished: type[Finished], also: list[str]
) -> None:
    finished.status = {**DONE, "unpublished": FULL}
    done = arcd("submit", "arc1-train:2", "--wait", *also)
    assert done.returncode == 1
    reason = "arcd: job 1: /full/o.json: not written: No space left on device"
    assert done.stderr.splitlines()[-1] == reason
    if also:
        assert json.loads(done.stdout)["unpublished"] == FULL


@pytest.mark.parametrize("status", [DONE, {**DONE, "unpublished": {}}], ids=["0.1.0", "now"])
def test_who_waits_for_a_submission_that_is_written_is_told_nothing(
    finished: type[Finished], status: dict[str, Any]
) -> None:
    finished.status = status
    assert arcd("submit", "arc1-train:2", "--wait").returncode == 0


def test_who_does_not_wait_is_not_told(finished: type[Finished]) -> None:
    finished.status = {**DONE, "unpublished": FULL}
    assert arcd("submit", "arc1-train:2").returncode == 0


def test_who_watches_is_told_and_nothing_has_failed(finished: type[Finished]) -> None:
    finished.status = {**DONE, "unpublished": FULL}
    done = arcd("watch", "1")
    assert done.returncode == 0
    assert "  /full/o.json: not written: No space left on device" in done.stdout.splitlines()


def test_who_follows_in_python_gets_an_error(finished: type[Finished], tmp_path: Path) -> None:
    finished.status = {**DONE, "unpublished": FULL}
    with Finished(tmp_path) as client:
        assert list(client.follow(1)) == []
    with finished(tmp_path) as client, pytest.raises(NotPublished, match="No space left on device"):
        list(client.follow(1))


def test_a_path_that_no_text_can_name_is_refused_in_one_line(finished: type[Finished]) -> None:
    done = arcd("submit", "arc1-train:2", "--out", "/tmp/\udcff.json")
    assert done.returncode == 2
    assert "outs.0" in done.stderr
    assert done.stderr.count("\n") == 1
