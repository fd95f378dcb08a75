"""What makes the host wait for a device, seen without one.

On the meta device tensors have no values: whoever asks for one gets an error. So a computation that
goes through there asks for none. What happens behind it, on a CPU, is counted by `Reads`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from arcd.model.device import Device

META = Device(cast(Any, "meta"), "float32")

READ = {
    "aten._local_scalar_dense",  # item, bool, float
    "aten.nonzero",
    "aten.is_nonzero",
    "aten.masked_select",
    "aten.equal",
}
"""Operators whose result the host reads, or whose size depends on values."""


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operators for which the host would wait, and how wide the results of all are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: list[str] = []
        self.widths: set[int] = set()
        """The last dimensions of all results."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        name = str(func).rpartition(".")[0]
        indices = args[1] if name in ("aten.index", "aten.index_put") else ()
        masked = any(each is not None and each.dtype == torch.bool for each in indices)
        if name in READ or masked:
            self.reads.append(name)
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dim() > 1:
            self.widths.add(found.shape[-1])
        return found


@contextmanager
def uploads(patch: Any) -> Iterator[list[str]]:
    """How tensors get from the host to the meta device: "pinned" or "pageable" for each copy."""
    seen: list[str] = []
    pinned: list[Tensor] = []  # kept, so that no other tensor gets its identity
    to = Tensor.to

    def pin(self: Tensor) -> Tensor:
        pinned.append(self.clone())
        return pinned[-1]

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        found = to(self, *args, **kwargs)
        if self.device.type == "cpu" and found.device.type == "meta":
            waits = not kwargs.get("non_blocking") or all(self is not each for each in pinned)
            seen.append("pageable" if waits else "pinned")
        return found

    with patch.context() as patched:
        patched.setattr(Tensor, "pin_memory", pin)
        patched.setattr(Tensor, "to", moved)
        yield seen
