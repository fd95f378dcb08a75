"""`python -m arcd.cli.checks.part WANTED`: a process that makes some of the checks.

It sends each finding as a line of JSON on its standard output, as soon as there is one. A check
that raises ends in a finding too; the process then ends, because trainer and engine may be in any
state, and the doctor starts another one for the checks that are left.
"""

import faulthandler
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TextIO

import anyio
from pydantic import BaseModel, ConfigDict

from arcd.backends.runtime import open_runtime, set_environment
from arcd.cli.checks import lives, memory, parity, speed
from arcd.cli.checks.processes import RAISED
from arcd.cli.checks.workbench import Workbench
from arcd.cli.finding import Finding
from arcd.daemon.options import Options
from arcd.errors import in_one_line, known
from arcd.model.device import Device, pick_device
from arcd.system.ledger import Ledger
from arcd.system.processes import die_with_parent

Tell = Callable[[Finding], None]
Check = Callable[[Workbench], Awaitable[Finding]]

CHECKS: Mapping[str, Check] = {
    "parity": parity.parity,
    "speed": speed.speed,
    "adapters": memory.adapters_in_and_out,
    # Last: where the engine does not survive it, no other check can follow.
    "out of memory": memory.out_of_memory,
    "one stream": speed.one_stream,
}
"""What is done with a runtime, by the finding's name."""

OPENING = ("device", "start")
"""Findings of the opening of a runtime."""

LIVES = ("kill", "tasks")
"""Findings of a daemon's lives."""

MIB = 2**20

REPORT = "report this document"

CHECK_SHARE = 0.7
"""Share of a process's time that one check may take: then it hangs, and the others have the rest.
"""

PATIENCE = 0.75
"""The same of a check that does not end when it is cancelled, for native code hangs in a thread:
the process is killed then."""

STACKS_S = 5.0
"""Seconds before the deadline at which a process writes its stacks."""


class Wanted(BaseModel):
    """Which checks to make, on what, and how long they may take."""

    model_config = ConfigDict(frozen=True)

    names: tuple[str, ...]
    options: Options
    """Of the runtime or of the daemon; its home is deleted afterwards."""
    window: float
    """Seconds of a measurement."""
    seconds: float
    """Seconds after which the process is killed."""

    @property
    def patience(self) -> float:
        """Seconds after its last finding after which it is killed."""
        return self.seconds if set(self.names) <= set(LIVES) else PATIENCE * self.seconds


def make(wanted: Wanted, tell: Tell) -> bool:
    """Make the checks; whether none of them raised."""
    if set(wanted.names) <= set(LIVES):
        return _lives(wanted, tell)
    return anyio.run(_with_runtime, wanted, tell)


def _lives(wanted: Wanted, tell: Tell) -> bool:
    told: list[str] = []

    def tell_once(finding: Finding) -> None:
        if finding.name in wanted.names and finding.name not in told:
            told.append(finding.name)
            tell(finding)

    def over(seen: lives.Observed) -> None:
        # At once: the other tasks may take longer than there is time.
        tell_once(lives.kill_finding(seen))

    try:
        seen = lives.observe(wanted.options, lives.gpu_memory_used, over)
    except Exception as error:
        for name in LIVES:
            tell_once(raised(name, error))
        return False
    for finding in lives.kill_finding(seen), lives.tasks_finding(seen):
        tell_once(finding)
    return True


async def _with_runtime(wanted: Wanted, tell: Tell) -> bool:
    options, ledger = wanted.options, Ledger()
    try:
        with ledger.stage("torch"):
            device = pick_device(options.device, options.config.precision)
        _tell(tell, device_finding(device), wanted.names)
    except Exception as error:
        tell(not_opened("device", error, wanted.names))
        return False
    folder = Path(tempfile.mkdtemp(dir=options.home))
    compiled = options.compiled or options.home / "compiled"
    from arcd.backends.compilation import reading
    from arcd.backends.device_report import compiled_now, memory_in_use, memory_report
    from arcd.backends.memory_pressure import fallbacks, memory_pressure

    before, begun, opened = memory_report(device), time.monotonic(), False
    try:
        async with open_runtime(
            options.base,
            options.config,
            device,
            rank=options.config.train.rank,
            adapters=folder,
            compiled=compiled,
            ledger=ledger,
            serial=itertools.count().__next__,
        ) as runtime:
            opened = True
            seconds = time.monotonic() - begun
            after = memory_report(device)
            stages = ledger.account().stages
            _tell(tell, start_finding(seconds, stages, before, after, runtime.twice), wanted.names)
            bench = Workbench(
                runtime,
                options.config,
                device,
                wanted.window,
                memory=partial(memory_in_use, device),
                pressure=partial(memory_pressure, device),
                fallbacks=partial(fallbacks, runtime.engine),
                compiled=partial(compiled_now, device, compiled),
                reading=reading,
            )
            names = [name for name in wanted.names if name in CHECKS]
            if not await made(bench, names, tell, CHECK_SHARE * wanted.seconds):
                # Not through the runtime's end: it may hang.
                os._exit(RAISED)
    except Exception as error:
        if opened:
            raise
        tell(not_opened("start", error, wanted.names))
        return False
    return True


async def made(bench: Workbench, names: Sequence[str], tell: Tell, seconds: float) -> bool:
    """Make checks, each in at most so many seconds, until one raises; whether none did."""
    for name in names:
        try:
            with anyio.fail_after(seconds):
                tell(await CHECKS[name](bench))
        except Exception as error:
            tell(raised(name, error))
            return False
    return True


def raised(name: str, error: Exception) -> Finding:
    """The finding of a check that raised."""
    if isinstance(error, TimeoutError):
        value, advice = "no result in time", "more time: --seconds; if that does not help, report"
        return Finding(name, value, ok=False, advice=f"{advice} this document")
    explained = known(error)
    if explained is not None:
        cause = _first(explained)
        return Finding(name, f"{type(explained).__name__}: {cause}", ok=False, advice=REPORT)
    inner = error
    while isinstance(inner, ExceptionGroup):
        inner = inner.exceptions[0]
    return Finding(name, f"{type(inner).__name__}: {_first(inner)}", ok=False, advice=REPORT)


def not_opened(name: str, error: Exception, names: Sequence[str]) -> Finding:
    """The finding of a runtime that could not be opened, under a name that is wanted.

    After a crash the earlier process has told "device" and "start": the first check that is left
    has the reason then.
    """
    found = raised(name, error)
    if name in names:
        return found
    return replace(found, name=names[0], value=f"not started again: {found.value}")


def device_finding(device: Device) -> Finding:
    """What trainer and engine compute on, and what torch says of it."""
    from arcd.backends.device_report import torch_facts

    facts = torch_facts()
    value = f"{device.kind}: {device.name}, training in {device.dtype}, serving in "
    value += f"{device.serving_dtype}; torch {facts['torch']}, CUDA {facts['cuda'] or 'none'}"
    chosen = {"kind": device.kind, "dtype": device.dtype, "serving_dtype": device.serving_dtype}
    data = {**chosen, "capability": device.capability, **facts}
    compiler = facts["cpp_compiler"] if device.kind == "cpu" else facts["triton"]
    if compiler is None:
        what = "a C++ compiler (g++)" if device.kind == "cpu" else "triton"
        value += f"; no compiler: without {what} training is slower"
    return Finding("device", value, data=data)


def start_finding(
    seconds: float,
    stages: Mapping[str, float],
    before: Mapping[str, int | None],
    after: Mapping[str, int | None],
    twice: str | None,
) -> Finding:
    """How long the opening of the runtime took, and what it holds; memory is in bytes.

    `twice` is `Runtime.twice`.
    """
    told = []
    for key, what in (("process", "the process"), ("device_used", "the device")):
        old, new = before.get(key), after.get(key)
        if old is not None and new is not None:
            told.append(f"{what} {old / MIB:.0f} to {new / MIB:.0f} MiB")
    data = {"memory": {"before": dict(before), "after": dict(after)}, "twice": twice}
    value = f"{seconds:.1f} s; base in memory " + (f"twice: {twice}" if twice else "once")
    if told:
        value += f"; memory: {', '.join(told)}"
    return Finding("start", value, True, stages, "", data)


def _tell(tell: Tell, finding: Finding, names: Sequence[str]) -> None:
    """Tell a finding unless an earlier process has."""
    if finding.name in names:
        tell(finding)


def _first(error: BaseException) -> str:
    return in_one_line(str(error).strip() or "(no message)")


@contextmanager
def _own_output() -> Iterator[TextIO]:
    """Standard output for findings alone: what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", buffering=1) as own:
        os.dup2(2, 1)
        yield own


def main() -> int:
    """Make the checks that the command line asks for; returns the exit code."""
    die_with_parent()
    wanted = Wanted.model_validate_json(sys.argv[1])
    set_environment(wanted.options.device)
    end = time.monotonic() + wanted.seconds

    def expect_a_finding() -> None:
        # A second call puts the first one off.
        seconds = min(wanted.patience, end - time.monotonic())
        faulthandler.dump_traceback_later(max(1.0, seconds - STACKS_S))

    expect_a_finding()
    with _own_output() as own:

        def tell(finding: Finding) -> None:
            own.write(json.dumps({"name": finding.name, **finding.to_json()}) + "\n")
            own.flush()
            expect_a_finding()

        return 0 if make(wanted, tell) else RAISED


if __name__ == "__main__":
    sys.exit(main())
