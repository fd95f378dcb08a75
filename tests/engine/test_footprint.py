"""The arithmetic of memory, beside what autograd keeps in a step as it would be on a GPU."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.tiny_bases import BASES, Letters, lesson, write
from support.waits import META, uploads

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from torch.nn import functional as F

from arcd.backends.decoder_lora import DecoderLora
from arcd.backends.resident_base import ResidentBase
from arcd.config import TrainConfig

pytestmark = pytest.mark.engine


class Flash(torch.autograd.Function):
    """What a GPU's kernel keeps: its inputs, its output, and a sum for each query."""

    @staticmethod
    def forward(ctx: Any, q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> Any:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1]))
        return out


def kept(model: DecoderLora, length: int, *, recompute: bool) -> int:
    """Bytes that a forward pass keeps, beside weights and the tensors in training."""
    mine = [*model.tensors.values(), model._base.weights.embedding, model._base.weights.final_norm]
    for layer in model._base.weights.layers:
        mine += [stack.weight for stack in layer.stacks]
    known = {tensor.untyped_storage()._cdata for tensor in mine}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: "torch.Tensor") -> "torch.Tensor":
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage
        return tensor

    # Each token has a loss, or the last layer would work at fewer places.
    shown = lesson(length, 1)
    shown = replace(shown, labels=(Letters().end,) * length)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss([shown], recompute=recompute)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", BASES)
def test_a_token_takes_what_arithmetic_says(
    name: str, dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda q, k, v, is_causal: Flash.apply(q, k, v),  # type: ignore[no-untyped-call]
    )
    resident = ResidentBase(write(BASES[name], tmp_path), replace(META, dtype=dtype), Letters())
    model = resident.lora(TrainConfig(rank=8))
    assert isinstance(model, DecoderLora)
    with uploads(monkeypatch):
        for recompute in (False, True):
            short, long = (kept(model, length, recompute=recompute) for length in (320, 640))
            found, arithmetic = (long - short) / 320, model.footprint.of(recompute=recompute)
            assert short < arithmetic.fixed + arithmetic.token * 320
            assert found < arithmetic.token
            # The arithmetic also has the backward pass of one layer, of the two that there are.
            assert recompute or found > 0.6 * arithmetic.token
    assert model.footprint.recomputed.token < model.footprint.plain.token
    assert model.footprint.parameters == sum(each.numel() for each in model.tensors.values())
