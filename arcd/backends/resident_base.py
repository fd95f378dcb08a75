"""The resident base model of the trainers: loaded once; LoRA tensors are put on it again and again.

A base of the Llama family is held by arcd's own decoder, any other by transformers. Knows nothing
of the engine, which holds the base once more.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from arcd.backends.compilation import Compilation, Rehearsal
from arcd.backends.decoder_lora import DecoderLora, FrozenBase
from arcd.backends.lora_adapter import LoraModel
from arcd.config import TrainConfig
from arcd.decoder import folder
from arcd.decoder.answers import head
from arcd.decoder.elementwise import EAGER
from arcd.model.base_model import load_model, twin
from arcd.model.device import Device
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
        cache: Path | None = None,
    ) -> None:
        """Load the model of a folder; raises BadBase if it cannot be loaded.

        `cache` is the folder for compiled functions; without one nothing is compiled.
        """
        self._path, self._device, self._encoding = path, device, encoding
        self._loading = threading.Lock()
        self._stock: PreTrainedModel | None = None
        self._frozen: FrozenBase | None = None
        self.compilation: Compilation | None = None
        self.unsupported = folder.unsupported(path)
        """Why the base is trained by transformers and peft; None if by arcd's own decoder."""
        if self.unsupported is None:
            weights, outputs = folder.read(path, getattr(torch, device.dtype), device.kind)
            answers = head(outputs, encoding.answer_tokens)
            self._frozen = FrozenBase(weights, answers, encoding.pad)
            if cache is not None:
                self.compilation = Compilation(cache, Rehearsal.of(weights))
        else:
            self._of_transformers()

    def lora(self, config: TrainConfig) -> LoraModel:
        """Fresh LoRA tensors on the base, which other tensors do not disturb.

        Raises TrainerFailed if the base lacks a target module.
        """
        if self._frozen is not None and set(config.target_modules) <= set(folder.LINEARS):
            return DecoderLora(self._frozen, config, self.compilation or (lambda: EAGER))
        from arcd.backends.peft_lora import PeftLora

        # peft changes the model, so each adapter has a model of its own on the same weights.
        model, encoding = twin(self._of_transformers()), self._encoding
        return PeftLora(model, config, self._device, encoding.pad, encoding.answer_tokens)

    def close(self) -> None:
        """End a compilation that still goes on."""
        if self.compilation is not None:
            self.compilation.close()

    def _of_transformers(self) -> "PreTrainedModel":
        """The base as transformers holds it; loaded when it is first wanted."""
        with self._loading:
            if self._stock is None:
                self._stock = load_model(self._path, self._device)
            return self._stock
