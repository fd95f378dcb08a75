"""A Hugging Face folder of the Llama family, read into the weights of a decoder.

The config tells the architecture; the weights come from a source, the safetensors files or an
engine that holds them already (`sharing`), stacked as the layers want them. What the decoder does
not have is a reason, not an error: then transformers trains the model.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from arcd.decoder.layers import Layer, Shape
from arcd.decoder.lora import Linear
from arcd.errors import BadBase, in_one_line

FAMILY = ("llama", "qwen2", "qwen3")

ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary positions whose frequencies do not depend on the length of a prompt."""

PLACES = 4096
"""Places of which the rotary positions are computed at once; more when a lesson has more."""

QKV = ("q_proj", "k_proj", "v_proj")
GATE_UP = ("gate_proj", "up_proj")

LINEARS = (*QKV, "o_proj", *GATE_UP, "down_proj")
"""The linear layers in a decoder layer."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Linear layers that read the same input: their weights stacked, and where each begins."""

    weight: Tensor
    """(out, in)."""
    bias: Tensor | None
    outputs: dict[str, tuple[int, int]]
    """The outputs of each layer by its name: from, and to the one after the last."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The frozen weights of a layer."""

    attention_norm: Tensor
    qkv: Stack
    output: Stack
    mlp_norm: Tensor
    gate_up: Stack
    down: Stack
    q_norm: Tensor | None
    k_norm: Tensor | None

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """All linear layers, stacked, in the order of `LINEARS`."""
        return self.qkv, self.output, self.gate_up, self.down

    def layer(self, linears: Iterable[Linear]) -> Layer:
        """The layer whose products are made by these, one for each of `stacks`."""
        qkv, output, gate_up, down = linears
        return Layer(
            self.attention_norm,
            qkv,
            output,
            self.mlp_norm,
            gate_up,
            down,
            self.q_norm,
            self.k_norm,
        )


@dataclass(frozen=True, slots=True)
class Weights:
    """A frozen decoder."""

    shape: Shape
    embedding: Tensor
    """(vocabulary, width)."""
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    rotary: "Rotary"


def unsupported(folder: Path) -> str | None:
    """Why the decoder cannot hold this model; None if it can. Raises BadBase without a config."""
    config = _config(folder)
    rotary = config.rope_parameters if config.model_type in FAMILY else {}
    if config.model_type not in FAMILY:
        return f"its architecture is {config.model_type}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if rotary["rope_type"] not in ROTARY:
        return f"its rotary positions are {rotary['rope_type']}"
    if rotary.get("partial_rotary_factor", 1) != 1:
        return "its rotary positions are in a part of each head"
    if getattr(config, "use_sliding_window", False):
        return "its attention has a sliding window"
    if getattr(config, "quantization_config", None):
        return "its weights are quantised"
    return None


class Source(Protocol):
    """Where a model's tensors come from."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of the model's tensors, by name."""
        ...

    def stack(self, names: Sequence[str]) -> Tensor:
        """The tensors of these names, one below the other."""
        ...


def read(folder: Path, source: Source) -> tuple[Weights, Tensor]:
    """The weights of a supported model, and its table of outputs (vocabulary, width).

    The table is apart because a head needs few of its rows.
    """
    config = _config(folder)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = Shape(config.num_attention_heads, config.num_key_value_heads, size, config.rms_norm_eps)
    embedding = source.stack(["model.embed_tokens.weight"])
    layers = range(config.num_hidden_layers)
    weights = Weights(
        shape,
        embedding,
        tuple(_layer(source, f"model.layers.{index}.") for index in layers),
        source.stack(["model.norm.weight"]),
        Rotary(config, embedding.dtype, str(embedding.device)),
    )
    tied = config.tie_word_embeddings
    return weights, embedding if tied else source.stack(["lm_head.weight"])


def _config(folder: Path) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        raise BadBase(f"{folder}: cannot be loaded: {in_one_line(str(error))}") from None
    return config


def _shapes(config: PretrainedConfig) -> dict[str, torch.Size]:
    """The tensors of the model, as transformers has it, by name."""
    with torch.device("meta"):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


class Files:
    """The tensors in the files of a folder; each is read when it is asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        """Raises BadBase if a tensor is missing or has another shape than the config says."""
        self._dtype, self._device = dtype, device
        self._where: dict[str, Path] = {}
        found: dict[str, list[int]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(file, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  # it is no dict
                        self._where[name] = file
                        found[name] = opened.get_slice(name).get_shape()
            except (OSError, SafetensorError) as error:
                raise BadBase(f"{file}: not a safetensors file: {error}") from None
        config = _config(folder)
        self.shapes = _shapes(config)
        if config.tie_word_embeddings:
            del self.shapes["lm_head.weight"]
        for name, shape in self.shapes.items():
            if name not in found:
                raise BadBase(f"{folder}: cannot be loaded: {name} is missing")
            if found[name] != list(shape):
                said = f"{name} is {found[name]}, the config says {list(shape)}"
                raise BadBase(f"{folder}: cannot be loaded: {said}")

    def stack(self, names: Sequence[str]) -> Tensor:
        """See `Source.stack`."""
        tensors = [self._read(name) for name in names]
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0]

    def _read(self, name: str) -> Tensor:
        with safe_open(self._where[name], "pt") as opened:
            # A copy: the file may be replaced while its memory is in use.
            tensor: Tensor = opened.get_tensor(name).to(self._device, self._dtype, copy=True)
        return tensor


def _layer(source: Source, prefix: str) -> LayerWeights:
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    return LayerWeights(
        source.stack([f"{prefix}input_layernorm.weight"]),
        _stack(source, attention, QKV),
        _stack(source, attention, ("o_proj",)),
        source.stack([f"{prefix}post_attention_layernorm.weight"]),
        _stack(source, mlp, GATE_UP),
        _stack(source, mlp, ("down_proj",)),
        _optional(source, [f"{attention}q_norm.weight"]),
        _optional(source, [f"{attention}k_norm.weight"]),
    )


def _stack(source: Source, prefix: str, names: tuple[str, ...]) -> Stack:
    weights = [f"{prefix}{name}.weight" for name in names]
    outputs, begin = {}, 0
    for name, weight in zip(names, weights, strict=True):
        rows = source.shapes[weight][0]
        outputs[name] = begin, begin + rows
        begin += rows
    biases = [f"{prefix}{name}.bias" for name in names]
    return Stack(source.stack(weights), _optional(source, biases), outputs)


def _optional(source: Source, names: Sequence[str]) -> Tensor | None:
    """The tensors stacked; None if the model has none of these names."""
    found = [name for name in names if name in source.shapes]
    return source.stack(found) if found else None


class Rotary:
    """Cosines and sines of the places in a lesson, as transformers computes them."""

    def __init__(self, config: PretrainedConfig, dtype: torch.dtype, device: str) -> None:
        self._rotary, self._like = LlamaRotaryEmbedding(config), torch.empty(0, dtype=dtype)
        self._device = device
        self._table = self._of(min(config.max_position_embeddings, PLACES))

    def __call__(self, places: int) -> tuple[Tensor, Tensor]:
        """Of this many places or more: each (places, head size / 2)."""
        table = self._table  # another trainer's thread may replace it meanwhile
        if len(table[0]) < places:
            # More than are wanted now: a GPU waits for each new table.
            self._table = table = self._of(math.ceil(places / PLACES) * PLACES)
        return table

    def _of(self, places: int) -> tuple[Tensor, Tensor]:
        both = self._rotary(self._like, torch.arange(places)[None])
        cosine, sine = (x[0, :, : x.shape[-1] // 2].to(self._device, copy=True) for x in both)
        return cosine, sine
