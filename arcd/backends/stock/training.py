"""A LoRA adapter trained with transformers and peft, as most public scripts do it.

The base in the device's precision, peft's modules on its linear layers, autocast, SDPA, the model's
own loss over all labels, AdamW, a schedule of transformers, gradients clipped. Autocast is not the
slow choice: pure bf16 trains at the same speed within 5 % (one core of an EPYC with AVX-512 bf16,
lessons of 180 to 380 tokens), bf16 weights with adapters in fp32 and without autocast 5 % slower.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler

from arcd.backends.peft_lora import autocast, lora_config
from arcd.config import TrainConfig
from arcd.model.collate import collate
from arcd.model.device import Device
from arcd.model.prompts import IGNORED, Lesson

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""Names of `TrainConfig.schedule` in transformers."""


class PeftTraining:
    """One adapter in training: `step` for each batch of lessons, then `save_merged`."""

    def __init__(
        self,
        base: Path,
        config: TrainConfig,
        device: Device,
        pad: int,
        *,
        steps: int,
        seed: int,
        threads: int,
        labelled_only: bool = False,
    ) -> None:
        """Load the base and put a fresh adapter on it, or the one of `config.start`.

        `steps` is the length of the schedule, `threads` the number of OpenMP threads on a CPU. With
        `labelled_only` the logits are computed only before tokens that have a label, which few
        scripts do; else for all tokens.
        """
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        self._device, self._pad, self._clip = device, pad, config.clip
        self._labelled_only = labelled_only
        model = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=getattr(torch, device.dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
        ).to(device.kind)
        if config.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._model = _with_adapter(model, config)
        self._model.train()
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.lr, weight_decay=config.weight_decay
        )
        warmup = math.ceil(config.warmup * steps)
        self._schedule = get_scheduler(SCHEDULES[config.schedule], self._optimizer, warmup, steps)
        self._scaler = torch.amp.GradScaler(device.kind, enabled=device.dtype == "float16")

    def step(self, batch: Sequence[Lesson]) -> float:
        """One step of the optimizer; returns the loss before it, in nats per labelled token."""
        tokens, labels = collate(batch, self._pad, self._device.kind)
        places: dict[str, torch.Tensor] = {}
        if self._labelled_only:
            kept = (labels[:, 1:] != IGNORED).any(dim=0).nonzero()[:, 0]
            # The model's loss shifts labels unless it is given them shifted.
            places = {"logits_to_keep": kept, "shift_labels": labels[:, kept + 1].contiguous()}
        with autocast(self._device):
            loss = self._model(input_ids=tokens, labels=labels, use_cache=False, **places).loss
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad()
        return float(loss.item())

    def save_merged(self, folder: Path) -> None:
        """Merge the adapter into the base and write that as a model folder; ends the training."""
        self._model.merge_and_unload().save_pretrained(str(folder))


def _with_adapter(model: torch.nn.Module, config: TrainConfig) -> PeftModel:
    if config.start is not None:
        return PeftModel.from_pretrained(model, str(config.start), is_trainable=True)
    return get_peft_model(model, lora_config(config))
