"""A session: models loaded once, all tasks solved, everything written down.

Opens what a run needs in the one order that works, and closes it again whatever happens. Knows
nothing of command lines.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from arcd import __version__, runs
from arcd.basemodel import Device, check, fingerprint, load_model, open_encoding, pick_device
from arcd.config import Config
from arcd.errors import MissingPackage
from arcd.events import Emit, Event
from arcd.ledger import Account, Ledger
from arcd.scheduler import solve_all
from arcd.selection import Verdict
from arcd.solver import Rig
from arcd.tasks import TaskSet


@dataclass(frozen=True)
class Outcome:
    """What a session leaves: its run folder, the verdicts, and where the time went."""

    folder: Path
    verdicts: dict[str, Verdict]
    account: Account


def run(
    tasks: TaskSet,
    base: Path,
    config: Config,
    *,
    device: str,
    home: Path,
    outs: Sequence[Path] = (),
    listeners: Sequence[Emit] = (),
) -> Outcome:
    """Solve all tasks in a new run folder under `home`; blocks until done.

    The submission in the folder, and in each of `outs`, is complete and valid from the start.
    Everything that can be checked is checked before anything is written.
    """
    _set_environment()
    open_encoding(check(base), config.encoding)
    picked = pick_device(device, config.precision)
    about = {
        "arcd": __version__,
        "base": str(base.resolve()),
        "fingerprint": fingerprint(base),
        "device": picked.kind,
        "dtype": picked.dtype,
        "config": config.model_dump(mode="json"),
    }
    ledger = Ledger()
    folder = runs.create(home, tasks, about)
    recorder = runs.Recorder(folder, tasks, tuple(outs))

    def emit(event: Event) -> None:
        with ledger.span("host", "record"):
            recorder(event)
            for listener in listeners:
                listener(event)

    async def main() -> dict[str, Verdict]:
        async with rig(base, config, picked, folder / "adapters", ledger) as opened:
            return await solve_all(tasks.tasks, opened, emit)

    with ExitStack() as closing:
        closing.callback(lambda: recorder.close(ledger.account()))
        verdicts = anyio.run(main)
    return Outcome(folder, verdicts, ledger.account())


def _set_environment() -> None:
    """What torch reads once, when it is imported; a user's own settings win."""
    # Its remarks on NUMA are no news to a user.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # oneDNN keeps 1024 kernels, one for each new shape: from task 5 to task 30, of all lengths,
    # memory grew by 10 % with that and by 4 % with 128, at the same speed; 32 was no better.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")


@asynccontextmanager
async def rig(
    base: Path, config: Config, device: Device, adapters: Path, ledger: Ledger
) -> AsyncIterator[Rig]:
    """The real trainer and the real engine on one base, ready to work."""
    try:
        from arcd.backends.lora import LoraTrainer
        from arcd.backends.vllm_engine import vllm_engine
    except ImportError:
        raise MissingPackage from None
    encoding = open_encoding(base, config.encoding)
    with ExitStack() as loading:
        loading.enter_context(ledger.span("host", "load"))
        # One after the other: while it starts, vLLM changes torch's default dtype for everyone.
        model = load_model(base, device)
        trainer = LoraTrainer(model, base, adapters, device, config.train, encoding.pad, ledger)
        async with vllm_engine(
            base,
            answer_tokens=encoding.answer_tokens,
            end=encoding.end,
            config=config.engine,
            sample=config.sample,
            rank=config.train.rank,
            dtype=device.dtype,
            ledger=ledger,
        ) as engine:
            loading.close()
            yield Rig(trainer, engine, encoding, config, ledger)
