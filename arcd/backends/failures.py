"""Work on a device that may fail: what its error means, and that nothing of it stays in memory.

An error holds its traceback, that holds the frames, and those hold the activations of the step that
failed. The next try needs their memory. Knows nothing of what the work is.
"""

import gc
import traceback
from collections.abc import Callable
from typing import TypeVar

from arcd.backends.device_errors import out_of_memory, sticky
from arcd.backends.memory import Memory
from arcd.errors import DeviceLost, OutOfMemory, TrainerFailed

T = TypeVar("T")


def attempt(work: Callable[[], T], memory: Memory) -> T:
    """What `work` returns. Its errors of torch are raised as those of `explained`.

    When they are raised, nothing is left of what `work` had in memory.
    """
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        failure = explained(error)
        traceback.clear_frames(error.__traceback__)
    # Outside, so that the error is not the context of the failure, which would keep it.
    if not isinstance(failure, DeviceLost):
        gc.collect()
        memory.release()
    raise failure from None


def explained(error: BaseException) -> TrainerFailed | DeviceLost:
    """DeviceLost if the GPU cannot be used any more, OutOfMemory, or another TrainerFailed."""
    if sticky(error):
        return DeviceLost.after(error)
    if isinstance(error, MemoryError) or out_of_memory(error):
        return OutOfMemory()
    return TrainerFailed((str(error).splitlines() or [type(error).__name__])[0])
