"""What `arcd doctor` says of a start, and what it prints of its findings."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.commands import arcd

from arcd.cli import doctor
from arcd.cli.checks import thorough
from arcd.cli.doctor import start_finding
from arcd.cli.finding import Finding
from arcd.daemon.options import Options


def test_the_seconds_of_a_start_add_up_to_the_moment_when_the_first_task_begins() -> None:
    found = start_finding(7.0, {"daemon": 0.5, "torch": 1.0, "engine": 4.0})
    assert list(found.seconds) == ["command", "daemon", "torch", "engine"]
    assert sum(found.seconds.values()) == pytest.approx(7.0)
    assert found.to_json() == {"ok": True, "value": "7.0 s", "seconds": dict(found.seconds)}


def test_a_finding_without_parts_is_as_it_always_was() -> None:
    assert Finding("arcd", "1").to_json() == {"ok": True, "value": "1"}


FAULT = Finding("speed", "slow", ok=False, advice="be faster", seconds={"a": 1.0})


def test_settings_reach_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, Sequence[str]]] = []

    def examine(base: Path, device: str, settings: Sequence[str]) -> Iterator[Finding]:
        given.append((device, settings))
        yield Finding("arcd", "1")

    monkeypatch.setattr(doctor, "examine", examine)
    done = arcd("doctor", "--set", "precision=fp32", "--set", "engine.max_loras=1", "--json")
    assert given == [("auto", ["precision=fp32", "engine.max_loras=1"])]
    assert json.loads(done.stdout) == {"arcd": {"ok": True, "value": "1"}}


def test_thorough_prints_lines_and_one_document_and_says_whether_all_is_ok(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Options, float]] = []

    def examine(options: Options, seconds: float) -> Iterator[Finding]:
        asked.append((options, seconds))
        yield Finding("arcd", "1")
        yield FAULT

    monkeypatch.setattr(thorough, "examine_thoroughly", examine)
    done = arcd("doctor", "--thorough", "--device", "cpu", "--set", "engine.max_loras=1")
    assert done.returncode == 1
    *lines, document = done.stdout.splitlines()
    assert lines == [
        "ok   arcd          1",
        "fail speed         slow",
        "       a              1.0 s",
        "     > be faster",
    ]
    found = json.loads(document)
    assert (found["ok"], found["device"]) == (False, "cpu")
    assert found["settings"] == {"engine": {"max_loras": 1}}
    assert found["findings"]["speed"] == FAULT.to_json()
    alone = arcd("doctor", "--thorough", "--seconds", "60", "--json")
    assert json.loads(alone.stdout)["findings"] == found["findings"]
    assert [seconds for _, seconds in asked] == [thorough.SECONDS, 60.0]
    assert asked[0][0].config.engine.max_loras == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "precision=fp99"),
        ("--set", "nothing=1", "--thorough"),
        ("--seconds", "60"),
        ("--thorough", "--base", "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_tried(arguments: Sequence[str]) -> None:
    done = arcd("doctor", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
