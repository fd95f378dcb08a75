"""An engine without memory, made on purpose, to see that it lives on.

On a GPU a ballast takes all that is free. On a CPU, where a system would rather kill than refuse,
vLLM's steps fail as they would on a GPU.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import torch

from arcd.backends.protocols import Engine
from arcd.model.device import Device

SMALLEST_PIECE = 1 << 21
"""Bytes of the last pieces of ballast: torch asks CUDA for no less."""


def fallbacks(engine: Engine) -> int:
    """How often a step found no memory and the engine began again with fewer requests at once."""
    from arcd.backends.vllm.engine import VllmEngine

    return engine.fallbacks if isinstance(engine, VllmEngine) else 0


def memory_pressure(device: Device) -> AbstractContextManager[str]:
    """While it is open, the engine's steps get no memory; gives what was done, in words."""
    return _ballast() if device.kind == "cuda" else failing_steps()


@contextmanager
def failing_steps() -> Iterator[str]:
    """vLLM's steps in this process raise torch.OutOfMemoryError."""
    from vllm import LLMEngine

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. (a fault that arcd doctor has put in)")

    step, LLMEngine.step = LLMEngine.step, fail
    try:
        yield "steps that fail"
    finally:
        LLMEngine.step = step


@contextmanager
def _ballast() -> Iterator[str]:
    # What torch has cached would be there for the engine.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken: list[torch.Tensor] = []
    size = free
    try:
        while size >= SMALLEST_PIECE:
            with suppress(torch.OutOfMemoryError):
                taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
                continue
            size //= 2
        yield f"{sum(piece.numel() for piece in taken) / 2**30:.1f} GiB of ballast"
    finally:
        taken.clear()
        torch.cuda.empty_cache()
