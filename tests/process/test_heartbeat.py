import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.daemon.heartbeat import (
    LONGEST_MESSAGE,
    PULSE_FD,
    SUPERVISOR_PID,
    Activity,
    Beat,
    Failure,
    Pulse,
    from_line,
    to_line,
)

PIPE_BUF = 4096
BEAT = Beat(True, Activity(True, 3), Activity(False, 0))

lanes = st.builds(Activity, busy=st.booleans(), steps=st.integers(0))
whole = st.characters(exclude_categories=["Cs"])
beats = st.builds(
    Beat,
    ready=st.booleans(),
    engine=lanes,
    trainer=lanes,
    stopping=st.booleans(),
    loading=st.text(whole, max_size=40),
)
failures = st.builds(
    Failure,
    message=st.text(whole, max_size=LONGEST_MESSAGE),
    exit_code=st.integers(0, 255),
    passing=st.booleans(),
)


@pytest.fixture
def pipe() -> Iterator[tuple[Pulse, int]]:
    """A pulse and the end of the pipe where it is heard."""
    reading, writing = os.pipe()
    yield Pulse(writing), reading
    os.close(reading)
    os.close(writing)


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a child process."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_fields_that_came_later_may_be_missing() -> None:
    later = {"loading": "", "passing": False}
    for message in (BEAT, Failure("no such base", 2)):
        fields = json.loads(to_line(message))
        old = {key: value for key, value in fields.items() if key not in later}
        assert from_line(json.dumps(old).encode()) == message


@given(st.one_of(beats, failures))
def test_a_message_survives_the_wire(message: Beat | Failure) -> None:
    assert from_line(to_line(message)) == message


@given(st.one_of(beats, failures))
def test_a_message_is_one_line(message: Beat | Failure) -> None:
    assert to_line(message).count(b"\n") == 1
    assert to_line(message).endswith(b"}\n")


@given(st.one_of(beats, failures), st.data())
def test_a_torn_line_is_ignored(message: Beat | Failure, data: st.DataObject) -> None:
    line = to_line(message).strip()
    cut = data.draw(st.integers(0, len(line) - 1))
    assert from_line(line[:cut]) is None
    assert cut == 0 or from_line(line[cut:]) is None


@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_foreign_bytes_are_ignored(line: bytes) -> None:
    assert from_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"7",
        b'"message"',
        b'["message"]',
        b'{"message": "no exit code"}',
        b'{"message": 1, "exit_code": 1}',
        b'{"message": "", "exit_code": true}',
        b'{"ready": true, "engine": null, "trainer": null}',
        to_line(BEAT).replace(b"true", b"1"),
    ],
)
def test_foreign_documents_are_ignored(line: bytes) -> None:
    assert from_line(line) is None


@given(st.text(min_size=LONGEST_MESSAGE))
def test_a_long_failure_is_cut_so_that_a_pipe_takes_it_whole(text: str) -> None:
    line = to_line(Failure(text, 2))
    assert len(line) <= PIPE_BUF
    assert isinstance(from_line(line), Failure)


@pytest.mark.parametrize("character", ["\0", "\U0001f600", "\ud800", '"'])
def test_no_character_makes_a_failure_too_long(character: str) -> None:
    assert len(to_line(Failure(character * 9999, 255))) <= PIPE_BUF


def test_what_is_sent_is_heard(pipe: tuple[Pulse, int]) -> None:
    pulse, reading = pipe
    pulse.send(BEAT)
    pulse.send(Failure("no such base", 2))
    heard = [from_line(line) for line in os.read(reading, 9999).splitlines()]
    assert heard == [BEAT, Failure("no such base", 2)]


def test_a_full_pipe_drops_whole_beats_without_waiting(pipe: tuple[Pulse, int]) -> None:
    pulse, reading = pipe
    for _ in range(9999):
        pulse.send(BEAT)
    lines = os.read(reading, 999_999).splitlines()
    assert 100 < len(lines) < 9999
    assert {from_line(line) for line in lines} == {BEAT}


def test_a_process_without_a_supervisor_has_no_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PULSE_FD, raising=False)
    assert Pulse.from_environment() is None


def test_the_pulse_is_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setenv(PULSE_FD, str(writing))
    os.set_inheritable(writing, True)
    pulse = Pulse.from_environment()
    assert pulse is not None
    pulse.send(BEAT)
    assert not os.get_inheritable(writing), "the daemon's own children must not keep it open"
    assert from_line(os.read(reading, 9999)) == BEAT
    os.close(reading)
    os.close(writing)


def test_without_a_supervisor_a_beat_ends_the_process_at_once() -> None:
    code = """
import os
from arcd.daemon.heartbeat import *
reading, writing = os.pipe()
os.close(reading)
try:
    Pulse(writing).send(Failure("", 7))
finally:
    print("went on")
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


PREPARE = """
import os, pathlib, signal, sys
from arcd.daemon.heartbeat import prepare_child
prepare_child(pathlib.Path(sys.argv[1]))
print("went on")
os.kill(os.getpid(), signal.SIGUSR1)
"""


def prepared(tmp_path: Path, supervisor: int) -> subprocess.CompletedProcess[str]:
    return python(PREPARE, str(tmp_path / "stacks"), **{SUPERVISOR_PID: str(supervisor)})


def test_a_child_writes_its_stacks_when_asked_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("of the last life\n")
    done = prepared(tmp_path, os.getpid())
    assert (done.returncode, done.stdout) == (0, "went on\n")
    stacks = (tmp_path / "stacks").read_text()
    assert stacks.startswith("of the last life\n")
    assert 'File "<string>", line 6' in stacks


def test_a_child_whose_supervisor_is_gone_already_ends_at_once(tmp_path: Path) -> None:
    done = prepared(tmp_path, os.getppid())
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
