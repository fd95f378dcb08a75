"""The daemon's log is cut, whoever writes to it, and its last line is found."""

import os
from pathlib import Path

import pytest

from arcd.daemon import daemon_log
from arcd.daemon.daemon_log import DaemonLog


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DaemonLog:
    monkeypatch.setattr(daemon_log, "LOG_BYTES", 10)
    return DaemonLog(tmp_path / "log")


def aside(log: DaemonLog) -> Path:
    return log.path.with_name("log.1")


def test_a_log_is_appended_to_and_put_aside_when_it_is_too_long(log: DaemonLog) -> None:
    for text in ("12345678\n", "of the first\n"):
        with log.open() as file:
            file.write(text.encode())
    assert log.path.read_text() == "12345678\nof the first\n"
    with log.open() as file:
        file.write(b"of the second\n")
    assert log.path.read_text() == "of the second\n"
    assert aside(log).read_text() == "12345678\nof the first\n"


def test_whoever_has_it_open_goes_on_at_its_new_beginning(log: DaemonLog) -> None:
    with log.open() as file:
        for i in range(5):
            os.write(file.fileno(), b"123456789\n" * 2)
            log.cut()
            os.write(file.fileno(), f"{i}\n".encode())
            assert log.path.read_text() == f"{i}\n"
    assert aside(log).stat().st_size < 30


def test_where_nothing_can_be_put_aside_it_is_emptied(log: DaemonLog) -> None:
    aside(log).mkdir()
    log.path.write_text("12345678901\n")
    log.cut()
    assert log.path.read_text() == ""


def test_a_log_that_is_not_there_is_not_cut(log: DaemonLog) -> None:
    log.cut()
    assert not log.path.exists()


@pytest.mark.parametrize(
    ("text", "last"), [("", "(it is empty)"), ("a\nb\n \n", "b"), ("é" * 5000, "é" * 2048)]
)
def test_the_last_line_is_told(log: DaemonLog, text: str, last: str) -> None:
    log.path.write_text(text, encoding="utf-8")
    assert log.last_line() == last


def test_the_last_line_may_have_been_put_aside(log: DaemonLog) -> None:
    log.path.write_text("why it has ended\n")
    log.cut()
    assert log.last_line() == "why it has ended"
