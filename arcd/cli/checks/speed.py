"""Speed: trainer alone, engine alone, both together.

The overlap gain is the time that the same work would take one after the other, divided by the time
that it takes together. It is the sum of two ratios: each one's rate together over its rate alone.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import fmean

import anyio

from arcd.backends.protocols import Adapter, Request, TrainingStep
from arcd.cli.checks.workbench import MEASURED, Workbench, greedy, task_of
from arcd.cli.finding import Finding
from arcd.errors import ArcdError
from arcd.model.device import Device

SEQUENCES = (1, 8, 32)
"""Sequences at once for which the engine is measured."""

BESIDE = 8
"""Sequences of the engine beside a training."""

NEW_TOKENS = 32
"""Of each sequence: a round of them is short, and the engine works for no longer than it must."""

WARM_STEPS = 2
"""First steps of a training, which are not counted."""

TIMED_STEPS = 3
"""Steps that are counted at least, also where they take longer than the window."""

ENDLESS = 1000
"""Times that the measured lessons are gone through: more than any window has room for."""

SPEED_STEPS = 16
"""Steps for which there are different lessons."""

LEAST_GAIN = {"cpu": 0.8, "cuda": 1.05}
"""Overlap gain below which something is wrong: trainer and engine hinder each other on a CPU, or
their kernels wait for each other on a GPU. On two busy cores a gain varies by 0.1."""

COMPILING_S = 120.0
"""Seconds that a compilation may still take before the trainer is measured without."""

LOOK_S = 0.2
"""Seconds between two looks for what is compiled."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Tokens a second of trainer and engine, alone and together."""

    trainer_alone: float
    trainer_beside: float
    engine_alone: float
    engine_beside: float

    @property
    def gain(self) -> float:
        """Seconds one after the other over seconds together, for the same work."""
        trainer, engine = self.trainer_alone, self.engine_alone
        return self.trainer_beside / trainer + self.engine_beside / engine


async def speed(bench: Workbench) -> Finding:
    """Measure everything, each for a window."""
    waited = await compiled(bench)
    adapter, _ = await bench.adapters()
    requests = greedy(bench.questions(task_of(MEASURED), max(SEQUENCES), NEW_TOKENS))
    rates = {count: await engine_rate(bench, requests[:count], adapter) for count in SEQUENCES}
    found = await overlap(bench, adapter, requests[:BESIDE], engine_alone=rates[BESIDE])
    return speed_finding(found, rates, waited, bench.device)


async def one_stream(bench: Workbench) -> Finding:
    """The overlap alone; made in a process in which trainer and engine share a stream."""
    await compiled(bench)
    adapter, _ = await bench.adapters()
    requests = greedy(bench.questions(task_of(MEASURED), BESIDE, NEW_TOKENS))
    rate = await engine_rate(bench, requests, adapter)
    found = await overlap(bench, adapter, requests, engine_alone=rate)
    return Finding("one stream", f"overlap gain {found.gain:.2f}", data={"gain": found.gain})


def speed_finding(
    found: Overlap, rates: dict[int, float], compiled: bool | None, device: Device
) -> Finding:
    """What follows from the rates; those of the engine are by the number of sequences."""
    how = {True: "compiled", False: "not compiled in time", None: "not compiled"}[compiled]
    sampled = ", ".join(f"{count} sequences {rate:.0f}" for count, rate in rates.items())
    value = (
        f"overlap gain {found.gain:.2f}; tokens/s: training {found.trainer_alone:.0f} ({how}), "
        f"sampling {sampled}"
    )
    data = {
        "gain": found.gain,
        "training": {"alone": found.trainer_alone, "beside": found.trainer_beside},
        "sampling": {"alone": {str(count): rate for count, rate in rates.items()}}
        | {"beside": found.engine_beside},
        "compiled": compiled is True,
    }
    least = LEAST_GAIN[device.kind]
    if found.gain >= least:
        return Finding("speed", value, data=data)
    advice = {
        "cpu": f"a gain below {least}: is the machine busy, or are there fewer cores than it says?",
        "cuda": f"a gain below {least}: training and sampling take turns on this GPU; solve one "
        "task at a time (--set lookahead=0), and report this document",
    }
    return Finding("speed", value, ok=False, advice=advice[device.kind], data=data)


def streams_finding(own: float | None, shared: float | None) -> Finding:
    """What streams of their own bring; None where a gain could not be measured."""
    if own is None or shared is None:
        return Finding("streams", "not measured", ok=False, advice="see the other lines")
    value = f"overlap gain {own:.2f} with streams of their own, {shared:.2f} with one"
    data = {"own": own, "one": shared}
    if own >= 0.97 * shared:  # what two measurements of the same differ by
        return Finding("streams", value, data=data)
    advice = "run arcd with the environment variable ARCD_ONE_STREAM=1, and report this document"
    return Finding("streams", value, ok=False, advice=advice, data=data)


async def compiled(bench: Workbench) -> bool | None:
    """Wait for what the first training compiles, and the next one reads; whether it is there."""
    await bench.adapters()
    end = bench.clock() + min(COMPILING_S, 10 * bench.window)
    while (state := bench.compiled()) is False and bench.clock() < end:
        await anyio.sleep(LOOK_S)
    if state:
        async with training(bench) as steps:
            await steps.warm(bench)
        while bench.reading() and bench.clock() < end:
            await anyio.sleep(LOOK_S)
    return state


async def engine_rate(bench: Workbench, requests: Sequence[Request], adapter: Adapter) -> float:
    """Tokens a second that are generated, prompts included in the time, in whole rounds."""
    begun = bench.clock()
    tokens = 0
    while not tokens or bench.clock() - begun < bench.window:
        tokens += await _round(bench, requests, adapter)
    return tokens / _elapsed(bench, begun)


async def overlap(
    bench: Workbench, adapter: Adapter, requests: Sequence[Request], *, engine_alone: float
) -> Overlap:
    """Measure the trainer alone, then both together."""
    async with training(bench) as steps:
        begun = await steps.warm(bench)
        while bench.clock() - begun < bench.window or not steps.enough:
            await steps.next()
        alone = steps.rate
    async with training(bench) as steps:
        begun = await steps.warm(bench)
        tokens = 0
        while bench.clock() - begun < bench.window or not steps.enough:
            tokens += await _round(bench, requests, adapter)
        beside = tokens / _elapsed(bench, begun)
    return Overlap(alone, steps.rate, engine_alone, beside)


async def _round(bench: Workbench, requests: Sequence[Request], adapter: Adapter) -> int:
    found = await bench.sample(requests, adapter)
    return sum(len(each.tokens) for each in found.values())


def _elapsed(bench: Workbench, begun: float) -> float:
    # A clock may stand still for as long as a fake takes.
    return max(bench.clock() - begun, 1e-9)


@dataclass
class Steps:
    """The steps of all trainings under way: when each of them ended, and its tokens."""

    ends: list[tuple[float, int]] = field(default_factory=list)
    timed: int = 0
    """How many ends were there when the time began to count."""
    news: anyio.Event = field(default_factory=anyio.Event)

    def note(self, now: float, tokens: int) -> None:
        """A step has ended."""
        self.ends.append((now, tokens))
        self.news.set()
        self.news = anyio.Event()

    async def next(self) -> None:
        """Wait for the end of a step."""
        await self.news.wait()

    async def warm(self, bench: Workbench) -> float:
        """Wait for the end of the first steps; the time."""
        while len(self.ends) < WARM_STEPS * bench.runtime.trainer.capacity:
            await self.next()
        self.timed = len(self.ends)
        return bench.clock()

    @property
    def enough(self) -> bool:
        """Whether enough steps have ended since."""
        return len(self.ends) >= self.timed + TIMED_STEPS

    @property
    def rate(self) -> float:
        """Tokens a second from the last warm step to the last step."""
        since, (until, _) = self.ends[self.timed - 1][0], self.ends[-1]
        return sum(tokens for _, tokens in self.ends[self.timed :]) / max(until - since, 1e-9)


@asynccontextmanager
async def training(bench: Workbench) -> AsyncIterator[Steps]:
    """As many trainings as the trainer makes at once, until the block ends."""
    lessons = bench.lessons(task_of(MEASURED), SPEED_STEPS)
    config, steps = bench.trial, Steps()
    tokens = round(fmean(len(each.tokens) for each in lessons)) * config.batch_size
    endless = list(lessons) * ENDLESS

    def note(_: TrainingStep) -> None:
        steps.note(bench.clock(), tokens)

    async def train() -> None:
        await bench.train(endless, config, progress=note)
        raise ArcdError("the trainer was faster than can be measured")

    async with anyio.create_task_group() as trainings:
        for _ in range(bench.runtime.trainer.capacity):
            trainings.start_soon(train)
        yield steps
        trainings.cancel_scope.cancel()
