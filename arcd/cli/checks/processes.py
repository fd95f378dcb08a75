"""A process that makes checks, as the doctor sees it: findings come in line by line.

Whatever the process does, each of its checks has a finding in the end: it may crash, hang, or say
something else.
"""

import json
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from arcd.cli.finding import Finding
from arcd.errors import in_one_line
from arcd.system.processes import Process, identify, kill_group, sweep_group

RAISED = 3
"""Exit code of a process after a check that raised, of which it has sent a finding."""

PIECE = 65536
"""Bytes that are read at once."""

LAST_LINES = 60
"""Lines of its log that are in the finding of a process that has crashed."""

LONGEST_LOG_LINE = 300
"""Characters of each of them."""


def findings_of(
    command: Sequence[str],
    names: Sequence[str],
    seconds: float,
    log: Path,
    env: Mapping[str, str],
    clock: Callable[[], float] = time.monotonic,
    patience: float = math.inf,
) -> Iterator[Finding]:
    """The findings with these names that a command sends, each at most once, as they arrive.

    The process and all that it has started are killed after so many seconds, or `patience` seconds
    after its last finding: a check may hang where no exception ends it. The first check that
    it has sent nothing of, if there is any, is the one at which it ended: its finding says how.
    Further ones have none. `log` is the file for what it writes to standard error.
    """
    left = list(names)
    deadline = clock() + seconds
    end = min(deadline, clock() + patience)

    def time_left() -> float:
        return end - clock()

    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=env,
            start_new_session=True,
        ) as process,
    ):
        identity = identify(process.pid) or Process(process.pid, None)
        try:
            for line in _lines(process, time_left):
                finding = _finding(line)
                if finding is not None and finding.name in left:
                    left.remove(finding.name)
                    end = min(deadline, clock() + patience)
                    yield finding
                if not left:
                    return  # its end in order takes time and tells nothing
            code = _code(process, time_left())
        finally:
            kill_group(identity)
            process.wait()
            sweep_group(identity)
    if code != RAISED or len(left) == len(names):
        yield _ended(left[0], min(seconds, patience), code, log)


def _code(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """The exit code, or minus the number of the signal; None if it does not end in time."""
    try:
        return process.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        return None


def _lines(process: "subprocess.Popen[bytes]", left: Callable[[], float]) -> Iterator[bytes]:
    """Complete lines of its output, until it ends or no seconds are left."""
    assert process.stdout is not None
    torn = b""
    while (wait := left()) > 0:
        if not select.select([process.stdout], [], [], wait)[0]:
            return
        read = os.read(process.stdout.fileno(), PIECE)
        if not read:
            return
        *lines, torn = (torn + read).split(b"\n")
        yield from lines


def _finding(line: bytes) -> Finding | None:
    try:
        fields = json.loads(line)
        return Finding.from_json(fields.pop("name"), fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _ended(name: str, seconds: float, code: int | None, log: Path) -> Finding:
    """The finding of the check at which a process ended; code None: it was killed in the end."""
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    data = {"log": [in_one_line(line)[:LONGEST_LOG_LINE] for line in lines]}
    advice = "report this document"
    if code is None:
        value, advice = f"no result after {seconds:.0f} s", f"more time: --seconds; or {advice}"
    elif code < 0:
        value = f"its process died of signal {-code} ({signal.strsignal(-code)})"
    else:
        value = f"its process ended with exit code {code}"
    return Finding(name, value, ok=False, advice=advice, data=data)
