"""The real rig: the base model loaded, the trainer and the engine on it, opened in the one order
that works and closed again whatever happens. Knows nothing of jobs.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from anyio import to_thread

from arcd.backends import Engine
from arcd.basemodel import Device, load_model, open_encoding
from arcd.config import Config
from arcd.errors import MissingPackage
from arcd.ledger import Ledger
from arcd.processes import cores
from arcd.solver import Rig


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
async def open_rig(
    base: Path,
    config: Config,
    device: Device,
    *,
    rank: int,
    adapters: Path,
    ledger: Ledger,
    serial: Callable[[], int],
) -> AsyncIterator[Rig]:
    """A rig on the base that serves adapters of at most `rank`, kept under `adapters`."""
    try:
        from arcd.backends.lora import LoraTrainer
        from arcd.backends.vllm_engine import vllm_engine
    except ImportError:
        raise MissingPackage from None
    with ExitStack() as loading:
        loading.enter_context(ledger.span("host", "load"))
        encoding = await to_thread.run_sync(open_encoding, base, config.encoding)
        # One after the other: while it starts, vLLM changes torch's default dtype for everyone.
        model = await to_thread.run_sync(load_model, base, device)
        cores = _Cores()
        trainer = LoraTrainer(model, base, adapters, device, encoding.pad, ledger, cores=cores)
        async with vllm_engine(
            base,
            answer_tokens=encoding.answer_tokens,
            end=encoding.end,
            config=config.engine,
            rank=rank,
            dtype=device.dtype,
            ledger=ledger,
            cores=cores.half,
        ) as engine:
            cores.engine = engine
            loading.close()
            yield Rig(trainer, engine, encoding, ledger, serial)


class _Cores:
    """How many of the machine's cores the trainer may use, on a CPU.

    Those that the engine leaves, and while it is idle one more. OpenMP threads that outnumber the
    cores wait for each other: on two cores a trainer with two of them made 4500 tok/s alone (one:
    3000), but 1400 beside one busy thread. Those that the engine keeps count also while it is idle,
    all but the one that the trainer has instead.
    """

    def __init__(self) -> None:
        self.all = cores()
        self.half = max(1, self.all // 2)
        self.engine: Engine | None = None

    def __call__(self) -> int:
        busy = self.engine is not None and self.engine.busy
        left = self.all - self.half
        return max(1, left) if busy else left + 1
