"""The runtime: what tasks are solved with, and how the real one is opened and closed.

The base model is loaded, then the trainer and the engine on it, in the one order that works; all of
it is closed again whatever happens. Knows nothing of jobs.
"""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import to_thread

from arcd.backends.protocols import Engine, Trainer
from arcd.backends.trainer_pool import TrainerPool
from arcd.config import Config
from arcd.errors import MissingPackage
from arcd.model.base_model import Device, load_model, open_encoding, twin
from arcd.model.encoding import Encoding
from arcd.system.ledger import Ledger
from arcd.system.processes import cores

SWITCH = 0.0005
"""Seconds that a thread may keep Python to itself while others wait, instead of 0.005: trainers and
engine call torch thousands of times a second, each time to come back for it. 45.5 s became 42.6
(12 tasks, 20 steps, two cores)."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What tasks are solved with; shared by all of them. `serial` numbers an adapter."""

    trainer: Trainer
    engine: Engine
    encoding: Encoding
    ledger: Ledger
    serial: Callable[[], int]


def set_environment() -> None:
    """What torch reads once, when it is imported; a user's own settings win."""
    # Its remarks on NUMA are no news to a user.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # oneDNN keeps 1024 kernels, one for each new shape, and torch keeps as many on top of it:
    # together they made memory grow for hundreds of tasks, all of them of lengths of their own.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
    # Trainer and engine say how many they want; nobody else shall keep a team of OpenMP threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@asynccontextmanager
async def open_runtime(
    base: Path,
    config: Config,
    device: Device,
    *,
    rank: int,
    adapters: Path,
    ledger: Ledger,
    serial: Callable[[], int],
) -> AsyncIterator[Runtime]:
    """A runtime on the base that serves adapters of at most `rank`, kept under `adapters`."""
    try:
        from arcd.backends.lora_trainer import LoraTrainer
        from arcd.backends.vllm.engine import vllm_engine
    except ImportError:
        raise MissingPackage from None
    sys.setswitchinterval(SWITCH)
    with ExitStack() as loading:
        loading.enter_context(ledger.span("host", "load"))
        encoding = await to_thread.run_sync(open_encoding, base, config.encoding)
        # One after the other: while it starts, vLLM changes torch's default dtype for everyone.
        model = await to_thread.run_sync(load_model, base, device)
        trainings = _trainings(config.trainings, device)
        share = _Cores(trainings)
        # A trainer puts its adapter on its model: each needs one of its own.
        models = [model, *(twin(model) for _ in range(1, trainings))]
        share.pool = pool = TrainerPool(
            [
                LoraTrainer(
                    own, base, adapters, device, encoding.pad, ledger, cores=partial(share.now, i)
                )
                for i, own in enumerate(models)
            ]
        )
        async with vllm_engine(
            base,
            answer_tokens=encoding.answer_tokens,
            end=encoding.end,
            config=config.engine,
            rank=rank,
            dtype=device.dtype,
            ledger=ledger,
            cores=share.of_engine,
        ) as engine:
            share.engine = engine
            loading.close()
            yield Runtime(pool, engine, encoding, ledger, serial)


class _Cores:
    """How the cores of a CPU are divided between the trainers and the engine.

    OpenMP threads that outnumber the cores wait for each other: on two cores a trainer with two of
    them made 4500 tok/s alone, but 1400 beside one busy thread. Those that the engine keeps count
    also while it is idle, and so do those that a trainer has had: what is left for teams beyond the
    one thread that each has is all cores but the engine's.
    """

    def __init__(self, trainings: int) -> None:
        self.of_engine = max(1, cores() // 2)
        self.pool: TrainerPool | None = None
        self.engine: Engine | None = None
        self._trainings = trainings
        self._spare = cores() - self.of_engine

    def now(self, index: int) -> int:
        """Threads of a trainer for its next step, as things are."""
        alone = self.pool is None or self.pool.alone(index)
        busy = self.engine is not None and self.engine.busy
        return self.of_trainer(index, alone=alone, engine_busy=busy)

    def of_trainer(self, index: int, *, alone: bool, engine_busy: bool) -> int:
        """Threads of a trainer when it is the only one that is busy, or the engine is, too."""
        each = self._spare // self._trainings
        if engine_busy:
            return max(1, each)
        if alone and index == 0:
            return 1 + self._spare - each * (self._trainings - 1)
        return 1 + each


def _trainings(wanted: int | None, device: Device) -> int:
    """Adapters trained at once: a GPU is kept busy by one, a CPU better by several."""
    return wanted or (max(1, min(cores(), max(2, cores() // 2))) if device.kind == "cpu" else 1)
