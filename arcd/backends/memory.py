"""The device's memory as a trainer sees it: what it may use, what a step took, how to give it back.

The engine has claimed a part, of which it holds less between its steps: vLLM measures its peak once
and does not hold it. A trainer that took what is free at the moment would end the engine. torch is
imported only for a GPU. Knows nothing of models.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

WORKSPACE = 1 << 30
"""Bytes that an engine takes in a step beside what it holds, if nobody has measured it: logprobs of
512 prompt tokens over 150 000 entries are 0.3 GiB in fp32, and there are two copies of them."""


class Memory(Protocol):
    """The memory that a trainer shares with others."""

    def allowance(self, own: int) -> int | None:
        """Bytes that a trainer may have in all, if it has `own` bytes now; None: any number."""
        ...

    def start(self) -> None:
        """A step begins: what it takes is measured from here."""
        ...

    def peak(self) -> int | None:
        """The most bytes since `start` beyond those at `start`; None if nobody measures them."""
        ...

    def release(self) -> None:
        """Give back what torch keeps for later."""
        ...


class Unlimited:
    """The memory of a CPU: the system pages, and torch counts nothing."""

    def allowance(self, own: int) -> None:
        """See `Memory.allowance`."""

    def start(self) -> None:
        """See `Memory.start`."""

    def peak(self) -> None:
        """See `Memory.peak`."""

    def release(self) -> None:
        """See `Memory.release`."""


UNLIMITED = Unlimited()


@dataclass(frozen=True, slots=True)
class Occupation:
    """What is taken of a GPU's memory, in bytes."""

    free: int
    """Of the whole GPU, by the driver."""
    reserved: int
    """What torch has from the driver in this process."""
    allocated: int
    """What tensors have of that."""


def share_of_trainer(
    now: Occupation, claimed: int | None, base: int, own: int, trainers: int
) -> int:
    """Bytes that each of `trainers` may have for its adapter and its steps.

    `claimed` are the most that the engine takes, None if that is not known: then it keeps what it
    has now and WORKSPACE. `base` is what the trainers' base takes beside the engine's, `own` what
    this trainer's adapter takes now. What other processes and the CUDA context take is neither free
    nor torch's, and is not counted on.
    """
    ours = now.free + now.reserved
    others = now.allocated - own
    taken = others + WORKSPACE if claimed is None else max(claimed + base, others)
    return max(0, (ours - taken) // trainers)


class GpuMemory:
    """The memory of the current GPU, beside an engine in the same process.

    torch counts for the whole process: a peak also has what the engine's steps took meanwhile, so
    it is never too low. Several trainers would reset each other's count: nothing is measured then.
    """

    def __init__(self, share: float | None, base: Callable[[], int], trainers: int) -> None:
        """`share` of the GPU is the engine's claim; the rest is as for `share_of_trainer`."""
        self._share, self._base, self._trainers = share, base, trainers
        self._at_start = 0

    def allowance(self, own: int) -> int:
        """See `Memory.allowance`."""
        import torch

        free, total = torch.cuda.mem_get_info()
        now = Occupation(free, torch.cuda.memory_reserved(), torch.cuda.memory_allocated())
        claimed = None if self._share is None else int(self._share * total)
        return share_of_trainer(now, claimed, self._base(), own, self._trainers)

    def start(self) -> None:
        """See `Memory.start`."""
        import torch

        torch.cuda.reset_peak_memory_stats()
        self._at_start = torch.cuda.memory_allocated()

    def peak(self) -> int | None:
        """See `Memory.peak`."""
        import torch

        if self._trainers > 1:
            return None
        return torch.cuda.max_memory_allocated() - self._at_start

    def release(self) -> None:
        """See `Memory.release`."""
        import torch

        torch.cuda.empty_cache()
