"""Tiny bases of each architecture with random weights, and random lessons for them."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from arcd.arc.grids import Grid
from arcd.arc.views import PLAIN_COLOURS, View
from arcd.backends.lora_adapter import LoraModel, TrainableAdapter
from arcd.backends.memory import UNLIMITED
from arcd.backends.memory_forecast import Plan, StepMemory
from arcd.config import TrainConfig
from arcd.model.device import Device
from arcd.model.prompts import IGNORED, Lesson

VOCABULARY = 80

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "attn_implementation": "sdpa",
}
"""What the bases have in common: two heads share a key head, and lessons may be longer than the
positions that the config names."""

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}

Maker = Callable[[], PreTrainedModel]

BASES: dict[str, Maker] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "llama tied": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SMALL
            | {"tie_word_embeddings": True, "rope_parameters": LLAMA3}
            # Heads of another size than width / heads, each with a key head of its own.
            | {"head_dim": 20, "num_key_value_heads": 4}
        )
    ),
    "llama biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1})
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SMALL | {"head_dim": 16, "rope_parameters": YARN})
    ),
}
"""Bases that arcd's own decoder holds."""


def gemma() -> PreTrainedModel:
    """A base that it does not hold."""
    return Gemma2ForCausalLM(Gemma2Config(**SMALL | {"head_dim": 12}))


def write(make: Maker, folder: Path, **config: object) -> Path:
    """A folder with a base whose weights are all random, biases and norms too, in two files.

    They are written in fp32, but bf16 has them too. `config` changes what config.json says.
    """
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make()
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.copy_(1 + 0.3 * torch.randn(weight.shape))
            else:
                # Products keep the size of what they are given, so that every part has a say.
                weight.copy_(torch.randn(weight.shape) * weight.shape[-1] ** -0.5)
            weight.copy_(weight.bfloat16())
    for name, value in config.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


@dataclass
class Letters:
    """The part of an encoding that a trainer needs: what an answer can have, and the padding."""

    answer_tokens: tuple[int, ...] = (7, 3, 11, 60, 21, 22, 79, 40)
    pad: int = 5
    end: int = 7

    def question(self, grid: Grid, *, first: bool) -> list[int]:
        raise NotImplementedError

    def answer(self, grid: Grid) -> list[int]:
        raise NotImplementedError

    def parse(self, tokens: Sequence[int]) -> Grid | None:
        raise NotImplementedError


def lesson(
    length: int,
    seed: int,
    answer_tokens: Sequence[int] = Letters().answer_tokens,
    vocabulary: int = VOCABULARY,
) -> Lesson:
    """Any tokens; a third of them, among them the last, have a loss."""
    rng = random.Random(seed)
    tokens = [rng.randrange(vocabulary) for _ in range(length)]
    labels = [IGNORED] * length
    for place in range(length):
        if place == length - 1 or rng.random() < 1 / 3:
            tokens[place] = labels[place] = rng.choice(answer_tokens)
    view = View(False, 0, PLAIN_COLOURS, (0,))
    return Lesson("task", 0, view, (), tuple(tokens), tuple(labels))


def fill(*models: LoraModel, seed: int = 0) -> None:
    """The same random values in the tensors of all models, in A and in B."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in models[0].tensors.items():
            values = torch.randn(tensor.shape, generator=rng) * tensor.shape[1] ** -0.5
            values = values.bfloat16()
            for model in models:
                model.tensors[name].copy_(values)


PLAIN = Plan(recompute=False, at_once=2048)
"""How a step is made on a CPU."""


def adapter_on(
    model: LoraModel, config: TrainConfig, device: Device, base: Path = Path("base")
) -> TrainableAdapter:
    """An adapter in training with any amount of memory."""
    memory = StepMemory(UNLIMITED, model.footprint, PLAIN.at_once)
    return TrainableAdapter(model, base, config, device, memory)


Gradients = dict[str, Tensor]


def learnt(
    model: LoraModel, lessons: Sequence[Lesson], *, recompute: bool = False
) -> tuple[float, Gradients]:
    """The mean loss of a batch, and the gradient of each tensor."""
    count = sum(label != IGNORED for each in lessons for label in each.labels[1:])
    loss = model.loss(lessons, recompute=recompute) / count
    found = torch.autograd.grad(loss, list(model.tensors.values()))
    return loss.item(), dict(zip(model.tensors, found, strict=True))


def differences(found: Gradients, true: Gradients) -> dict[str, float]:
    """How far each gradient is from the true one, as a fraction of it, by their norms."""
    return {
        name: float((found[name].double() - true[name].double()).norm() / true[name].norm())
        for name in true
    }


def distance(found: Gradients, true: Gradients) -> float:
    """The same for all gradients as one: some of them may be zero."""
    off = math.fsum(float((found[name] - true[name]).norm()) ** 2 for name in true)
    return math.sqrt(off / math.fsum(float(value.norm()) ** 2 for value in true.values()))
