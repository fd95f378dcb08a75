"""LoRA on a model of transformers, by peft: for bases that arcd's own decoder cannot hold.

The only importer of peft, beside `stock`. Knows nothing of optimizers or of threads.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from arcd.config import TrainConfig
from arcd.decoder.answers import row_of
from arcd.errors import TrainerFailed
from arcd.model.collate import collate
from arcd.model.device import Device
from arcd.model.prompts import IGNORED, Lesson


class PeftLora:
    """A `LoraModel` on a model of transformers."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: TrainConfig,
        device: Device,
        pad: int,
        answer_tokens: Sequence[int],
    ) -> None:
        """Put the tensors on the model; raises TrainerFailed if it lacks a target module."""
        self._device, self._pad = device, pad
        self._answer_tokens = torch.tensor(answer_tokens, device=device.kind)
        vocabulary = len(model.get_output_embeddings().weight)
        self._row_of = row_of(self._answer_tokens, vocabulary)
        try:
            self._peft = get_peft_model(model, lora_config(config))
        except ValueError as error:
            raise TrainerFailed(str(error).splitlines()[0]) from None
        self._peft.train()
        self.tensors: dict[str, Tensor] = {
            name.replace(".default.", "."): parameter
            for name, parameter in self._peft.named_parameters()
            if parameter.requires_grad
        }

    def begin(self) -> None:
        """See `LoraModel.begin`."""

    def recovers(self, error: RuntimeError) -> bool:
        """See `LoraModel.recovers`."""
        return False

    def loss(self, lessons: Sequence[Lesson], *, recompute: bool) -> Tensor:
        """See `LoraModel.loss`."""
        tokens, labels = collate(lessons, self._pad, self._device.kind)
        wanted = labels[:, 1:] != IGNORED  # (lessons, length - 1)
        # Logits only at the places before a labelled token. Padding stands on the right, where a
        # causal model's earlier tokens do not see it, so no attention mask is needed.
        places = wanted.any(dim=0).nonzero()[:, 0]
        with (
            autocast(self._device),
            disable_input_dtype_casting(self._peft),
            _recomputed(self._peft) if recompute else nullcontext(),
        ):
            logits = self._peft(tokens, use_cache=False, logits_to_keep=places).logits
        learnt = wanted[:, places]
        answers = logits[learnt][:, self._answer_tokens].float()
        return F.cross_entropy(
            answers, self._row_of[labels[:, 1:][:, places][learnt]], reduction="sum"
        )


def lora_config(config: TrainConfig) -> LoraConfig:
    """A training's configuration as peft's."""
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        use_rslora=config.rslora,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )


def autocast(device: Device) -> AbstractContextManager[object]:
    """Products in the device's number format, where that is not fp32."""
    if device.dtype == "float32":
        return nullcontext()
    return torch.autocast(device.kind, getattr(torch, device.dtype))


@contextmanager
def _recomputed(model: PreTrainedModel) -> Iterator[None]:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
