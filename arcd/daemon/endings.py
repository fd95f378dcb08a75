"""Endings: what an error that ends the daemon means to its supervisor.

    failure   another daemon would end like this one, so that none is started
    death     another daemon goes on from the store; tasks in flight are charged

Pure functions of the error. Knows nothing of processes.
"""

from collections.abc import Callable, Iterator

from arcd.backends.device_errors import out_of_memory, sticky
from arcd.daemon.heartbeat import Failure
from arcd.errors import DeviceLost, EngineFailed, in_one_line, known

BUSY = (
    "on startup is less than desired gpu memory utilization",
    "release gpu memory while vllm is profiling",
)
"""Parts of what vLLM says when it starts on a GPU whose memory somebody else has or gives back."""


def failure(error: BaseException, *, ready: bool) -> Failure | None:
    """What the supervisor is told of an error; None if it is a death.

    A daemon that was `ready` dies of its engine and of its device: that may be the fault of a task.
    One that was not would end in the same way each time, minutes after its start. Only what a dead
    process still holds may be free at a second try.
    """
    explained = known(error)
    if explained is not None and not isinstance(explained, EngineFailed | DeviceLost):
        return Failure(str(explained), explained.exit_code)
    full, lost = _any(out_of_memory, error), device_lost(error)
    if ready or not (explained or full or lost):
        return None
    words = cause(error)
    text = words if explained else f"the models cannot be loaded: {words}"
    passing = full or lost or any(part in words.lower() for part in BUSY)
    return Failure(text, 1, passing)


def cause(error: BaseException) -> str:
    """The error in one line: arcd's own in its words, another with its type."""
    explained = known(error)
    if explained is not None:
        return in_one_line(str(explained))
    first = next(_single(error))
    return in_one_line(f"{type(first).__name__}: {first}")


def told_as_death(error: BaseException) -> bool:
    """Whether a daemon that was ready dies of something that it can name in an event."""
    return isinstance(known(error), EngineFailed | DeviceLost) or device_lost(error)


def device_lost(error: BaseException) -> bool:
    """Whether this process can do nothing with the GPU any more, not even end in order."""
    return isinstance(known(error), DeviceLost) or _any(sticky, error)


def _any(says: Callable[[BaseException], bool], error: BaseException) -> bool:
    return any(says(each) for each in _single(error))


def _single(error: BaseException) -> Iterator[BaseException]:
    """The error itself, or those in a (nested) group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _single(inner)
    else:
        yield error
