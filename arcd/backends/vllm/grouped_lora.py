"""Adapters on a CPU by two matrix products for each adapter in the batch. Imported by vLLM alone.

vLLM's own CPU path gathers a copy of both LoRA matrices for every token of a step and multiplies
token by token: it prefills at 2000 tok/s where the base alone does 18000, and a decode step takes
31 ms instead of 17 (5M model, rank 16, 16 sequences, one core). Grouped by adapter it is 16000
tok/s and 19 ms. Tokens without an adapter stay as they are; vLLM's CPU path adds the last slot to
them.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Groups = list[tuple[int, Tensor | None]]
"""(an adapter's slot, the rows that use it, or None for all rows) for each adapter in a batch"""


class GroupedPunica(PunicaWrapperCPU):  # type: ignore[misc]  # vllm is untyped here
    """vLLM 0.32's interface; all but linear layers and logits is inherited from vLLM."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._tokens = _groups(self.token_lora_indices)
        self._samples = _groups(self.sampler_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Add the adapters' part of a linear layer to y (tokens, out) in place; x is (tokens, in).

        Each slice of the output has its A (slots, 1, rank, in) and its B (slots, 1, out, rank).
        """
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        parts = torch.split(y, list(output_slices), dim=-1)
        for part, down, up in zip(parts, lora_a_stacked, lora_b_stacked, strict=True):
            _add(self._tokens, part, x, down, up, scale)

    def add_lora_logits(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: Tensor,
        lora_b_stacked: Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """Add the adapters' part of `lm_head` to the logits y (samples, vocabulary) in place."""
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        if len(x) != len(self.sampler_indices):
            # These are logits of a prompt, and vLLM does not tell which adapter a row uses. Only
            # adapters of `lm_head` have a part here, and with those arcd does not rescore.
            return
        width = min(y.shape[-1], lora_b_stacked.shape[-2])  # either may be padded
        up = lora_b_stacked[..., :width, :]
        _add(self._samples, y[:, :width], x, lora_a_stacked, up, scale)


def _groups(slots: Tensor) -> Groups:
    """The rows of each slot, given the slot of each row; -1 is the base alone and is left out."""
    present = torch.unique(slots).tolist()
    if len(present) == 1:
        return [(present[0], None)] if present[0] >= 0 else []
    return [(slot, (slots == slot).nonzero()[:, 0]) for slot in present if slot >= 0]


def _add(groups: Groups, y: Tensor, x: Tensor, downs: Tensor, ups: Tensor, scale: float) -> None:
    for slot, rows in groups:
        down, up = downs[slot].squeeze(0), ups[slot].squeeze(0)  # (rank, in), (out, rank)
        # Both cases round alike: an answer must not depend on the other requests in its batch.
        if rows is None:
            y.add_((x @ down.T) @ up.T, alpha=scale)
        else:
            y.index_add_(0, rows, (x[rows] @ down.T) @ up.T, alpha=scale)
