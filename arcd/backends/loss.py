"""The loss of a step, read when it is there. Knows nothing of steps."""

import torch
from torch import Tensor


class Loss:
    """A loss on the device, which may still have to compute it.

    To read it at once would wait for the whole queue of a GPU, which then idles until the next step
    is queued. So its copy is queued behind it, and whoever queues the next step first and reads
    then waits for this one alone.
    """

    def __init__(self, value: Tensor) -> None:
        """`value` has one element; called in the thread and on the stream that compute it."""
        self._value = value
        self._there: torch.cuda.Event | None = None
        if value.is_cuda:
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            # One that does not spin: on a machine with few cores the engine needs them.
            self._there = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._there.record()

    def read(self) -> float:
        """The loss; waits until it is there. Raises what torch raises if the step failed."""
        if self._there is not None:
            self._there.synchronize()
        return float(self._value.item())
