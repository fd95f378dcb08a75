"""The runtime: what tasks are solved with, and how the real one is opened and closed.

It loads the base model, then opens the trainer and the engine on it, in the only order that works,
and closes them whatever happens. Knows nothing of jobs.
"""

import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from anyio import from_thread, to_thread

from arcd.backends.memory import UNLIMITED, GpuMemory, Memory
from arcd.backends.protocols import Engine, Trainer
from arcd.backends.trainer_pool import TrainerPool
from arcd.config import Config, EngineConfig
from arcd.errors import MissingPackage
from arcd.model.base_model import open_encoding
from arcd.model.device import Device
from arcd.model.encoding import Encoding
from arcd.system.ledger import Ledger
from arcd.system.processes import cores
from arcd.system.visible_gpus import narrow

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""Longest time that a thread keeps Python's interpreter lock while another waits; Python's default
is 0.005. Trainer and engine release the lock in thousands of calls to torch a second and have to
get it back each time: 45.5 s became 42.6 (12 tasks, 20 steps, two cores)."""


T = TypeVar("T")


class Background(Protocol):
    """Runs Python code that takes long, so that the event loop goes on meanwhile."""

    async def __call__(self, work: Callable[[Callable[[], None]], T]) -> T:
        """What `work` returns. Its argument is to be called often: it raises after a cancellation.

        A cancellation takes effect when `work` has ended.
        """
        ...


async def in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """The background of a daemon: a thread."""
    return await to_thread.run_sync(work, from_thread.check_cancelled)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What tasks are solved with; all of them share it."""

    trainer: Trainer
    engine: Engine
    encoding: Encoding
    ledger: Ledger
    serial: Callable[[], int]
    """Gives the next adapter its number, which never repeats."""
    background: Background = in_thread
    twice: str | None = None
    """Why the base is in memory twice; None where trainer and engine have one copy."""


def set_environment(device: str) -> None:
    """Set what torch and CUDA read when they are imported; other variables of the user's stay.

    Raises BadConfig for what is no device, or is a GPU that this process must not see.
    """
    narrow(device)
    # torch's remarks on NUMA do not help a user.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # oneDNN keeps 1024 kernels, one for each shape, and torch keeps as many again. Each task has
    # lengths of its own: over hundreds of tasks memory grew.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
    # Trainer and engine set the number of their OpenMP threads; no other thread shall have a team.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@asynccontextmanager
async def open_runtime(
    base: Path,
    config: Config,
    device: Device,
    *,
    rank: int,
    adapters: Path,
    compiled: Path,
    ledger: Ledger,
    serial: Callable[[], int],
) -> AsyncIterator[Runtime]:
    """A runtime on the folder `base`, with adapters of at most `rank` in folders under `adapters`.

    `compiled` is the folder for what torch compiles.

    Raises MissingPackage without torch or vLLM, BadBase or BadConfig if the base cannot be used,
    EngineFailed if vLLM cannot start.
    """
    try:
        with ledger.stage("transformers"):
            from arcd.backends import base_copies
            from arcd.backends.lora_trainer import LoraTrainer
            from arcd.backends.resident_base import ResidentBase
            from arcd.backends.vllm.engine import vllm_engine
    except ImportError:
        raise MissingPackage from None
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with ExitStack() as loading:
        loading.enter_context(ledger.span("host", "load"))
        encoding = await to_thread.run_sync(open_encoding, base, config.encoding)
        # Looked at before vLLM, which says less clearly what is wrong with a base.
        with ledger.stage("base folder"):
            resident = await to_thread.run_sync(ResidentBase, base, device, encoding, compiled)
        if resident.unsupported is not None:
            log.warning("%s: trained by transformers and peft: %s", base, resident.unsupported)
        trainings = _trainings(config.trainings, device)
        split = _CoreSplit(trainings)

        def trainer(index: int) -> LoraTrainer:
            threads = partial(split.threads, index)
            memory = _memory(device, config.engine, lambda: resident.own_bytes, trainings)
            return LoraTrainer(
                resident.lora, base, adapters, device, ledger, cores=threads, memory=memory
            )

        split.pool = pool = TrainerPool([trainer(index) for index in range(trainings)])
        async with vllm_engine(
            base,
            answer_tokens=encoding.answer_tokens,
            end=encoding.end,
            config=config.engine,
            rank=rank,
            device=device,
            ledger=ledger,
            cores=split.of_engine,
        ) as engine:
            split.engine = engine
            with ledger.stage("base model"):
                twice = await base_copies.load(resident, engine, encoding)
            log.info("the base is in memory %s", f"twice: {twice}" if twice else "once")
            loading.close()
            try:
                yield Runtime(pool, engine, encoding, ledger, serial, twice=twice)
            finally:
                resident.close()


class _CoreSplit:
    """How the cores of a CPU are divided between the trainers and the engine, as OpenMP threads.

    OpenMP threads that outnumber the cores wait for each other: on two cores a trainer with two
    threads made 4500 tok/s alone, but 1400 beside one busy thread. OpenMP counts the threads of
    every team that was ever made, also while it is idle. So the teams of all trainers together may
    have, beyond one thread each, as many threads as there are cores without the engine's.
    """

    def __init__(self, trainings: int) -> None:
        self.of_engine = max(1, cores() // 2)
        self.pool: TrainerPool | None = None
        self.engine: Engine | None = None
        self._trainings = trainings
        self._spare = cores() - self.of_engine

    def threads(self, index: int) -> int:
        """Threads of trainer number `index` for its next step, given what else is busy now."""
        alone = self.pool is None or self.pool.alone(index)
        busy = self.engine is not None and self.engine.busy
        return self.of_trainer(index, alone=alone, engine_busy=busy)

    def of_trainer(self, index: int, *, alone: bool, engine_busy: bool) -> int:
        """Threads of a trainer if it is the only busy one (`alone`) and if the engine is busy."""
        each = self._spare // self._trainings
        if engine_busy:
            return max(1, each)
        if alone and index == 0:
            return 1 + self._spare - each * (self._trainings - 1)
        return 1 + each


def _memory(
    device: Device, engine: EngineConfig, base: Callable[[], int], trainings: int
) -> Memory:
    """What each of some trainers may use beside the engine; `base` tells their base's own bytes."""
    if device.kind == "cpu":
        return UNLIMITED
    # With bytes of its own for the cache, the engine has what it holds, not a share.
    share = engine.gpu_memory if engine.kv_cache_memory_bytes is None else None
    return GpuMemory(share, base, trainings)


def _trainings(wanted: int | None, device: Device) -> int:
    """Adapters trained at once, unless the user wants a number: one fills a GPU, not a CPU."""
    return wanted or (max(1, min(cores(), max(2, cores() // 2))) if device.kind == "cpu" else 1)
