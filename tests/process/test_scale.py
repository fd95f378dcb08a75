"""Commands on stores of large jobs: their seconds and their memory."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.scale import make_store

pytestmark = [pytest.mark.full, pytest.mark.timing]


@dataclass(frozen=True)
class Used:
    """What a process has used."""

    seconds: float
    mib: float
    """Most that it had in memory at once."""


SMALL = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Starts a command: the memory of a large process that starts one counts as that of the command."""


def measured(*arguments: object) -> Used:
    """`arcd` with these arguments in a process of its own, which must end with 0."""
    command = [sys.executable, "-c", SMALL, sys.executable, "-m", "arcd", *map(str, arguments)]
    begun = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Used(time.monotonic() - begun, int(done.stdout.split()[-1]) / 1024)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a job of 20 000 tasks."""
    home = tmp_path_factory.mktemp("home")
    make_store(home, 20_000)
    return home


def test_a_report_of_twenty_thousand_tasks(home: Path) -> None:
    page = home / "report.html"
    used = measured("report", 1, "--out", page, "--home", home)
    size = page.stat().st_size / 1e6
    print(f"report: {used.seconds:.1f} s, {used.mib:.0f} MiB, {size:.1f} MB")
    assert used.seconds < 6
    assert used.mib < 300
    assert size < 20


def test_a_trace_of_twenty_thousand_tasks(home: Path) -> None:
    used = measured("report", 1, "--trace", home / "trace.json", "--home", home)
    print(f"trace: {used.seconds:.1f} s, {used.mib:.0f} MiB")
    assert used.seconds < 6
    assert used.mib < 300
