"""The resident base model of the trainers: loaded once; LoRA tensors are put on it again and again.

A base of the Llama family is held by arcd's own decoder, any other by transformers. The engine has
the base too; where its tensors are plain, the decoder uses them. Knows nothing else of the engine.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from arcd.backends.compilation import Compilation, Rehearsal
from arcd.backends.decoder_lora import DecoderLora, FrozenBase
from arcd.backends.lora_adapter import LoraModel
from arcd.config import TrainConfig
from arcd.decoder import folder, layers
from arcd.decoder.answers import head
from arcd.decoder.elementwise import EAGER
from arcd.decoder.folder import LayerWeights
from arcd.decoder.layers import Layer
from arcd.decoder.lora import Adapted
from arcd.decoder.row import Row
from arcd.decoder.sharing import EngineTensors, NotSharedError
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
        """Look at the model of a folder; raises BadBase if it cannot be loaded.

        `cache` is the folder for compiled functions; without one nothing is compiled.
        """
        self._path, self._device, self._encoding = path, device, encoding
        self._cache = cache
        self._loading = threading.Lock()
        self._stock: PreTrainedModel | None = None
        self._files: folder.Files | None = None
        self._frozen: FrozenBase | None = None
        self._outputs: Tensor | None = None
        self._shared = False
        self.compilation: Compilation | None = None
        self.unsupported = folder.unsupported(path)
        """Why the base is trained by transformers and peft; None if by arcd's own decoder."""
        if self.unsupported is None:
            self._files = folder.Files(path, getattr(torch, device.dtype), device.kind)
        else:
            self._of_transformers()

    def load(self, held: Mapping[str, Tensor] | None = None) -> str | None:
        """Load the weights, or take those of an engine that `held` has by vLLM's names.

        Returns why they were loaded although there is an engine; None if its tensors are used, or
        if none were given.
        """
        if self._files is None:
            return self.unsupported
        reason = None
        if held is not None:
            try:
                self._hold(self._files, EngineTensors(self._files, held))
            except NotSharedError as error:
                reason = str(error)
        self._shared = held is not None and reason is None
        if not self._shared:
            self._hold(self._files, self._files)
            self._outputs = None  # the head has the rows that it needs
        return reason

    def logprobs(self, tokens: Sequence[int], last: int) -> Tensor:
        """log p of the `last` tokens, (last,), in fp32, over the whole vocabulary, without adapter.

        For a base whose weights are the engine's.
        """
        weights = self._frozen_base().weights
        assert self._outputs is not None
        given = torch.tensor(tokens, device=weights.embedding.device)
        places = torch.arange(len(tokens), device=given.device)
        row = Row(given, places, places[-last - 1 : -1], given[-last:], ((0, len(tokens)),))
        cosine, sine = weights.rotary(len(tokens))
        with torch.no_grad():
            states = layers.run(
                F.embedding(row.tokens, weights.embedding),
                row,
                [_plain(layer) for layer in weights.layers],
                weights.shape,
                cosine[row.places],
                sine[row.places],
                weights.final_norm,
            )
            logits = F.linear(states, self._outputs).float()
        return -F.cross_entropy(logits, row.targets, reduction="none")

    def lora(self, config: TrainConfig) -> LoraModel:
        """Fresh LoRA tensors on the base, which other tensors do not disturb.

        Raises TrainerFailed if the base lacks a target module.
        """
        if self._files is not None and set(config.target_modules) <= set(folder.LINEARS):
            return DecoderLora(self._frozen_base(), config, self.compilation or (lambda: EAGER))
        from arcd.backends.peft_lora import PeftLora

        # peft changes the model, so each adapter has a model of its own on the same weights.
        model, encoding = twin(self._of_transformers()), self._encoding
        return PeftLora(model, config, self._device, encoding.pad, encoding.answer_tokens)

    @property
    def own_bytes(self) -> int:
        """Bytes of the weights in memory that are the trainers' alone."""
        stock = list(self._stock.parameters()) if self._stock is not None else []
        frozen = self._frozen.size if self._frozen is not None and not self._shared else 0
        return frozen + sum(int(weight.nbytes) for weight in stock)

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

    def _frozen_base(self) -> FrozenBase:
        """The base as arcd's own decoder holds it; loaded when it is first wanted."""
        with self._loading:
            if self._frozen is None:
                self.load()
        assert self._frozen is not None
        return self._frozen

    def _hold(self, files: folder.Files, source: folder.Source) -> None:
        weights, self._outputs = folder.read(self._path, source)
        answers = head(self._outputs, self._encoding.answer_tokens)
        self._frozen = FrozenBase(weights, answers, self._encoding.pad)
        if self._cache is not None and self.compilation is None:
            self.compilation = Compilation(self._cache, Rehearsal.of(weights))


def _plain(weights: LayerWeights) -> Layer:
    """A layer without LoRA."""
    return weights.layer(Adapted(stack.weight, stack.bias, (), 1.0) for stack in weights.stacks)
