"""A workbench of fakes for the checks of `arcd doctor --thorough`, into which faults can be put.

Trainer and engine agree on how likely each token is, with each adapter, as a model would. Knows
nothing of the checks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import anyio

from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import (
    Adapter,
    Completion,
    Request,
    Trained,
    TrainingStep,
    TrainRequest,
)
from arcd.backends.runtime import Runtime
from arcd.cli.checks.workbench import Workbench
from arcd.config import resolve
from arcd.model.device import Device
from arcd.model.encoding import CellEncoding
from arcd.system.ledger import Ledger
from support.works import Deliver, Progress

CPU = Device("cpu", "bfloat16")
GPU = Device("cuda", "bfloat16", "a GPU", (8, 9))

STEP_S = 0.2
TOKEN_S = 0.01


def nats(adapter: int | None, before: Sequence[int], token: int) -> float:
    """The negative log-likelihood of a token; another one with each adapter."""
    mixed = 7 * token + 3 * len(before) + 29 * (-1 if adapter is None else adapter)
    return 0.5 + mixed % 17


@dataclass
class Trainer(FakeTrainer):
    """Its losses are those of the last tokens; an adapter that is started from keeps its number."""

    seconds_per_step: float = STEP_S
    error: float = 0.0
    """Nats that are added to each second loss."""
    beside: float = 1.0
    """How many times as long its steps take while the engine is busy."""
    engine: FakeEngine | None = None

    def step_seconds(self, wanted: TrainRequest) -> float:
        hindered = self.engine is not None and self.engine.busy
        return self.seconds_per_step * (self.beside if hindered else 1.0)

    async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        start = None if wanted.start is None else int(wanted.start.name.removeprefix("adapter-"))

        def report(step: TrainingStep) -> None:
            lesson = wanted.lessons[step.step - 1]
            loss = nats(start, lesson.tokens[:-1], lesson.tokens[-1])
            progress(replace(step, loss=loss + self.error * (step.step % 2)))

        return await super().train(wanted, report)


@dataclass
class Engine(FakeEngine):
    """Its logprobs are the trainer's; what it serves in place of an adapter can be another one."""

    serves: Callable[[Adapter | None], Adapter | None] = lambda adapter: adapter
    faults: list[Exception] = field(default_factory=list)
    """What the next calls raise, the first one first."""

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        if self.faults:
            raise self.faults.pop(0)
        served = self.serves(adapter)
        serial = None if served is None else served.serial

        def told(completion: Completion) -> None:
            given = completion.request.answer
            if given is not None and len(given) == 1:
                before = completion.request.question.tokens
                logprob = -nats(serial, before, given[0])
                completion = replace(completion, logprobs=(logprob,))
            deliver(completion)

        await super().sample(requests, adapter, told)


class Hindered(Engine):
    """While a training is under way, everything takes twice as long, as on one stream."""

    trainer: Trainer

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        pace, self.seconds_per_token = self.seconds_per_token, TOKEN_S * (1 + self.trainer.busy)
        try:
            await super().sample(requests, adapter, deliver)
        finally:
            self.seconds_per_token = pace


@contextmanager
def no_pressure() -> Iterator[str]:
    yield "nothing was done"


def workbench(
    *,
    device: Device = CPU,
    trainer: Trainer | None = None,
    engine: type[Engine] = Engine,
    memory: Callable[[], Mapping[str, int]] = lambda: {"process": 0},
    pressure: Callable[[], AbstractContextManager[str]] = no_pressure,
    window: float = 1.0,
    settings: Sequence[str] = (),
) -> Workbench:
    """On the virtual clock of the event loop."""
    trainer = trainer or Trainer()
    serving = engine(CellEncoding(), {}, trainer.trained, TOKEN_S)
    trainer.engine = serving
    if isinstance(serving, Hindered):
        serving.trainer = trainer
    serials = count()
    runtime = Runtime(trainer, serving, CellEncoding(), Ledger(), lambda: next(serials))
    return Workbench(
        runtime,
        resolve(settings=settings),
        device,
        window,
        memory=memory,
        pressure=pressure,
        clock=anyio.current_time,
    )


def engine_of(bench: Workbench) -> Engine:
    """Its engine, to put a fault in."""
    assert isinstance(bench.runtime.engine, Engine)
    return bench.runtime.engine
