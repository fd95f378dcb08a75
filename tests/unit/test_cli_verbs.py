"""What verbs do while something changes under them: the log, the jobs, the terminal."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from arcd.arc.tasks import Solutions
from arcd.cli import daemon, jobs
from arcd.cli.run import which_job
from arcd.display.suspension import suspendable
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.state import State

# logs -f


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "daemon.log"
    path.write_text("1\n2\n3\n")
    return path


def followed(
    path: Path, monkeypatch: pytest.MonkeyPatch, *changes: Callable[[], object], lines: int = 100
) -> list[str]:
    """What is printed if one of these changes happens whenever the reader would wait."""
    left, found = list(changes), list[str]()

    def wait(seconds: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr(time, "sleep", wait)
    with suppress(KeyboardInterrupt):
        for line in daemon._lines(path, lines, follow=True):
            found.append(line)
        raise AssertionError("it ended by itself")
    return found


def write(path: Path, text: str, mode: str = "a") -> Callable[[], None]:
    def change() -> None:
        with path.open(mode) as file:
            file.write(text)

    return change


def test_a_log_that_is_put_aside_is_followed_in_its_successor(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = log.with_name("daemon.log.1")
    changes = (
        write(log, "4\n"),
        lambda: log.rename(aside),
        write(aside, "5\n"),
        write(log, "6\n"),
        write(log, "7\n"),
    )
    assert followed(log, monkeypatch, *changes) == list("1234567")


def test_the_last_words_in_a_log_that_is_put_aside_are_not_lost(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = log.with_name("daemon.log.1")

    def rotate() -> None:
        write(log, "4\n5")()
        log.rename(aside)
        write(log, "6\n")()

    assert followed(log, monkeypatch, rotate) == list("123456")


def test_a_log_that_is_emptied_is_followed_from_its_beginning(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert followed(log, monkeypatch, write(log, "4\n", "w"), lines=2) == list("234")


def test_a_line_is_printed_when_it_is_whole(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = (write(log, "no"), write(log, "t y"), write(log, "et\n"))
    assert followed(log, monkeypatch, *changes, lines=1) == ["3", "not yet"]


# watch, without a number


class FakeClient:
    """A daemon whose jobs go on as a script says: each time that `watch` has read all there is."""

    def __init__(self, script: Iterator[None]) -> None:
        self.records: dict[int, list[Record]] = {}
        self.state = State()
        self._script = script

    def add(self, job: int, *new: events.Event) -> None:
        for event in new:
            record = Record(self.state.seq + 1, 0.0, job, event)
            self.state.apply(record)
            self.records.setdefault(job, []).append(record)

    def go_on(self, *_: object) -> None:
        try:
            next(self._script)
        except StopIteration:
            raise KeyboardInterrupt from None

    def jobs(self) -> list[dict[str, Any]]:
        return [job.to_json() for job in self.state.jobs.values()]

    def solutions(self, job: int) -> Solutions:
        return {}

    def forecast(self, job: int) -> dict[str, Any]:
        return {"seconds": None}

    def follow(self, job: int, after: int = 0, *, brief: bool = False) -> Iterator[Record]:
        assert brief, "a screen does not need the steps and samples of the past"
        while True:
            for record in self.records[job]:
                if record.seq > after:
                    after = record.seq
                    yield record
            if self.state.jobs[job].finished:
                return
            self.go_on()


class FakeDisplay:
    def __init__(self) -> None:
        self.shown: list[tuple[int, str]] = []

    def of(self, job: int, solutions: Solutions, ask: object) -> Callable[[Record], None]:
        return lambda record: self.shown.append((job, events.kind(record.event)))

    def note(self, text: str) -> None: ...


def watched(
    script: Callable[["FakeClient"], Iterator[None]], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, str]]:
    client: FakeClient

    def lines() -> Iterator[None]:
        yield from script(client)

    client = FakeClient(lines())
    client.go_on()
    monkeypatch.setattr(time, "sleep", client.go_on)
    display = FakeDisplay()
    with pytest.raises(KeyboardInterrupt):
        jobs._follow_newest(client, display)  # type: ignore[arg-type]
    return display.shown


def test_a_job_that_is_paused_is_left_for_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def script(client: FakeClient) -> Iterator[None]:
        client.add(2, events.Submitted("two", 1, ("a",)), events.Paused())
        client.add(1, events.Submitted("one", 1, ("a", "b")), events.Started("a", 1, 1))
        yield
        client.add(1, events.Paused())
        yield  # still in flight: it is watched to the end of that
        client.add(1, events.Released("a"))
        client.add(2, events.Resumed(), events.Started("a", 1, 1))
        yield
        client.add(1, events.Resumed())
        client.add(2, events.Cancelled())
        yield
        client.add(1, events.Cancelled())
        yield

    assert watched(script, monkeypatch) == [
        *[(1, kind) for kind in ("Submitted", "Started", "Paused", "Released")],
        *[(2, kind) for kind in ("Submitted", "Paused", "Resumed", "Started", "Cancelled")],
        *[(1, kind) for kind in ("Submitted", "Started", "Paused", "Released")],
        *[(1, kind) for kind in ("Resumed", "Cancelled")],
    ]


def test_a_paused_job_is_shown_where_no_other_is_and_goes_on_when_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def script(client: FakeClient) -> Iterator[None]:
        client.add(1, events.Submitted("one", 1, ("a",)), events.Paused())
        yield
        yield
        client.add(1, events.Resumed(), events.Started("a", 1, 1))
        yield
        client.add(1, events.Cancelled())
        yield

    kinds = ("Submitted", "Paused", "Resumed", "Started", "Cancelled")
    assert watched(script, monkeypatch) == [(1, kind) for kind in kinds]


# run: which job it is


def status(job: int, state: str, submitted: float = 1.0, **changes: object) -> dict[str, Any]:
    found = {"job": job, "name": "n", "tasks": 4, "answered": 1, "state": state}
    return {**found, "submitted": submitted, **changes}


def test_a_run_says_which_job_it_goes_on_with_and_which_not() -> None:
    taken = status(3, "running", submitted=1.0)
    assert which_job(taken, [taken], begun=2.0) == "going on with job 3: 1 of 4 tasks are answered"
    new = status(5, "queued", submitted=3.0)
    others = [status(3, "paused"), status(4, "done"), status(2, "paused", name="other"), new]
    said = which_job(new, others, begun=2.0)
    assert said == (
        "job 5 begins anew: unfinished job 3 has other tasks, settings or another budget"
    )
    assert which_job(new, [status(4, "done"), new], begun=2.0) is None


# Ctrl-Z


def test_a_stopped_command_gives_the_terminal_back_and_takes_it_again() -> None:
    did: list[str] = []

    class Screen:
        def start(self, refresh: bool = False) -> None:
            did.append("start")

        def stop(self) -> None:
            did.append("stop")

    before = signal.getsignal(signal.SIGTSTP)
    with suspendable(Screen(), lambda: did.append("suspended")):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTSTP)
    assert did == ["stop", "suspended", "start"] * 2
    assert signal.getsignal(signal.SIGTSTP) == before
