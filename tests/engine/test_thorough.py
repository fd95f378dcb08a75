"""`arcd doctor --thorough` with the real trainer and the real engine, and faults put into them.

On a machine with a GPU these are checks of the GPU.
"""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from support.real_runs import arcd

pytest.importorskip("torch")

from arcd.backends.device_report import memory_in_use
from arcd.backends.memory_pressure import memory_pressure
from arcd.backends.protocols import Adapter, Completion, Engine, EngineUsage, Request
from arcd.backends.runtime import open_runtime
from arcd.cli.checks.memory import out_of_memory
from arcd.cli.checks.parity import parity
from arcd.cli.checks.thorough import RUNTIME_CHECKS
from arcd.cli.checks.workbench import Workbench
from arcd.config import resolve
from arcd.model.base_model import bundled
from arcd.model.device import pick_device
from arcd.system.ledger import Ledger

# Alone: beside other work a check has too little time.
pytestmark = [pytest.mark.engine, pytest.mark.timing]

SECONDS = 120
"""A budget for the gate; the checks end before, unless the machine is busy."""


def test_doctor_tries_everything_and_tells_it_in_one_document() -> None:
    done = arcd("doctor", "--thorough", "--seconds", SECONDS, "--json")
    found = json.loads(done.stdout)
    names = ("environment", "packages", *RUNTIME_CHECKS, "kill", "tasks", "streams")
    assert tuple(found["findings"]) == names
    assert [name for name in names if not found["findings"][name]["ok"]] == [], done.stdout
    assert found["ok"]
    assert done.returncode == 0
    assert found["seconds"] < SECONDS


@asynccontextmanager
async def open_bench(folder: Path) -> AsyncIterator[Workbench]:
    config = resolve(settings=["engine.cpu_cache_gib=1"])
    device = pick_device("auto", config.precision)
    async with open_runtime(
        bundled(),
        config,
        device,
        rank=config.train.rank,
        adapters=folder / "adapters",
        compiled=folder / "compiled",
        ledger=Ledger(),
        serial=itertools.count().__next__,
    ) as runtime:
        yield Workbench(
            runtime,
            config,
            device,
            window=1.0,
            memory=partial(memory_in_use, device),
            pressure=partial(memory_pressure, device),
        )


@dataclass
class Serves:
    """An engine that serves something else in place of an adapter."""

    engine: Engine
    other: Callable[[Adapter | None], Adapter | None]

    @property
    def steps(self) -> int:
        return self.engine.steps

    @property
    def busy(self) -> bool:
        return self.engine.busy

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        await self.engine.sample(requests, self.other(adapter), deliver)

    def usage(self) -> list[EngineUsage]:
        return self.engine.usage()


@pytest.mark.anyio
async def test_parity_holds_and_a_wrong_adapter_is_found_out(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        found = await parity(bench)
        assert found.ok, found
        first, second = await bench.adapters()
        runtime = bench.runtime

        async def with_fault(other: Callable[[Adapter | None], Adapter | None]) -> bool:
            bench.runtime = replace(runtime, engine=Serves(runtime.engine, other))
            return (await parity(bench)).ok

        assert not await with_fault(lambda adapter: None)
        swapped = {None: None, first: second, second: first}
        assert not await with_fault(swapped.__getitem__)
        bench.runtime = runtime
        # Last: an engine that does not survive it serves nothing any more.
        survived = await out_of_memory(bench)
        assert survived.ok, survived
