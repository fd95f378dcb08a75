"""One copy of a base: the decoder's weights are those of an engine in the same process.

An engine stacks the weights that read the same input as the decoder does: queries, keys and values;
gate and up. So each of its tensors can be used as it is, if the engine keeps it plain. Whether it
does is not assumed but compared with the folder, tensor by tensor.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from arcd.decoder.folder import GATE_UP, QKV, Files

STACKED = {QKV: "qkv_proj", GATE_UP: "gate_up_proj"}
"""vLLM's names of stacked layers."""


class NotSharedError(Exception):
    """Why the engine's tensors cannot be the decoder's."""


class EngineTensors:
    """A `Source` of an engine's tensors; NotSharedError for one that is not as the folder says."""

    def __init__(self, files: Files, held: Mapping[str, Tensor]) -> None:
        """`held` are the engine's tensors by vLLM's names for a model without adapters."""
        self.shapes = files.shapes
        self._files, self._held = files, held

    def stack(self, names: Sequence[str]) -> Tensor:
        """See `Source.stack`: the engine's own tensor, which holds the same values."""
        name, wanted = stacked_name(names), self._files.stack(names)
        tensor = self._held.get(name)
        if tensor is None:
            raise NotSharedError(f"the engine has no {name}")
        # vLLM pads a vocabulary to a multiple of 64 rows.
        rows = tensor.detach()[: len(wanted)]
        if rows.shape != wanted.shape or not rows.is_contiguous():
            raise NotSharedError(f"the engine keeps {name} in another layout")
        if (rows.dtype, rows.device) != (wanted.dtype, wanted.device):
            raise NotSharedError(f"the engine keeps {name} as {rows.dtype} on {rows.device}")
        if rows.is_inference():
            raise NotSharedError(f"the engine keeps {name} for inference only")
        if not torch.equal(rows, wanted):
            raise NotSharedError(f"the engine has other values in {name}")
        return rows


def stacked_name(names: Sequence[str]) -> str:
    """vLLM's name for these tensors of a layer: `...self_attn.qkv_proj.weight`."""
    if len(names) == 1:
        return names[0]
    prefix, _, kind = names[0].rsplit(".", 2)
    return f"{prefix}.{STACKED[tuple(name.rsplit('.', 2)[1] for name in names)]}.{kind}"
