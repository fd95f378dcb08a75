"""After a step without memory: nothing of it stays, and vLLM is back in a known state.

What a step that raised leaves in vLLM's in-process engine (read in 0.19 to 0.33):

- The scheduler has moved on as if the step had been made. Tokens of requests count as computed, and
  full blocks are in the prefix cache, though nothing may have been written to them: later requests
  would be answered from them. So all requests are aborted and the prefix cache is emptied.
- With asynchronous scheduling the step before may still be in a queue, or the failed one itself: an
  error while sampling is raised one step late. So steps are made until the queue is empty.
- The model runner learns of aborted requests with the next step, which these steps are, too.
- The tensors live as long as the frames of the traceback, which a future and its exception hold in
  a cycle.
"""

import gc
import traceback
from typing import Any

from arcd.backends.device_errors import out_of_memory, sticky

QUEUE_STEPS = 3
"""Steps without a request after which vLLM has nothing under way: it queues at most two batches,
and tells the model runner with one more which requests are gone."""


def drop_frames(error: BaseException) -> None:
    """Empty the frames that an error, or one behind it, went through; the traceback stays."""
    seen: set[int] = set()
    behind: list[BaseException | None] = [error]
    while behind:
        each = behind.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            behind += [each.__cause__, each.__context__]


def only_memory(error: BaseException) -> bool:
    """Whether an error is that there was no memory, and no worse; then its frames are emptied."""
    if sticky(error) or not out_of_memory(error):
        return False
    drop_frames(error)
    return True


def release_memory() -> None:
    """Free what only cycles hold, and give back what torch keeps for later."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def settle(engine: Any) -> None:
    """Bring an `LLMEngine` whose requests were all aborted back to a known state.

    Raises RuntimeError if it cannot be, and what a step raises that is not about memory.
    """
    for _ in range(QUEUE_STEPS):
        try:
            engine.step()
        except Exception as error:
            if not only_memory(error):
                raise
    if not engine.reset_prefix_cache():
        raise RuntimeError("vLLM keeps what a step without memory has left in its cache")
