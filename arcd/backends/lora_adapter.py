"""A LoRA adapter in training: its tensors on a base model, its optimizer, its loss.

One `TrainableAdapter` is reset and trained for one task after the other, because its tensors and
the optimizer cost more to make than to reset. The only importer of peft. Knows nothing of threads,
of tasks beyond their lessons, or of who serves the adapter.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from arcd.config import TrainConfig
from arcd.errors import OutOfMemory, TrainerFailed
from arcd.model.base_model import ADAPTER_WEIGHTS, Device
from arcd.model.collate import collate
from arcd.model.prompts import IGNORED, Lesson

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


class TrainableAdapter:
    """LoRA tensors on a base model, with their optimizer: reset and trained again and again."""

    def __init__(
        self, model: PreTrainedModel, config: TrainConfig, device: Device, pad: int
    ) -> None:
        """Put the tensors on the model; raises TrainerFailed if it lacks a target module."""
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
            for layer in self._layers:
                for a, b in zip(layer.lora_A.values(), layer.lora_B.values(), strict=True):
                    bound = 1 / math.sqrt(a.in_features)  # Kaiming uniform with a = sqrt(5)
                    a.weight.copy_(
                        torch.empty(a.weight.shape).uniform_(-bound, bound, generator=rng)
                    )
                    b.weight.zero_()
            if given:
                for name, parameter in self._tensors().items():
                    parameter.copy_(given[name])
        self._optimizer.state.clear()
        # A scaler whose step failed half-way refuses the next step.
        self._scaler = self._fresh_scaler()

    def step(self, batch: Sequence[Lesson], lr: float) -> float:
        """One step of the optimizer; returns the loss before it, in nats per labelled token.

        Raises OutOfMemory or another TrainerFailed; the tensors can be reset after it.
        """
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

    @property
    def finite(self) -> bool:
        """Whether all its weights are numbers: the loss is NaN for ever if one is not."""
        return all(bool(weights.isfinite().all()) for weights in self._parameters)

    def checkpointing(self, wanted: bool) -> AbstractContextManager[None]:
        """If wanted, recompute activations in the backward pass for as long as the block lasts."""
        return _gradient_checkpointing(self._peft) if wanted else nullcontext()

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
            for name, value in self._tensors().items()
        }
        save_file(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        self._peft.peft_config["default"].save_pretrained(str(folder))

    def remove(self) -> PreTrainedModel:
        """Take the tensors off; returns the base as it was."""
        return cast(PreTrainedModel, self._peft.unload())

    def _loss(self, batch: Sequence[Lesson]) -> Tensor:
        """Mean negative log-likelihood, in nats, over the labelled tokens of a batch."""
        tokens, labels = collate(batch, self._pad, self._device.kind)
        wanted = labels[:, 1:] != IGNORED  # (lessons, length - 1)
        # Logits only at the places before a labelled token. Padding stands on the right, where a
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

    def _fresh_scaler(self) -> torch.amp.GradScaler:
        # Only fp16 gradients can underflow; in other formats the scaler has no effect.
        return torch.amp.GradScaler(self._device.kind, enabled=self._device.dtype == "float16")

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors in training, under their names in a PEFT file."""
        return cast(dict[str, Tensor], get_peft_model_state_dict(self._peft))

    def _load(self, start: Path) -> dict[str, Tensor]:
        """The tensors of an adapter to start from, which must have the shapes of these."""
        try:
            given: dict[str, Tensor] = load_file(start / ADAPTER_WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise TrainerFailed(f"{start}: no adapter in it: {error}") from None
        shapes = {name: value.shape for name, value in self._tensors().items()}
        if {name: value.shape for name, value in given.items()} != shapes:
            raise TrainerFailed(f"{start}: an adapter of another base, rank or set of modules")
        return given


@contextmanager
def _gradient_checkpointing(model: PreTrainedModel) -> Iterator[None]:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()


def _out_of_memory(error: RuntimeError) -> bool:
    """Tell by the class on a GPU, by the message on a CPU, whose allocator has no class."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
