"""A LoRA adapter in training: its tensors, its optimizer, its file.

One `TrainableAdapter` is reset and trained for one task after the other, because its tensors and
the optimizer cost more to make than to reset. Knows nothing of threads, of tasks beyond their
lessons, of the model that the tensors stand on, or of who serves the adapter.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcd.config import TrainConfig
from arcd.errors import OutOfMemory, TrainerFailed
from arcd.model.base_model import ADAPTER_WEIGHTS
from arcd.model.device import Device
from arcd.model.prompts import IGNORED, Lesson

ADAPTER_CONFIG = "adapter_config.json"
"""How the tensors are used, in a PEFT folder."""

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 1 << 20}
"""Tokens of a batch that go through the model together. On a CPU more of them are not faster, and
their activations take memory; on a GPU they are."""

CHANGEABLE = {
    "steps",
    "batch_size",
    "lr",
    "schedule",
    "warmup",
    "max_seq_len",
    "loss",
    "start",
    "checkpointing",
}
"""Fields of TrainConfig in which two trainings on the same tensors may differ."""


class LoraModel(Protocol):
    """A frozen base model with LoRA tensors on it."""

    tensors: dict[str, Tensor]
    """The tensors in training, fp32, under their names in a PEFT file: `...lora_A.weight` is
    (rank, in), `...lora_B.weight` (out, rank)."""

    def begin(self) -> None:
        """Called before the first step of each training."""
        ...

    def recovers(self, error: RuntimeError) -> bool:
        """Whether the step that failed so can be made again, because something was changed."""
        ...

    def loss(self, lessons: Sequence[Lesson], *, recompute: bool) -> Tensor:
        """Sum of the negative log-likelihoods, in nats, of the labelled tokens of lessons.

        The probabilities are over the tokens that an answer can have, as in sampling. With
        `recompute` the backward pass computes activations again, which takes less memory.
        """
        ...


class TrainableAdapter:
    """LoRA tensors with their optimizer: reset and trained again and again."""

    def __init__(self, model: LoraModel, base: Path, config: TrainConfig, device: Device) -> None:
        """Train the tensors of a model, which is on the base in the folder `base`."""
        self._model, self._base, self._config, self._device = model, base, config, device
        self._parameters = list(model.tensors.values())
        self._optimizer = torch.optim.AdamW(
            self._parameters, weight_decay=config.weight_decay, fused=True
        )
        self._scaler = self._fresh_scaler()

    def suits(self, config: TrainConfig) -> bool:
        """Whether a training with this configuration can have these tensors after a `reset`."""
        fixed = TrainConfig.model_fields.keys() - CHANGEABLE
        return all(getattr(config, name) == getattr(self._config, name) for name in fixed)

    def reset(self, seed: int, start: Path | None = None) -> None:
        """A fresh adapter (as peft makes it: A uniform, B zero) or that of `start`; no momentum.

        Raises TrainerFailed if `start` does not fit.
        """
        given = self._load(start) if start else {}
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in self._model.tensors.items():
                if name in given:
                    tensor.copy_(given[name])
                elif ".lora_A." in name:
                    bound = 1 / math.sqrt(tensor.shape[1])  # Kaiming uniform with a = sqrt(5)
                    made = torch.empty_like(tensor, device="cpu").uniform_(
                        -bound, bound, generator=rng
                    )
                    tensor.copy_(made)
                else:
                    tensor.zero_()
        self._model.begin()
        self._optimizer.state.clear()
        self._optimizer.zero_grad()
        # A scaler whose step failed half-way refuses the next step.
        self._scaler = self._fresh_scaler()

    def step(self, batch: Sequence[Lesson], lr: float, *, recompute: bool = False) -> float:
        """One step of the optimizer; returns the loss before it, in nats per labelled token.

        `recompute` is that of `LoraModel.loss`. Raises OutOfMemory or another TrainerFailed; the
        tensors can be reset after it.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        failure: TrainerFailed | None = None
        try:
            loss = self._backward(batch, recompute=recompute)
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
            self._scaler.step(self._optimizer)
        except RuntimeError as error:
            self._optimizer.zero_grad()
            if self._model.recovers(error):
                self._scaler = self._fresh_scaler()
                return self.step(batch, lr, recompute=recompute)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            failure = OutOfMemory() if _out_of_memory(error) else TrainerFailed(reason)
        if failure is not None:
            # Here, without the error as its cause: that holds the activations of the failed step.
            raise failure
        self._scaler.update()
        self._optimizer.zero_grad()
        return loss.item()

    @property
    def finite(self) -> bool:
        """Whether all its weights are numbers: the loss is NaN for ever if one is not."""
        return all(bool(weights.isfinite().all()) for weights in self._parameters)

    @property
    def size(self) -> int:
        """Bytes of the weights that `save` writes."""
        return sum(int(p.numel()) for p in self._parameters) * int(self._dtype.itemsize)

    @property
    def _dtype(self) -> torch.dtype:
        return cast(torch.dtype, getattr(torch, self._device.dtype))

    def save(self, folder: Path) -> None:
        """Write weights and configuration as a PEFT folder."""
        dtype = self._dtype
        tensors = {
            name: value.detach().to("cpu", dtype).contiguous()
            for name, value in self._model.tensors.items()
        }
        save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        (folder / ADAPTER_CONFIG).write_text(json.dumps(self._described(), indent=2) + "\n")

    def _described(self) -> dict[str, object]:
        """PEFT's `LoraConfig`; what is not said is as PEFT has it by default."""
        config = self._config
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(self._base),
            "inference_mode": True,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "use_rslora": config.rslora,
            "lora_dropout": config.dropout,
            "target_modules": sorted(config.target_modules),
            "bias": "none",
        }

    def _backward(self, batch: Sequence[Lesson], *, recompute: bool) -> Tensor:
        """Add up the gradients of a batch; returns its loss, see `step`."""
        labelled = sum(label != IGNORED for lesson in batch for label in lesson.labels[1:])
        total = torch.zeros((), dtype=torch.float32, device=self._device.kind)
        for part in _parts(batch, TOKENS_AT_ONCE[self._device.kind]):
            loss = self._model.loss(part, recompute=recompute) / labelled
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _fresh_scaler(self) -> torch.amp.GradScaler:
        # Only fp16 gradients can underflow; in other formats the scaler has no effect.
        return torch.amp.GradScaler(self._device.kind, enabled=self._device.dtype == "float16")

    def _load(self, start: Path) -> dict[str, Tensor]:
        """The tensors of an adapter to start from, which must have the shapes of these."""
        try:
            given: dict[str, Tensor] = load_file(start / ADAPTER_WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise TrainerFailed(f"{start}: no adapter in it: {error}") from None
        shapes = {name: value.shape for name, value in self._model.tensors.items()}
        if {name: value.shape for name, value in given.items()} != shapes:
            raise TrainerFailed(f"{start}: an adapter of another base, rank or set of modules")
        return given


def _parts(batch: Sequence[Lesson], most: int) -> Iterator[list[Lesson]]:
    """The lessons of a batch, as many together as have `most` tokens, and at least one."""
    part: list[Lesson] = []
    for lesson in batch:
        if part and sum(len(each.tokens) for each in (*part, lesson)) > most:
            yield part
            part = []
        part.append(lesson)
    yield part


def _out_of_memory(error: RuntimeError) -> bool:
    """Tell by the class on a GPU, by the message on a CPU, whose allocator has no class."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
