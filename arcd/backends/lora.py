"""The trainer: one set of LoRA tensors on the resident base model, trained anew for each task.

The base, the adapter's tensors and the optimizer are made once; a task only resets them in place.
The only importer of peft and of torch's training code. Knows nothing of tasks beyond their lessons,
nor of who serves the adapter.
"""

import ctypes
import itertools
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from anyio import from_thread, to_thread
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from arcd.backends import Adapter, Trained, TrainingStep
from arcd.basemodel import Device, fingerprint
from arcd.config import TrainConfig
from arcd.errors import BadBase, OutOfMemory, TrainerFailed
from arcd.ledger import Ledger
from arcd.prompts import IGNORED, Lesson
from arcd.tensors import collate

MARKER = "arcd.json"
"""Beside an adapter's weights: the fingerprint of the base that it belongs to."""


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
        config: TrainConfig,
        pad: int,
        ledger: Ledger,
    ) -> None:
        """Put the adapter's tensors on the resident `model`, loaded from the folder `base`.

        Raises BadBase where the base lacks a target module or `config.start` does not fit it.
        """
        self._config, self._device, self._pad, self._ledger = config, device, pad, ledger
        self._folder = folder
        self._base_fingerprint = fingerprint(base)
        self._serials = itertools.count()
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
            raise BadBase(f"{base}: {str(error).splitlines()[0]}") from None
        self._peft.train()
        self._layers = [m for m in self._peft.modules() if isinstance(m, LoraLayer)]
        self._parameters = [p for p in self._peft.parameters() if p.requires_grad]
        self._start = self._load_start() if config.start else None
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.lr, weight_decay=config.weight_decay
        )
        # Only fp16 gradients can underflow; elsewhere the scaler is a no-op.
        self._scaler = torch.amp.GradScaler(device.kind, enabled=device.dtype == "float16")

    async def train(
        self,
        lessons: Sequence[Lesson],
        seed: int,
        progress: Callable[[TrainingStep], None],
        *,
        frugal: bool = False,
    ) -> Trained:
        return await to_thread.run_sync(self._train, lessons, seed, progress, frugal)

    def _train(
        self,
        lessons: Sequence[Lesson],
        seed: int,
        progress: Callable[[TrainingStep], None],
        frugal: bool,
    ) -> Trained:
        begun = time.monotonic()
        if self._device.kind == "cpu":
            # This thread's half of the cores; the engine's has the others. OpenMP threads that
            # outnumber the cores wait for each other: on two cores 3 of them were 3 to 10 times
            # slower than 2.
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
        steps = math.ceil(len(lessons) / self._config.batch_size)
        tokens, loss = 0, math.nan
        with self._ledger.span("trainer", "hand-over"):
            self._reset(seed)
        with self._checkpointing(frugal or self._config.checkpointing):
            for step, batch in enumerate(self._batches(lessons)):
                from_thread.check_cancelled()
                with self._ledger.span("trainer", "step"):
                    loss = self._step(batch, factor(self._config, step, steps))
                tokens += sum(len(lesson.tokens) for lesson in batch)
                rate = tokens / (time.monotonic() - begun)
                from_thread.run_sync(progress, TrainingStep(step + 1, steps, loss, rate))
        if not math.isfinite(loss):
            raise TrainerFailed(f"the loss became {loss} in training")
        with self._ledger.span("trainer", "hand-over"):
            adapter = self._save()
            _return_freed_memory()
        return Trained(adapter, steps, tokens, time.monotonic() - begun, loss)

    def _batches(self, lessons: Sequence[Lesson]) -> Iterator[Sequence[Lesson]]:
        size = self._config.batch_size
        return (lessons[i : i + size] for i in range(0, len(lessons), size))

    def _step(self, batch: Sequence[Lesson], share: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * share
        try:
            loss = self._loss(batch)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            self._optimizer.zero_grad()
            if _out_of_memory(error):
                raise OutOfMemory from error
            raise TrainerFailed(str(error).splitlines()[0]) from error
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return loss.item()

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

    def _checkpointing(self, wanted: bool) -> AbstractContextManager[object]:
        if not wanted:
            return nullcontext()
        return _GradientCheckpointing(self._peft)

    def _reset(self, seed: int) -> None:
        """A fresh adapter (as peft makes it: A uniform, B zero) or the given one; no momentum."""
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self._layers:
                for a, b in zip(layer.lora_A.values(), layer.lora_B.values(), strict=True):
                    bound = 1 / math.sqrt(a.in_features)  # Kaiming uniform with a = sqrt(5)
                    a.weight.copy_(
                        torch.empty(a.weight.shape).uniform_(-bound, bound, generator=rng)
                    )
                    b.weight.zero_()
            if self._start is not None:
                for name, parameter in self._saved_parameters().items():
                    parameter.copy_(self._start[name])
        self._optimizer.state.clear()

    def _saved_parameters(self) -> dict[str, Tensor]:
        """The adapter's live tensors under the names of a PEFT file."""
        return cast(dict[str, Tensor], get_peft_model_state_dict(self._peft))

    def _save(self) -> Adapter:
        """A PEFT folder, complete before it has its name."""
        adapter = Adapter(serial := next(self._serials), self._folder / f"adapter-{serial}")
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self._folder, prefix=".writing-"))
        try:
            dtype = getattr(torch, self._device.dtype)
            tensors = {
                name: value.detach().to("cpu", dtype).contiguous()
                for name, value in self._saved_parameters().items()
            }
            save_file(tensors, temporary / "adapter_model.safetensors", {"format": "pt"})
            self._peft.peft_config["default"].save_pretrained(str(temporary))
            (temporary / MARKER).write_text(json.dumps({"base": self._base_fingerprint}) + "\n")
            temporary.replace(adapter.path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise TrainerFailed(f"{adapter.path}: {error.strerror or error}") from error
        return adapter

    def _load_start(self) -> dict[str, Tensor]:
        """The tensors of `config.start`, checked against this base and this configuration."""
        start = self._config.start
        assert start is not None
        marker = start / MARKER
        if marker.is_file() and json.loads(marker.read_text())["base"] != self._base_fingerprint:
            raise BadBase(f"{start}: an adapter of another base")
        try:
            given: dict[str, Tensor] = load_file(start / "adapter_model.safetensors")
        except OSError as error:
            raise BadBase(f"{start}: no adapter in it: {error}") from None
        live = {name: tuple(value.shape) for name, value in self._saved_parameters().items()}
        if {name: tuple(value.shape) for name, value in given.items()} != live:
            raise BadBase(f"{start}: an adapter of another base, rank or set of target modules")
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


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has an error of its own; the CPU's allocator only says so."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
