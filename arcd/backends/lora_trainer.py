"""The trainer: one adapter after the other on the resident base model, in a thread of its own.

The base stays loaded. The adapter's tensors and the optimizer are made anew only for a job that
wants other shapes; else they are reset in place for each task (`lora_adapter`). Knows nothing of
tasks beyond their lessons, nor of who serves the adapter.
"""

import asyncio
import errno
import gc
import json
import logging
import math
import os
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import torch
from safetensors import SafetensorError

from arcd.backends.failures import attempt
from arcd.backends.lora_adapter import LoraModel, TrainableAdapter, fixed
from arcd.backends.loss import Loss
from arcd.backends.memory import UNLIMITED, Memory
from arcd.backends.memory_forecast import Plan, StepMemory
from arcd.backends.protocols import WRITING, Adapter, Trained, TrainingStep, TrainRequest
from arcd.backends.streams import TRAINER_PRIORITY, own_stream
from arcd.config import TrainConfig
from arcd.errors import DiskFull, OutOfMemory, TrainerFailed
from arcd.model.base_model import MARKER, fingerprint
from arcd.model.device import Device
from arcd.model.lessons import lengths
from arcd.system.ledger import Ledger
from arcd.system.processes import resident_bytes, return_freed_memory

log = logging.getLogger(__name__)

CPU_TOKENS_AT_ONCE = 2048
"""Tokens of a batch that go through the model together on a CPU. More of them are not faster there,
and their activations take memory. On a GPU they are, so as many go together as fit."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the system says where a disk, or what a user may have of it, is full."""


class LoraTrainer:
    """Trains adapters, one at a time, into numbered folders under `folder`."""

    def __init__(
        self,
        model: Callable[[TrainConfig], LoraModel],
        base: Path,
        folder: Path,
        device: Device,
        ledger: Ledger,
        *,
        cores: Callable[[], int],
        memory: Memory = UNLIMITED,
    ) -> None:
        """Train tensors that `model` puts on the resident base, which came from the folder `base`.

        `cores` is called before each step: it says how many OpenMP threads the step may have on a
        CPU. `memory` is what the trainings may use.
        """
        self._cores, self._memory = cores, memory
        self._model, self._device, self._ledger = model, device, ledger
        self._base, self._folder = base, folder
        self._marker = {"base": fingerprint(base)}
        self._tensors: TrainableAdapter | None = None
        self._learnt: dict[tuple[object, ...], StepMemory] = {}
        """By what tensors are made for, what steps on them have taken."""
        self._entered = False
        self._lag = 0 if device.kind == "cpu" else 1
        """Steps that are queued beyond the one whose loss is read."""
        # One thread for all trainings: OpenMP keeps a team of threads for each thread that has ever
        # used it, and teams that outnumber the cores no longer spin: a step of 140 ms took 250.
        self._thread = ThreadPoolExecutor(1, "arcd-trainer")

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        """See `Trainer.train`."""
        handle = TrainingHandle(progress)
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._train, wanted, handle)
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            handle.cancelled = True
            with anyio.CancelScope(shield=True):
                await asyncio.wait([work])
            _discard(work)
            raise
        try:
            handle.check()
        except Exception:
            _discard(work)
            raise
        return work.result()

    def _train(self, wanted: TrainRequest, handle: "TrainingHandle") -> Trained:
        """The whole training, in the trainer's thread."""
        begun = time.monotonic()
        with self._ledger.span("trainer", "hand-over"):
            adapter = self._prepared(wanted)
            self._check_room(adapter)
            plan = self._planned(adapter, wanted)
        done = TrainingStep(0, 0, math.nan, 0.0)
        tokens = 0
        for step, steps, count, loss in self._steps(adapter, wanted, plan, handle):
            tokens += count
            done = TrainingStep(step, steps, loss, tokens / (time.monotonic() - begun))
            handle.tell(done)
            # In fp16 a loss can overflow once and the weights stay as they were.
            if not math.isfinite(loss) and not adapter.finite:
                break
        if not math.isfinite(done.loss):
            raise TrainerFailed(f"the loss became {done.loss} in training")
        with self._ledger.span("trainer", "hand-over"):
            saved = attempt(lambda: self._handed_over(adapter, wanted.serial), self._memory)
            return_freed_memory()
        seconds = time.monotonic() - begun
        return Trained(saved, done.steps, tokens, seconds, done.loss, resident_bytes())

    def _steps(
        self, adapter: TrainableAdapter, wanted: TrainRequest, plan: Plan, handle: "TrainingHandle"
    ) -> Iterator[tuple[int, int, int, float]]:
        """Make the steps; gives each one's number, the number of all, its tokens and its loss.

        On a GPU the loss is read when the next step is queued, so that it never waits for work.
        """
        size = wanted.config.batch_size
        steps = math.ceil(len(wanted.lessons) / size)
        queued: deque[tuple[int, int, int, Loss]] = deque()
        for step in range(steps):
            handle.check()
            if self._device.kind == "cpu":
                torch.set_num_threads(self._cores())
            batch = list(wanted.lessons[step * size : (step + 1) * size])
            lr = wanted.config.lr * learning_rate_factor(wanted.config, step, steps)
            with self._ledger.span("trainer", "step"):
                loss = adapter.step(batch, lr, plan)
                tokens = sum(len(lesson.tokens) for lesson in batch)
                queued.append((step + 1, steps, tokens, loss))
                ready = [self._read(*queued.popleft())] if len(queued) > self._lag else []
            yield from ready
        for each in queued:
            yield self._read(*each)

    def _read(self, step: int, steps: int, tokens: int, loss: Loss) -> tuple[int, int, int, float]:
        # An error of a kernel is told where the host waits for it.
        return step, steps, tokens, attempt(loss.read, self._memory)

    def _prepared(self, wanted: TrainRequest) -> TrainableAdapter:
        """The tensors for this configuration, in their state before the first step."""
        try:
            return attempt(lambda: self._reset(wanted), self._memory)
        except OutOfMemory:
            self._tensors = None
            gc.collect()
            self._memory.release()
            raise

    def _reset(self, wanted: TrainRequest) -> TrainableAdapter:
        self._enter()
        config = wanted.config
        if self._tensors is None or not self._tensors.suits(config):
            self._tensors = None  # the memory of the old ones is free for the new
            gc.collect()
            model = self._model(config)
            if (learnt := self._learnt.get(fixed(config))) is None:
                most = CPU_TOKENS_AT_ONCE if self._device.kind == "cpu" else None
                learnt = self._learnt[fixed(config)] = StepMemory(
                    self._memory, model.footprint, most
                )
            self._tensors = TrainableAdapter(model, self._base, config, self._device, learnt)
        self._tensors.reset(wanted.seed, wanted.start or config.start)
        return self._tensors

    def _enter(self) -> None:
        """The first thing in the thread: on a GPU it has a stream of its own."""
        if self._device.kind == "cpu" or self._entered:
            return
        # The base was put there on another stream. What torch keeps of that one's memory no other
        # stream can have.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        own_stream(TRAINER_PRIORITY)
        self._entered = True

    def _planned(self, adapter: TrainableAdapter, wanted: TrainRequest) -> Plan:
        """How the steps are made; raises OutOfMemory before any is, if they cannot fit."""
        frugal = wanted.frugal or wanted.config.checkpointing
        plan = adapter.plan(lengths(wanted.lessons), frugal=frugal)
        if plan.recompute and not frugal:
            log.info("adapter %d: activations are recomputed to fit the memory", wanted.serial)
        return plan

    def _check_room(self, adapter: TrainableAdapter) -> None:
        """Raise DiskFull before the training rather than after it."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise self._refused(adapter, error) from error
        if free < adapter.size:
            raise self._full(adapter)

    def _refused(
        self, adapter: TrainableAdapter, error: OSError | SafetensorError
    ) -> TrainerFailed:
        """What to raise where the file system refuses an adapter."""
        return self._full(adapter) if _no_room(error) else TrainerFailed(f"{self._folder}: {error}")

    def _full(self, adapter: TrainableAdapter) -> DiskFull:
        return DiskFull(f"{self._folder}: no room for an adapter of {adapter.size / 1e6:.1f} MB")

    def _handed_over(self, adapter: TrainableAdapter, serial: int) -> Adapter:
        if not adapter.finite:
            raise TrainerFailed("its weights became infinite or NaN in training")
        return self._save(adapter, serial)

    def _save(self, trained: TrainableAdapter, serial: int) -> Adapter:
        """Write a PEFT folder, which is on the disk and complete before it has its name."""
        adapter = Adapter.under(self._folder, serial)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self._folder, prefix=WRITING))
            try:
                trained.save(temporary)
                (temporary / MARKER).write_text(json.dumps(self._marker) + "\n")
                for file in temporary.iterdir():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
                temporary.replace(adapter.path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        except (OSError, SafetensorError) as error:
            raise self._refused(trained, error) from error
        return adapter


def _discard(work: asyncio.Future[Trained]) -> None:
    """Remove the adapter of a training that is not wanted, if it was saved before it knew."""
    # Asked for in any case: asyncio complains of an exception that nobody has seen.
    if work.exception() is None:
        shutil.rmtree(work.result().adapter.path, ignore_errors=True)


class TrainingHandle:
    """What the event loop and the trainer's thread share of one training.

    Neither waits for the other: writing a step to the store takes as long as the disk does, and the
    next step goes on meanwhile.
    """

    def __init__(self, progress: Callable[[TrainingStep], None]) -> None:
        """Made in the event loop, in which `progress` is called."""
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._progress = progress
        self._failure: Exception | None = None

    def tell(self, step: TrainingStep) -> None:
        """Send a step to `progress`; called in the thread.

        All steps arrive, in order, before the training is over.
        """
        self._loop.call_soon_threadsafe(self._arrive, step)

    def check(self) -> None:
        """Raise what `progress` has raised, or TrainerFailed after a cancellation."""
        if self._failure is not None:
            raise self._failure
        if self.cancelled:
            raise TrainerFailed("the training was cancelled")

    def _arrive(self, step: TrainingStep) -> None:
        if self._failure is None and not self.cancelled:
            try:
                self._progress(step)
            except Exception as error:
                self._failure = error


def learning_rate_factor(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step 0..steps-1 as a fraction of the highest: warm-up, then the schedule."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))


def _no_room(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    # safetensors tells the number in its text alone: "(os error 28)", before 0.6 "code: 28".
    told = re.search(r"(?:os error|code:) (\d+)", str(error))
    return told is not None and int(told[1]) in NO_ROOM
