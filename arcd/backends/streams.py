"""CUDA streams: trainer and engine have one each, so that a GPU runs their kernels side by side.

On one stream a decode step would wait behind every kernel of a training step that was queued before
it. Nothing happens on a CPU.
"""

import os

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

    if torch.cuda.is_available() and os.environ.get(ONE_STREAM) != "1":
        stream = torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]
        torch.cuda.set_stream(stream)
