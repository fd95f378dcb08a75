"""What `arcd doctor` says of a start."""

import pytest

from arcd.cli.doctor import Finding, start_finding


def test_the_seconds_of_a_start_add_up_to_the_moment_when_the_first_task_begins() -> None:
    found = start_finding(7.0, {"daemon": 0.5, "torch": 1.0, "engine": 4.0})
    assert list(found.seconds) == ["command", "daemon", "torch", "engine"]
    assert sum(found.seconds.values()) == pytest.approx(7.0)
    assert found.to_json() == {"ok": True, "value": "7.0 s", "seconds": dict(found.seconds)}


def test_a_finding_without_parts_is_as_it_always_was() -> None:
    assert Finding("arcd", "1").to_json() == {"ok": True, "value": "1"}
