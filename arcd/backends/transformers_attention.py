"""How models of transformers attend where arcd trains them.

Two things that transformers does are wrong for a trainer on a GPU, and both can be changed where
models of any architecture look them up. Knows nothing of adapters.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from arcd.model.device import AMPERE, Device

REPEATED = "sdpa_repeated"
"""The name of `_repeated` for transformers."""


def prepare_attention(model: PreTrainedModel, device: Device) -> None:
    """Have a model, which attends by SDPA, keep off the kernel that keeps all scores.

    A GPU before Ampere has no other one for heads that share keys (transformers issue 48633).
    """
    if device.capability is not None and device.capability < AMPERE:
        AttentionInterface.register(REPEATED, _repeated)
        AttentionMaskInterface.register(REPEATED, sdpa_mask)
        model.set_attn_implementation(REPEATED)


def _repeated(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **more: Any,
) -> tuple[Tensor, None]:
    """SDPA with keys and values once for each head: (lessons, heads, tokens, size)."""
    repeats = query.shape[1] // key.shape[1]
    # Without groups of heads transformers has nothing to ask SDPA for.
    plain: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    found: tuple[Tensor, None] = sdpa_attention_forward(
        plain, query, repeat_kv(key, repeats), repeat_kv(value, repeats), attention_mask, **more
    )
    return found


_here = threading.local()
_find_packed = masking_utils.find_packed_sequence_indices


def _find_unless_known(position_ids: Tensor) -> Tensor | None:
    return None if getattr(_here, "unpacked", False) else _find_packed(position_ids)


@contextmanager
def unpacked() -> Iterator[None]:
    """In this thread no row of a batch has several lessons, so nobody has to look for them.

    transformers looks at every forward pass: it waits until a GPU has told it.
    """
    masking_utils.find_packed_sequence_indices = _find_unless_known
    _here.unpacked = True
    try:
        yield
    finally:
        _here.unpacked = False
