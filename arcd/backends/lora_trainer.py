"""The trainer: one set of LoRA tensors on the resident base model, trained anew for each task.

The base stays; the adapter's tensors and the optimizer are made anew only where a job wants them
shaped otherwise than the one before, else a task resets them in place.
The only importer of peft and of torch's training code. Knows nothing of tasks beyond their lessons,
nor of who serves the adapter.
"""

import asyncio
import ctypes
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import anyio
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from arcd.backends.protocols import Adapter, Trained, TrainingStep, TrainRequest
from arcd.config import TrainConfig
from arcd.errors import OutOfMemory, TrainerFailed
from arcd.model.base_model import MARKER, Device, fingerprint
from arcd.model.collate import collate
from arcd.model.prompts import IGNORED, Lesson
from arcd.system.ledger import Ledger


def factor(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of step 0..steps-1 as a share of the highest: warm-up, then the schedule."""
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


class LoraTrainer:
    """Trains adapters, one at a time, into numbered folders under `folder`."""

    def __init__(
        self,
        model: PreTrainedModel,
        base: Path,
        folder: Path,
        device: Device,
        pad: int,
        ledger: Ledger,
        *,
        cores: Callable[[], int],
    ) -> None:
        """Train on the resident `model`, which was loaded from the folder `base`.

        `cores` says before each step how many OpenMP threads it may have on a CPU.
        """
        self._cores = cores
        self._model, self._device, self._pad, self._ledger = model, device, pad, ledger
        self._folder = folder
        self._marker = {"base": fingerprint(base)}
        self._lora: _Lora | None = None
        # Always the same one: OpenMP keeps a team of threads for each thread that has ever had one,
        # and where there are more than cores they no longer spin: 140 ms a step became 250.
        self._thread = ThreadPoolExecutor(1, "arcd-trainer")

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        """See `Trainer.train`."""
        course = TrainingHandle(progress)
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._train, wanted, course)
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            course.cancelled = True
            with anyio.CancelScope(shield=True):
                await asyncio.wait([work])
            if work.exception() is None:  # it came to its end all the same
                shutil.rmtree(work.result().adapter.path, ignore_errors=True)
            raise
        course.check()
        return work.result()

    def _train(self, wanted: TrainRequest, course: "TrainingHandle") -> Trained:
        begun = time.monotonic()
        size = wanted.config.batch_size
        steps = math.ceil(len(wanted.lessons) / size)
        tokens, loss = 0, math.nan
        with self._ledger.span("trainer", "hand-over"):
            lora = self._prepared(wanted)
        with lora.checkpointing(wanted.frugal or wanted.config.checkpointing):
            for step in range(steps):
                course.check()
                if self._device.kind == "cpu":
                    torch.set_num_threads(self._cores())
                batch = wanted.lessons[step * size : (step + 1) * size]
                with self._ledger.span("trainer", "step"):
                    loss = lora.step(batch, wanted.config.lr * factor(wanted.config, step, steps))
                tokens += sum(len(lesson.tokens) for lesson in batch)
                rate = tokens / (time.monotonic() - begun)
                course.tell(TrainingStep(step + 1, steps, loss, rate))
        if not math.isfinite(loss):
            raise TrainerFailed(f"the loss became {loss} in training")
        with self._ledger.span("trainer", "hand-over"):
            adapter = self._save(lora, wanted.serial)
            _return_freed_memory()
        seconds = time.monotonic() - begun
        return Trained(adapter, steps, tokens, seconds, loss, resident_bytes())

    def _prepared(self, wanted: TrainRequest) -> "_Lora":
        """The tensors for this configuration, in their state before the first step."""
        if self._lora is None or not self._lora.suits(wanted.config):
            if self._lora is not None:
                self._model = self._lora.remove()
                self._lora = None
            self._lora = _Lora(self._model, wanted.config, self._device, self._pad)
        self._lora.reset(wanted.seed, wanted.start or wanted.config.start)
        return self._lora

    def _save(self, lora: "_Lora", serial: int) -> Adapter:
        """A PEFT folder, on the disk and complete before it has its name."""
        adapter = Adapter(serial, self._folder / f"adapter-{serial}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self._folder, prefix=".writing-"))
            try:
                lora.save(temporary)
                (temporary / MARKER).write_text(json.dumps(self._marker) + "\n")
                for file in temporary.iterdir():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
                temporary.replace(adapter.path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        except (OSError, SafetensorError) as error:
            raise TrainerFailed(f"{adapter.path}: {error}") from error
        return adapter


class TrainingHandle:
    """What the training thread and the event loop tell each other; neither waits for the other.

    Writing a step down takes as long as the disk does: the next one need not stand still for it.
    """

    def __init__(self, progress: Callable[[TrainingStep], None]) -> None:
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._progress = progress
        self._failure: Exception | None = None

    def tell(self, step: TrainingStep) -> None:
        """Called in the thread; all that is told arrives, in order, before the training is over."""
        self._loop.call_soon_threadsafe(self._arrive, step)

    def check(self) -> None:
        """Raise what the arrival of a step has raised, or that nobody wants the training now."""
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


class _Lora:
    """LoRA tensors on a base model, with their optimizer: reset and trained again and again."""

    def __init__(
        self, model: PreTrainedModel, config: TrainConfig, device: Device, pad: int
    ) -> None:
        """Put the tensors on the model; raises TrainerFailed where it lacks a target module."""
        self._config, self._device, self._pad = config, device, pad
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            use_rslora=config.rslora,
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
            task_type="CAUSAL_LM",
        )
        try:
            self._peft = get_peft_model(model, lora)
        except ValueError as error:
            raise TrainerFailed(str(error).splitlines()[0]) from None
        self._peft.train()
        self._layers = [m for m in self._peft.modules() if isinstance(m, LoraLayer)]
        self._parameters = [p for p in self._peft.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, weight_decay=config.weight_decay)
        self._scaler = self._fresh_scaler()

    def suits(self, config: TrainConfig) -> bool:
        """Whether another training can have these tensors: only its course may differ."""
        course = {"steps", "batch_size", "lr", "schedule", "warmup", "max_seq_len", "loss", "start"}
        shape = {*TrainConfig.model_fields} - course - {"checkpointing"}
        return all(getattr(config, name) == getattr(self._config, name) for name in shape)

    def remove(self) -> PreTrainedModel:
        """Take the tensors off; the base as it was."""
        return cast(PreTrainedModel, self._peft.unload())

    def reset(self, seed: int, start: Path | None = None) -> None:
        """A fresh adapter (as peft makes it: A uniform, B zero) or the given one; no momentum.

        Raises TrainerFailed where the given one does not fit.
        """
        given = self._load(start) if start else {}
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self._layers:
                for a, b in zip(layer.lora_A.values(), layer.lora_B.values(), strict=True):
                    bound = 1 / math.sqrt(a.in_features)  # Kaiming uniform with a = sqrt(5)
                    a.weight.copy_(
                        torch.empty(a.weight.shape).uniform_(-bound, bound, generator=rng)
                    )
                    b.weight.zero_()
            if given:
                for name, parameter in self._live().items():
                    parameter.copy_(given[name])
        self._optimizer.state.clear()
        # One whose step failed half-way refuses the next.
        self._scaler = self._fresh_scaler()

    def _fresh_scaler(self) -> torch.amp.GradScaler:
        # Only fp16 gradients can underflow; elsewhere the scaler is a no-op.
        return torch.amp.GradScaler(self._device.kind, enabled=self._device.dtype == "float16")

    def step(self, batch: Sequence[Lesson], lr: float) -> float:
        """One step of the optimizer; the loss before it, in nats per labelled token."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        try:
            loss = self._loss(batch)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
            self._scaler.step(self._optimizer)
        except RuntimeError as error:
            self._optimizer.zero_grad()
            if _out_of_memory(error):
                raise OutOfMemory from error
            raise TrainerFailed(str(error).splitlines()[0]) from error
        self._scaler.update()
        self._optimizer.zero_grad()
        return loss.item()

    def checkpointing(self, wanted: bool) -> AbstractContextManager[object]:
        """Recompute activations in the backward pass for as long as the block lasts, if wanted."""
        return _GradientCheckpointing(self._peft) if wanted else nullcontext()

    def save(self, folder: Path) -> None:
        """Write weights and configuration as a PEFT folder."""
        dtype = getattr(torch, self._device.dtype)
        tensors = {
            name: value.detach().to("cpu", dtype).contiguous()
            for name, value in self._live().items()
        }
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        self._peft.peft_config["default"].save_pretrained(str(folder))

    def _loss(self, batch: Sequence[Lesson]) -> Tensor:
        """Mean negative log-likelihood, in nats, over the labelled tokens of a batch."""
        tokens, labels = collate(batch, self._pad, self._device.kind)
        wanted = labels[:, 1:] != IGNORED
        # Logits only at the places before a labelled token; padding stands on the right, where a
        # causal model's earlier tokens do not see it, so no attention mask is needed.
        places = wanted.any(dim=0).nonzero()[:, 0]
        with self._autocast(), disable_input_dtype_casting(self._peft):
            logits = self._peft(tokens, use_cache=False, logits_to_keep=places).logits
        learnt = wanted[:, places]
        return F.cross_entropy(logits[learnt].float(), labels[:, 1:][:, places][learnt])

    def _autocast(self) -> AbstractContextManager[object]:
        if self._device.dtype == "float32":
            return nullcontext()
        return torch.autocast(self._device.kind, getattr(torch, self._device.dtype))

    def _live(self) -> dict[str, Tensor]:
        """The tensors in training under the names of a PEFT file."""
        return cast(dict[str, Tensor], get_peft_model_state_dict(self._peft))

    def _load(self, start: Path) -> dict[str, Tensor]:
        """The tensors of an adapter to start from, which must be shaped as these."""
        try:
            given: dict[str, Tensor] = load_file(start / "adapter_model.safetensors")
        except (OSError, SafetensorError) as error:
            raise TrainerFailed(f"{start}: no adapter in it: {error}") from None
        live = {name: tuple(value.shape) for name, value in self._live().items()}
        if {name: tuple(value.shape) for name, value in given.items()} != live:
            raise TrainerFailed(f"{start}: an adapter of another base, rank or set of modules")
        return given


class _GradientCheckpointing:
    """Recompute activations in the backward pass for as long as the block lasts."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.gradient_checkpointing_enable({"use_reentrant": False})

    def __exit__(self, *_: object) -> None:
        self._model.gradient_checkpointing_disable()


def _return_freed_memory() -> None:
    """Give the system back what the last task freed, where the C library can (glibc).

    By itself glibc keeps the high-water mark of the longest task for the rest of the run.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM now; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an error of its own; the CPU's allocator only says so."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
