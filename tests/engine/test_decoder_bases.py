"""Which bases arcd's own decoder holds, and what is said of those that it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file
from support.tiny_bases import BASES, LLAMA3, Letters, fill, gemma, learnt, lesson, write

from arcd.backends.decoder_lora import DecoderLora
from arcd.backends.peft_lora import PeftLora
from arcd.backends.resident_base import ResidentBase
from arcd.config import TrainConfig
from arcd.decoder import folder
from arcd.errors import BadBase
from arcd.model.device import Device

pytestmark = pytest.mark.engine

FP32 = Device("cpu", "float32")
LORA = TrainConfig(rank=8)
LESSONS = [lesson(20, seed=1), lesson(11, seed=2)]


def opened(base: Path) -> ResidentBase:
    return ResidentBase(base, FP32, Letters())


def said_of(base: Path, **config: object) -> str | None:
    """Why the decoder cannot hold a base with these changes of its config."""
    change_config(base, lambda found: found | config)
    return folder.unsupported(base)


def change_config(base: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def change_tensors(
    base: Path, change: "Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]"
) -> None:
    """Rewrite the tensors of a base, in one file."""
    tensors: dict[str, torch.Tensor] = {}
    for file in base.glob("*.safetensors*"):
        if file.suffix == ".safetensors":
            tensors.update(load_file(file))
        file.unlink()
    save_file(change(tensors), base / "model.safetensors", {"format": "pt"})


def refusal(base: Path) -> str:
    with pytest.raises(BadBase) as caught:
        opened(base)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{base}: cannot be loaded: ")
    return said


def test_a_base_of_another_architecture_is_trained_by_peft(tmp_path: Path) -> None:
    base = opened(write(gemma, tmp_path))
    assert base.unsupported == "its architecture is gemma2"
    first, second = base.lora(LORA), base.lora(LORA)
    assert isinstance(first, PeftLora)
    fill(first, second)
    _, before = learnt(first, LESSONS)
    assert all(gradient.isfinite().all() for gradient in before.values())
    fill(second, seed=1)
    _, after = learnt(first, LESSONS)
    assert all(torch.equal(gradient, after[name]) for name, gradient in before.items())


def test_modules_beside_the_layers_are_trained_by_peft(tmp_path: Path) -> None:
    base = opened(write(BASES["llama"], tmp_path))
    assert base.unsupported is None
    model = base.lora(LORA.model_copy(update={"target_modules": ("q_proj", "lm_head")}))
    assert isinstance(model, PeftLora)
    assert isinstance(base.lora(LORA), DecoderLora)


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, "its activation is gelu"),
        (
            "llama",
            {"rope_parameters": LLAMA3 | {"rope_type": "dynamic", "factor": 2.0}},
            "its rotary positions are dynamic",
        ),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "its rotary positions are in a part of each head",
        ),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "its attention has a sliding window",
        ),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "its weights are quantised"),
        ("qwen2", {"sliding_window": 8}, None),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, None),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_what_the_decoder_does_not_have_is_a_reason(
    tmp_path: Path, name: str, config: dict[str, object], reason: str | None
) -> None:
    base = write(BASES[name], tmp_path)
    assert folder.unsupported(base) is None
    assert said_of(base, **config) == reason


def test_a_base_with_another_activation_learns_by_peft(tmp_path: Path) -> None:
    base = write(BASES["qwen2"], tmp_path)
    plain, _ = learnt(opened(base).lora(LORA), LESSONS)
    said_of(base, hidden_act="gelu")
    bent, _ = learnt(opened(base).lora(LORA), LESSONS)
    assert abs(plain - bent) > 1e-3


def _parts() -> list[tuple[str, str]]:
    """Each kind of tensor that a base has, with the base."""
    qwen3 = [
        *("embed_tokens.weight", "lm_head.weight", "model.norm.weight"),
        *("1.input_layernorm.weight", "0.post_attention_layernorm.weight"),
        *("1.self_attn.q_norm.weight", "0.self_attn.k_norm.weight"),
        *(f"1.self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(f"0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")),
    ]
    qwen2 = [f"1.self_attn.{name}.bias" for name in ("q_proj", "k_proj", "v_proj")]
    return [("qwen3", name) for name in qwen3] + [("qwen2", name) for name in qwen2]


@pytest.mark.parametrize(("name", "tensor"), _parts())
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(
    tmp_path: Path, name: str, tensor: str
) -> None:
    base = write(BASES[name], tmp_path)
    change_tensors(
        base,
        lambda all: {n: v[:-4].clone() if n.endswith(tensor) else v for n, v in all.items()},
    )
    said = refusal(base)
    assert f"{tensor} is [" in said
    assert "the config says [" in said
    change_tensors(base, lambda all: {n: v for n, v in all.items() if not n.endswith(tensor)})
    assert refusal(base).endswith(f"{tensor} is missing")


def test_tensors_that_the_architecture_has_not_are_not_used(tmp_path: Path) -> None:
    base = write(BASES["llama"], tmp_path)
    before, _ = learnt(opened(base).lora(LORA), LESSONS)

    def more(tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        found = dict(tensors)
        for name, value in tensors.items():
            if "_proj.weight" in name:
                found[name.replace("weight", "bias")] = torch.randn(len(value))
        return found

    change_tensors(base, more)
    assert learnt(opened(base).lora(LORA), LESSONS)[0] == before


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found | {"num_attention_heads": "four"},
        lambda found: found | {"hidden_size": 49},
        lambda found: found | {"rms_norm_eps": None},
        lambda found: found | {"rope_parameters": {"rope_type": "nonsense"}},
        lambda found: found | {"model_type": "nonsense"},
        lambda found: found | {"num_hidden_layers": 3},
        lambda found: found | {"head_dim": 7},
        lambda found: {},
        lambda found: [],
        lambda found: 7,
        lambda found: None,
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    base = write(BASES["llama"], tmp_path)
    change_config(base, change)
    refusal(base)


def test_a_file_that_has_no_tensors_in_it_is_named(tmp_path: Path) -> None:
    base = write(BASES["llama"], tmp_path)
    file = sorted(base.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadBase, match=f"^{file}: not a safetensors file: .*$"):
        opened(base)
