"""Processes that make checks for the doctor: whatever they do, each check has a finding."""

import json
import os
import sys
from pathlib import Path

import pytest
from support.running import until

from arcd.cli.checks import part
from arcd.cli.checks.part import LIVES, Wanted
from arcd.cli.checks.processes import RAISED, findings_of
from arcd.cli.finding import Finding
from arcd.config import resolve
from arcd.daemon.options import Options
from arcd.model.base_model import bundled
from arcd.system.processes import identify

TELL = """\
import json, os, signal, subprocess, sys, time

def tell(name, **fields):
    print(json.dumps({"name": name, "ok": True, "value": "fine", **fields}), flush=True)

tell("a")
"""

LONG_S = 60.0
"""For a process that ends by itself."""


def found(folder: Path, code: str) -> list[Finding]:
    """The time is up as soon as there is a finding of b."""
    command = [sys.executable, "-c", TELL + code]
    told: list[Finding] = []

    def clock() -> float:
        return 2 * LONG_S if "b" in {finding.name for finding in told} else 0.0

    for finding in findings_of(command, "abc", LONG_S, folder / "log", os.environ, clock):
        told.append(finding)
    return told


def test_findings_arrive_and_whatever_else_is_printed_is_passed_over(tmp_path: Path) -> None:
    code = "print('noise'); print('{}'); print('[1]'); tell('x'); tell('a'); tell('c'); tell('b')"
    assert found(tmp_path, code) == [Finding(name, "fine") for name in "acb"]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died of signal 11 (Segmentation fault)"),
        ("sys.exit(1)", "ended with exit code 1"),
        ("", "ended with exit code 0"),
        ("raise RuntimeError('CUDA error: unspecified launch failure')", "exit code 1"),
    ],
)
def test_a_crash_is_a_finding_of_the_check_in_which_it_happened(
    tmp_path: Path, code: str, told: str
) -> None:
    first, second = found(tmp_path, code)
    assert first == Finding("a", "fine")
    assert (second.name, second.ok) == ("b", False)
    assert told in second.value
    assert second.advice
    if "CUDA" in code:
        assert second.data["log"][-1] == "RuntimeError: CUDA error: unspecified launch failure"


def test_after_a_check_that_raised_nothing_more_is_found(tmp_path: Path) -> None:
    raised = f"tell('c', ok=False); sys.exit({RAISED})"
    assert [(each.name, each.ok) for each in found(tmp_path, raised)] == [("a", True), ("c", False)]


@pytest.mark.parametrize(
    "hang", ["time.sleep(600)", "os.close(1); time.sleep(600)"], ids=["open", "closed output"]
)
def test_a_process_that_hangs_is_killed_with_all_that_it_has_started(
    tmp_path: Path, hang: str
) -> None:
    child = "child = subprocess.Popen(['sleep', '600']); tell('b', value=str(child.pid)); "
    _, second, third = found(tmp_path, child + hang)
    assert (third.name, third.ok) == ("c", False)
    assert "no result after" in third.value
    until(lambda: identify(int(second.value)) is None)


def test_one_check_that_hangs_leaves_time_for_the_others(tmp_path: Path) -> None:
    """It is killed a while after the last finding, however much time there is."""
    told: list[Finding] = []

    def clock() -> float:
        return 40.0 if told else 0.0

    command = [sys.executable, "-c", TELL + "time.sleep(600)"]
    log = tmp_path / "log"
    for finding in findings_of(command, "abc", LONG_S, log, os.environ, clock, patience=30.0):
        told.append(finding)
    assert [(finding.name, finding.ok) for finding in told] == [("a", True), ("b", False)]
    assert told[1].value == "no result after 30 s"


def test_nobody_waits_for_the_end_of_a_process_that_has_told_everything(tmp_path: Path) -> None:
    assert len(found(tmp_path, "tell('c'); tell('b'); time.sleep(600)")) == 3


def test_a_daemon_of_fakes_is_killed_and_its_tasks_are_answered(tmp_path: Path) -> None:
    """A third of a second of training for each task: the kill comes in between."""
    config = resolve(settings=["train.steps=150", "train.batch_size=1", "sample.samples=2"])
    options = Options(home=tmp_path / "home", base=bundled(), config=config, backend="fake")
    wanted = Wanted(names=LIVES, options=options, window=1.0, seconds=LONG_S)
    command = [sys.executable, "-m", part.__name__, wanted.model_dump_json()]
    kill, tasks = findings_of(command, LIVES, LONG_S, tmp_path / "log", os.environ)
    assert kill.ok, kill
    assert "answered by the next daemon" in kill.value
    assert tasks.ok, tasks
    assert tasks.value.startswith("3 answered in ")


def test_a_daemon_that_cannot_start_is_a_finding_of_both_checks(tmp_path: Path) -> None:
    options = Options(home=tmp_path, base=bundled(), backend="fake")
    (tmp_path / "somebody's").touch()
    wanted = Wanted(names=LIVES, options=options, window=1.0, seconds=LONG_S)
    command = [sys.executable, "-m", part.__name__, wanted.model_dump_json()]
    for finding in findings_of(command, LIVES, LONG_S, tmp_path.parent / "log", os.environ):
        assert not finding.ok
        assert "other files are in it" in finding.value
        assert json.dumps(finding.to_json())
