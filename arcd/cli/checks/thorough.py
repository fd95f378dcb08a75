"""The plan of `arcd doctor --thorough`: which process makes which checks, and until when.

    environment, packages      here
    device .. out of memory    a process with a runtime; after a crash another one for the rest
    kill, tasks                a process with a supervised daemon
    streams                    on a GPU, a process whose trainer and engine share a stream

Findings come one by one; `document` makes one JSON value of them. torch is not imported here: a
crash of CUDA ends a process, not the doctor.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arcd.backends.streams import ONE_STREAM
from arcd.cli.checks import environment, lives, part, speed
from arcd.cli.checks.part import LIVES, OPENING, Wanted
from arcd.cli.checks.processes import findings_of
from arcd.cli.finding import Finding, finite
from arcd.daemon.options import Options
from arcd.version import __version__

SECONDS = 480.0
"""What all checks together may take, unless the user says otherwise."""

WINDOW = 1 / 60
"""Seconds of a measurement for each second of them all."""

WINDOWS = (1.0, 8.0)
"""Shortest and longest measurement, in seconds."""

RUNTIME_SHARE = 0.6
"""Share of the time for the checks with a runtime; the rest is for the daemon's lives."""

RUNTIME_CHECKS = (*OPENING, "parity", "speed", "adapters", "out of memory")
"""Findings of the process with a runtime, in their order."""

LATER_LOG_LINES = 10
"""Last lines of the log of each crash but the first, in the document."""

MORE_TIME = "give it more time: --seconds"

Run = Callable[[Wanted, Mapping[str, str]], Iterator[Finding]]
"""Makes checks in a process of its own, with these variables beside the environment's."""


def examine_thoroughly(options: Options, seconds: float) -> Iterator[Finding]:
    """The findings, one by one as they are made; the last of them within so many seconds.

    Base, device and configuration are those of the options; their home is not used.
    """
    yield environment.environment()
    yield environment.packages()
    with tempfile.TemporaryDirectory(prefix="arcd-doctor-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"

        def run(wanted: Wanted, env: Mapping[str, str]) -> Iterator[Finding]:
            command = [sys.executable, "-m", part.__name__, wanted.model_dump_json()]
            return findings_of(
                command,
                wanted.names,
                wanted.seconds,
                log,
                {**os.environ, **env},
                patience=wanted.patience,
            )

        given = {"home": Path(folder), "compiled": Path(folder) / "compiled"}
        plan = Examination(
            options.model_copy(update=given), time.monotonic() + seconds, seconds, run
        )
        yield from plan.findings()


@dataclass
class Examination:
    """The checks in processes of their own."""

    options: Options
    end: float
    """On `clock`."""
    seconds: float
    run: Run
    clock: Callable[[], float] = time.monotonic

    def findings(self) -> Iterator[Finding]:
        """All findings, those of checks that could not be made too."""
        found: dict[str, Finding] = {}
        for finding in self._runtime():
            found[finding.name] = finding
            yield finding
        yield from self._lives()
        yield from self._streams(found)

    @property
    def _left(self) -> float:
        return self.end - self.clock()

    def _runtime(self) -> Iterator[Finding]:
        """A process after the other: each makes the checks that are left, until one raises."""
        end = self.clock() + RUNTIME_SHARE * self._left
        names: tuple[str, ...] = RUNTIME_CHECKS
        blocked = ""
        while names and not blocked and (seconds := end - self.clock()) > 0:
            for finding in self.run(self._wanted(names, seconds), {ONE_STREAM: "0"}):
                names = tuple(name for name in names if name != finding.name)
                # Without a device, or where nothing can be started, nothing else can be done.
                if finding.name in OPENING and not finding.ok:
                    blocked = finding.name
                yield finding
        for name in names:
            yield _not_tried(name, blocked) if blocked else _not_in_time(name)

    def _lives(self) -> Iterator[Finding]:
        small = {"steps": lives.STEPS, "start": None, "share": 1}
        config = self.options.config
        train = config.train.model_copy(update=small)
        sample = config.sample.model_copy(update={"samples": lives.SAMPLES, "views": None})
        budget = config.budget.model_copy(update={"seconds": None})
        changed = {"train": train, "sample": sample, "budget": budget}
        # A home is a folder of its own.
        given = {"config": config.model_copy(update=changed), "home": self.options.home / "home"}
        options = self.options.model_copy(update=given)
        names = list(LIVES)
        if self._left > 0:
            wanted = self._wanted(LIVES, self._left).model_copy(update={"options": options})
            for finding in self.run(wanted, {}):
                names.remove(finding.name)
                yield finding
        late = self._left <= 0 or len(names) == len(LIVES)
        for name in names:
            yield _not_in_time(name) if late else _not_tried(name, LIVES[0])

    def _streams(self, found: Mapping[str, Finding]) -> Iterator[Finding]:
        device, start, own = (found.get(name) for name in ("device", "start", "speed"))
        if device is None or device.data.get("kind") != "cuda":
            yield Finding("streams", "skipped: only a GPU has streams")
            return
        own_gain = own.data.get("gain") if own else None
        needed = sum(start.seconds.values()) if start else 0.0
        if own_gain is None:
            yield _not_tried("streams", "speed")
            return
        if self._left < needed:
            yield _not_in_time("streams")
            return
        wanted = self._wanted(("one stream",), self._left)
        shared = None
        for finding in self.run(wanted, {ONE_STREAM: "1"}):
            shared = finding.data.get("gain")
            if not finding.ok:
                yield replace(finding, name="streams")
                return
        yield speed.streams_finding(own_gain, shared)

    def _wanted(self, names: Sequence[str], seconds: float) -> Wanted:
        shortest, longest = WINDOWS
        window = min(longest, max(shortest, WINDOW * self.seconds))
        return Wanted(names=tuple(names), options=self.options, window=window, seconds=seconds)


def _short_logs(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The findings, of which the first with a log keeps all of it: an issue has limited room."""
    whole = True
    for finding in findings:
        if "log" in finding.data:
            kept = finding.data["log"] if whole else finding.data["log"][-LATER_LOG_LINES:]
            yield replace(finding, data={**finding.data, "log": kept})
            whole = False
        else:
            yield finding


def _not_in_time(name: str) -> Finding:
    return Finding(name, "no time left", ok=False, advice=MORE_TIME)


def _not_tried(name: str, why: str) -> Finding:
    """Of a check that cannot be made, or tells nothing, because of what another one has found."""
    return Finding(name, f"not tried: see {why}", ok=False, advice="first mend that line")


def document(findings: Sequence[Finding], options: Options, seconds: float) -> dict[str, Any]:
    """All findings as one JSON value that shows nothing private, to be pasted into an issue."""
    value = {
        "arcd": __version__,
        "ok": all(finding.ok for finding in findings),
        "seconds": round(seconds, 1),
        "base": "/".join(options.base.parts[-2:]),
        "device": options.device,
        "settings": options.config.model_dump(mode="json", exclude_unset=True),
        "findings": {finding.name: finding.to_json() for finding in _short_logs(findings)},
    }
    value = finite(value)
    shown = environment.without_secrets(value, os.environ, str(Path.home()))
    assert isinstance(shown, dict)
    return shown
