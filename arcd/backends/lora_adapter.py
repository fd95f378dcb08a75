"""A LoRA adapter in training: its tensors, its optimizer, its file.

One `TrainableAdapter` is reset and trained for one task after the other, because its tensors and
the optimizer cost more to make than to reset. Knows nothing of threads, of tasks beyond their
lessons, of the model that the tensors stand on, or of who serves the adapter.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from traceback import clear_frames
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from arcd.backends.failures import attempt
from arcd.backends.loss import Loss
from arcd.backends.memory_forecast import Plan, StepMemory
from arcd.config import TrainConfig
from arcd.decoder.footprint import Footprint
from arcd.errors import OutOfMemory, TrainerFailed
from arcd.model.base_model import ADAPTER_WEIGHTS
from arcd.model.device import Device
from arcd.model.prompts import IGNORED, Lesson

ADAPTER_CONFIG = "adapter_config.json"
"""How the tensors are used, in a PEFT folder."""

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
    footprint: Footprint
    """What steps take, by arithmetic."""

    def begin(self, seed: int) -> None:
        """Called before the first step of each training; `seed` decides what is random in it."""
        ...

    def recovers(self, error: RuntimeError) -> bool:
        """Whether the step that failed so can be made again, because something was changed."""
        ...

    def padded(self, lengths: Sequence[int]) -> int:
        """The tokens that lessons of these lengths are together, padding included."""
        ...

    def loss(self, lessons: Sequence[Lesson], *, recompute: bool) -> Tensor:
        """Sum of the negative log-likelihoods, in nats, of the labelled tokens of lessons.

        The probabilities are over the tokens that an answer can have, as in sampling. With
        `recompute` the backward pass computes activations again, which takes less memory.
        """
        ...


class TrainableAdapter:
    """LoRA tensors with their optimizer: reset and trained again and again."""

    def __init__(
        self, model: LoraModel, base: Path, config: TrainConfig, device: Device, memory: StepMemory
    ) -> None:
        """Train the tensors of a model, which is on the base in the folder `base`.

        `memory` is what steps on such tensors may take and have taken.
        """
        self._model, self._base, self._config, self._device = model, base, config, device
        self._memory = memory
        self._parameters = list(model.tensors.values())
        self._optimizer = torch.optim.AdamW(
            self._parameters, weight_decay=config.weight_decay, fused=True
        )
        self._scaler_state: dict[str, Any] = {}
        self._scaler = self._fresh_scaler()

    def suits(self, config: TrainConfig) -> bool:
        """Whether a training with this configuration can have these tensors after a `reset`."""
        return fixed(config) == fixed(self._config)

    def plan(self, lengths: Sequence[int], *, frugal: bool) -> Plan:
        """How to train on lessons of these lengths; see `StepMemory.plan`."""
        return self._memory.plan(lengths, self._model.padded, frugal=frugal)

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
        self._model.begin(seed)
        self._optimizer.state.clear()
        self._optimizer.zero_grad()
        # A scaler whose step failed half-way refuses the next step.
        self._scaler = self._fresh_scaler()

    def step(self, batch: Sequence[Lesson], lr: float, plan: Plan) -> Loss:
        """One step of the optimizer; the loss before it, in nats per labelled token.

        On a GPU the work is queued and not waited for. Raises OutOfMemory or another TrainerFailed,
        after which the tensors can be reset, or DeviceLost.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        parts = list(_parts(batch, plan.at_once, self._model.padded))
        largest = max(self._model.padded([len(each.tokens) for each in part]) for part in parts)
        # The first step makes the optimizer's moments, which are counted by themselves.
        usual = bool(self._optimizer.state)
        self._memory.memory.start()
        try:
            loss = attempt(lambda: self._stepped(parts, plan.recompute), self._memory.memory)
        except OutOfMemory:
            self._memory.failed(largest, recompute=plan.recompute)
            raise
        if usual:
            self._memory.measured(largest, recompute=plan.recompute)
        return loss

    @property
    def finite(self) -> bool:
        """Whether all its weights are numbers: the loss is NaN for ever if one is not."""
        return bool(torch.stack([each.isfinite().all() for each in self._parameters]).all())

    @property
    def size(self) -> int:
        """Bytes of the weights that `save` writes."""
        return sum(int(p.numel()) for p in self._parameters) * int(self._dtype.itemsize)

    @property
    def _dtype(self) -> torch.dtype:
        return cast(torch.dtype, getattr(torch, self._device.dtype))

    def save(self, folder: Path) -> None:
        """Write weights and configuration as a PEFT folder; the training was a good one."""
        self._scaler_state = self._scaler.state_dict()
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

    def _stepped(self, parts: Sequence[Sequence[Lesson]], recompute: bool) -> Loss:
        """See `step`. After an error the optimizer keeps nothing."""
        try:
            return self._update(parts, recompute=recompute)
        except (RuntimeError, MemoryError) as error:
            self._optimizer.zero_grad()
            if not (isinstance(error, RuntimeError) and self._model.recovers(error)):
                self._optimizer.state.clear()
                raise
            self._scaler = self._fresh_scaler()
            clear_frames(error.__traceback__)
        # Outside, where the error no longer holds the activations of the first try.
        return self._update(parts, recompute=recompute)

    def _update(self, parts: Sequence[Sequence[Lesson]], *, recompute: bool) -> Loss:
        loss = self._backward(parts, recompute=recompute)
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return Loss(loss)

    def _backward(self, parts: Sequence[Sequence[Lesson]], *, recompute: bool) -> Tensor:
        """Add up the gradients of a batch; returns its loss, see `step`."""
        labelled = sum(
            label != IGNORED for part in parts for lesson in part for label in lesson.labels[1:]
        )
        total = torch.zeros((), dtype=torch.float32, device=self._device.kind)
        for part in parts:
            loss = self._model.loss(part, recompute=recompute) / labelled
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _fresh_scaler(self) -> torch.amp.GradScaler:
        """A scaler for fp16, whose gradients can underflow; in other formats it has no effect.

        It begins with the scale of the last good training: the first steps at too large a scale
        are skipped.
        """
        scaler = torch.amp.GradScaler(self._device.kind, enabled=self._device.dtype == "float16")
        if self._scaler_state:
            scaler.load_state_dict(self._scaler_state)
        return scaler

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


def fixed(config: TrainConfig) -> tuple[object, ...]:
    """What two trainings on the same tensors have in common."""
    fields = TrainConfig.model_fields.keys() - CHANGEABLE
    return tuple(getattr(config, name) for name in sorted(fields))


def _parts(
    batch: Sequence[Lesson], most: int, padded: Callable[[Sequence[int]], int]
) -> Iterator[list[Lesson]]:
    """The lessons of a batch, as many together as have `most` tokens, and at least one."""
    part: list[Lesson] = []
    for lesson in batch:
        if part and padded([len(each.tokens) for each in (*part, lesson)]) > most:
            yield part
            part = []
        part.append(lesson)
    yield part
