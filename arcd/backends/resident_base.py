"""The resident base model of the trainers: loaded once; LoRA tensors are put on it again and again.

A base of the Llama family is held by arcd's own decoder, any other by transformers. Knows nothing
of the engine, which holds the base once more.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from arcd.backends.decoder_lora import DecoderLora, FrozenBase
from arcd.backends.lora_adapter import LoraModel
from arcd.config import TrainConfig
from arcd.decoder import folder
from arcd.decoder.answers import head
from arcd.decoder.elementwise import EAGER, Elementwise
from arcd.model.base_model import Device, load_model, twin
from arcd.model.encoding import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ResidentBase:
    """A base model in memory, for several trainers."""

    def __init__(
        self,
        path: Path,
        device: Device,
        encoding: Encoding,
        elementwise: Callable[[], Elementwise] = lambda: EAGER,
    ) -> None:
        """Load the model of a folder; raises BadBase if it cannot be loaded."""
        self._path, self._device, self._encoding = path, device, encoding
        self._loading = threading.Lock()
        self._stock: PreTrainedModel | None = None
        self._frozen: FrozenBase | None = None
        self.unsupported = folder.unsupported(path)
        """Why the base is trained by transformers and peft; None if by arcd's own decoder."""
        if self.unsupported is None:
            weights = folder.read(path, getattr(torch, device.dtype), device.kind)
            answers = head(weights.unembedding, encoding.answer_tokens)
            self._frozen = FrozenBase(weights, answers, encoding.pad, elementwise)
        else:
            self._of_transformers()

    def lora(self, config: TrainConfig) -> LoraModel:
        """Fresh LoRA tensors on the base, which other tensors do not disturb.

        Raises TrainerFailed if the base lacks a target module.
        """
        if self._frozen is not None and set(config.target_modules) <= set(folder.LINEARS):
            return DecoderLora(self._frozen, config)
        from arcd.backends.peft_lora import PeftLora

        # peft changes the model, so each adapter has a model of its own on the same weights.
        model, encoding = twin(self._of_transformers()), self._encoding
        return PeftLora(model, config, self._device, encoding.pad, encoding.answer_tokens)

    def _of_transformers(self) -> "PreTrainedModel":
        """The base as transformers holds it; loaded when it is first wanted."""
        with self._loading:
            if self._stock is None:
                self._stock = load_model(self._path, self._device)
            return self._stock
