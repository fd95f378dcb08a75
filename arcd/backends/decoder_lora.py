"""LoRA on arcd's own decoder: the tensors in training, and their loss.

The frozen weights are shared by all trainers. Knows nothing of optimizers or of threads.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from arcd.config import TrainConfig
from arcd.decoder import layers
from arcd.decoder.answers import Head
from arcd.decoder.dropout import Dropout
from arcd.decoder.elementwise import EAGER, Elementwise
from arcd.decoder.folder import LayerWeights, Stack, Weights
from arcd.decoder.footprint import Sizes, footprint
from arcd.decoder.layers import Layer
from arcd.decoder.lora import Adapted, Factors
from arcd.decoder.row import in_a_row, padded
from arcd.model.prompts import Lesson

log = logging.getLogger(__name__)

MODULES = ("self_attn", "self_attn", "mlp", "mlp")
"""The part of a layer in which each of `LayerWeights.stacks` stands, as PEFT names it."""


@dataclass(frozen=True)
class FrozenBase:
    """What all adapters in training share."""

    weights: Weights
    head: Head
    pad: int

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        stacks = (stack.weight for layer in self.weights.layers for stack in layer.stacks)
        return self.weights.embedding.nbytes + sum(weight.nbytes for weight in stacks)


class DecoderLora:
    """A `LoraModel` on arcd's own decoder."""

    def __init__(
        self, base: FrozenBase, config: TrainConfig, elementwise: Callable[[], Elementwise]
    ) -> None:
        """Make the tensors, on the device of the base.

        `elementwise` is asked at the beginning of each training.
        """
        self._base, self._config, self._elementwise_now = base, config, elementwise
        self._elementwise = EAGER
        self._dropout = Dropout(config.dropout)
        self.tensors: dict[str, Tensor] = {}
        self._layers = [
            self._layer(weights, f"base_model.model.model.layers.{index}.")
            for index, weights in enumerate(base.weights.layers)
        ]
        self.footprint = footprint(self._sizes())

    def begin(self, seed: int) -> None:
        """See `LoraModel.begin`."""
        self._dropout.begin(seed)
        self._elementwise = self._elementwise_now()

    def recovers(self, error: RuntimeError) -> bool:
        """See `LoraModel.recovers`: where the compiler fails, this training goes on without."""
        of_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
        if not of_compiler or self._elementwise is EAGER:
            return False
        log.warning("compiled functions failed: %s", error)
        self._elementwise = EAGER
        return True

    def padded(self, lengths: Sequence[int]) -> int:
        """See `LoraModel.padded`."""
        return padded(lengths)

    def loss(self, lessons: Sequence[Lesson], *, recompute: bool) -> Tensor:
        """See `LoraModel.loss`."""
        base, weights = self._base, self._base.weights
        self._dropout.next_pass()
        row = in_a_row(lessons, base.pad, str(weights.embedding.device))
        cosine, sine = weights.rotary(max(end - begin for begin, end in row.spans))
        states = layers.run(
            F.embedding(row.tokens, weights.embedding),
            row,
            self._layers,
            weights.shape,
            cosine[row.places],
            sine[row.places],
            weights.final_norm,
            self._elementwise,
            recompute=recompute,
        )
        return -base.head(states, row.targets).sum()

    def _sizes(self) -> Sizes:
        weights, first = self._base.weights, self._base.weights.layers[0]
        return Sizes(
            layers=len(self._layers),
            width=weights.embedding.shape[1],
            mlp_width=first.down.weight.shape[1],
            heads=weights.shape.heads,
            key_heads=weights.shape.key_heads,
            head_size=weights.shape.head_size,
            head_norms=first.q_norm is not None,
            item=weights.embedding.element_size(),
            rank=self._config.rank,
            adapted=len(self._config.target_modules),
            parameters=sum(tensor.numel() for tensor in self.tensors.values()),
            answers=self._base.head.columns,
        )

    def _layer(self, weights: LayerWeights, prefix: str) -> Layer:
        return weights.layer(
            self._adapted(stack, f"{prefix}{module}.")
            for stack, module in zip(weights.stacks, MODULES, strict=True)
        )

    def _adapted(self, stack: Stack, prefix: str) -> Adapted:
        config = self._config
        return Adapted(
            stack.weight,
            stack.bias,
            tuple(self._factors(stack, prefix)),
            config.alpha / (config.rank**0.5 if config.rslora else config.rank),
            self._dropout,
        )

    def _factors(self, stack: Stack, prefix: str) -> Iterator[Factors]:
        for name, (begin, end) in stack.outputs.items():
            if name in self._config.target_modules:
                rank = self._config.rank
                a, b = (rank, stack.weight.shape[1]), (end - begin, rank)
                place = prefix + name
                yield Factors(
                    begin,
                    end,
                    self._tensor(f"{place}.lora_A.weight", a),
                    self._tensor(f"{place}.lora_B.weight", b),
                    place,
                )

    def _tensor(self, name: str, shape: tuple[int, int]) -> Tensor:
        # The default number format is another while vLLM starts.
        made = torch.zeros(
            shape,
            dtype=torch.float32,
            device=self._base.weights.embedding.device,
            requires_grad=True,
        )
        self.tensors[name] = made
        return made
