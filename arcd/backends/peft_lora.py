"""LoRA on a model of transformers, by peft: for bases that arcd's own decoder cannot hold.

The only importer of peft, beside `stock`. The model's table of outputs is replaced by its rows of
answer tokens while it runs: whatever the model does to logits behind the table (a scale, a soft
cap) it does to each column by itself. Knows nothing of optimizers or of threads.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from peft import LoraConfig, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from arcd.backends.transformers_attention import prepare_attention, unpacked
from arcd.config import TrainConfig
from arcd.decoder.answers import row_of
from arcd.decoder.dropout import Dropout
from arcd.decoder.footprint import Footprint, of_any
from arcd.errors import TrainerFailed
from arcd.model.collate import collate, padded, uploaded
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
        self._columns = torch.tensor(answer_tokens)
        outputs = model.get_output_embeddings()
        self._row_of = row_of(self._columns, len(outputs.weight))
        prepare_attention(model, device)
        try:
            self._peft = get_peft_model(model, lora_config(config))
        except ValueError as error:
            raise TrainerFailed(str(error).splitlines()[0]) from None
        self._answers = _rows(model.get_output_embeddings(), self._columns)
        self._dropout = Dropout(config.dropout)
        if config.dropout:
            _replace_dropouts(self._peft, self._dropout)
        self._peft.train()
        self.tensors: dict[str, Tensor] = {
            name.replace(".default.", "."): parameter
            for name, parameter in self._peft.named_parameters()
            if parameter.requires_grad
        }
        self.footprint = self._by_arithmetic(model)

    def begin(self, seed: int) -> None:
        """See `LoraModel.begin`."""
        self._dropout.begin(seed)

    def recovers(self, error: RuntimeError) -> bool:
        """See `LoraModel.recovers`."""
        return False

    def padded(self, lengths: Sequence[int]) -> int:
        """See `LoraModel.padded`."""
        return len(lengths) * padded(max(lengths))

    def loss(self, lessons: Sequence[Lesson], *, recompute: bool) -> Tensor:
        """See `LoraModel.loss`."""
        self._dropout.next_pass()
        tokens, labels = collate(lessons, self._pad, "cpu")
        wanted = labels[:, 1:] != IGNORED  # (lessons, length - 1)
        # Logits only at the places before a labelled token. Padding stands on the right, where a
        # causal model's earlier tokens do not see it, so no attention mask is needed.
        places = wanted.any(dim=0).nonzero()[:, 0]
        learnt = wanted[:, places].flatten().nonzero()[:, 0]
        targets = self._row_of[labels[:, 1:][wanted]]
        row, places, learnt, targets = uploaded(
            *(each.tolist() for each in (tokens.flatten(), places, learnt, targets)),
            device=self._device.kind,
        )
        with (
            autocast(self._device),
            disable_input_dtype_casting(self._peft),
            unpacked(),
            _recomputed(self._peft) if recompute else nullcontext(),
            self._answers_alone(),
        ):
            logits = self._peft(row.view_as(tokens), use_cache=False, logits_to_keep=places).logits
        if self._answers is None:
            logits = logits[..., self._columns.to(logits.device)]
        return F.cross_entropy(logits.flatten(0, 1)[learnt].float(), targets, reduction="sum")

    @contextmanager
    def _answers_alone(self) -> Iterator[None]:
        """The model with its rows of answer tokens in the place of its table of outputs."""
        model = self._peft.get_base_model()
        whole = model.get_output_embeddings()
        if self._answers is not None:
            model.set_output_embeddings(self._answers)
        try:
            yield
        finally:
            model.set_output_embeddings(whole)

    def _by_arithmetic(self, model: PreTrainedModel) -> Footprint:
        config = model.config.get_text_config()
        mlp_width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return of_any(
            sum(tensor.numel() for tensor in self.tensors.values()),
            config.num_hidden_layers,
            config.hidden_size,
            mlp_width,
            getattr(torch, self._device.dtype).itemsize,
        )


def _rows(outputs: nn.Module, columns: Tensor) -> nn.Linear | None:
    """The rows of a table of outputs as a table of their own; None for one that is no table."""
    if type(outputs) is not nn.Linear:
        return None  # e.g. one with an adapter
    wanted = columns.to(outputs.weight.device)
    width, bias = outputs.in_features, outputs.bias
    rows = nn.Linear(width, len(columns), bias=bias is not None, device="meta")
    rows.weight = nn.Parameter(outputs.weight[wanted], requires_grad=False)
    if bias is not None:
        rows.bias = nn.Parameter(bias[wanted], requires_grad=False)
    return rows


class _Place(nn.Module):
    """peft's dropout at one place of the model."""

    def __init__(self, dropout: Dropout, name: str) -> None:
        super().__init__()
        self._dropout, self._name = dropout, name

    def forward(self, x: Tensor) -> Tensor:
        return self._dropout(x, self._name)


def _replace_dropouts(model: nn.Module, dropout: Dropout) -> None:
    for name, module in model.named_modules():
        places = getattr(module, "lora_dropout", None)
        if isinstance(places, nn.ModuleDict):
            for adapter in places:
                places[adapter] = _Place(dropout, name)


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
