"""CUDA streams: trainer and engine have one each, so that a GPU runs their kernels side by side.

On one stream a decode step would wait behind every kernel of a training step that was queued before
it. Nothing happens on a CPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ENGINE_PRIORITY = -1
"""Of the engine's stream; a lower number goes first. The engine's kernels are short, and a task's
answers wait for them."""

TRAINER_PRIORITY = 0
"""Of the trainer's stream."""

ONE_STREAM = "ARCD_ONE_STREAM"
"""An environment variable: "1" leaves both on the default stream, to measure what streams bring."""


def own_stream(priority: int) -> None:
    """Give the calling thread a stream of this priority, for all that it does from now on."""
    import torch

    if _apart():
        stream = torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(stream)


@contextmanager
def streams_of(priority: int) -> Iterator[None]:
    """`own_stream`; and while it is open, streams that name no priority have this one, too.

    For a library that captures CUDA graphs on a stream that it makes. The kernels of a graph have
    the priority of the stream they were captured on, not of the one they are replayed on: torch
    asks for that (cudaGraphInstantiateFlagUseNodePriority). No other thread may make streams then.
    """
    import torch

    own_stream(priority)
    if not _apart():
        yield
        return
    plain: Any = torch.cuda.Stream

    class Stream(plain):  # type: ignore[misc]  # a class, not an alias: torch asks isinstance
        def __new__(
            cls, device: object = None, priority: int = priority, **kwargs: object
        ) -> "Stream":
            found: Stream = plain.__new__(cls, device, priority, **kwargs)
            return found

    torch.cuda.Stream = Stream  # type: ignore[misc]
    try:
        yield
    finally:
        torch.cuda.Stream = plain  # type: ignore[misc]


def _apart() -> bool:
    import torch

    return torch.cuda.is_available() and os.environ.get(ONE_STREAM) != "1"
