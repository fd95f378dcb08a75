"""What the two sides of the engine send each other: commands one way, answers the other.

The event loop's side (`engine`) sends commands, the thread's side (`worker`) sends one answer for
each request of a call. Knows nothing of vLLM.
"""

from dataclasses import dataclass
from typing import TypeVar

from anyio.streams.memory import MemoryObjectSendStream

from arcd.backends.protocols import Adapter, Completion, Request
from arcd.backends.vllm.recovery import drop_frames
from arcd.errors import DeviceLost, EngineFailed, SampleRefused

Answer = Completion | SampleRefused | EngineFailed | DeviceLost
"""A completion, or the reason why its call gets no more of them."""

_Failure = TypeVar("_Failure", bound=SampleRefused | EngineFailed | DeviceLost)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One `Engine.sample` that has not returned; its answers arrive in `answers`."""

    requests: tuple[Request, ...]
    adapter: Adapter | None
    answers: MemoryObjectSendStream[Answer]


@dataclass(frozen=True, slots=True)
class Load:
    """Load an adapter; a refusal is kept and answers the calls that use the adapter."""

    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Unload:
    """Remove an adapter that was loaded or refused."""

    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Begin:
    """Add the requests of a call to the batch."""

    call: Call


@dataclass(frozen=True, slots=True)
class End:
    """Abort those requests of a call that are not answered yet."""

    call: Call


@dataclass(frozen=True, slots=True)
class Stop:
    """Make no further step."""


Command = Load | Unload | Begin | End | Stop


def failure(kind: type[_Failure], error: BaseException, what: str | None = None) -> _Failure:
    """The error as `kind` in one line, `what` before it; the error itself is its cause.

    The frames that it went through are emptied: their tensors would live as long as the failure.
    """
    drop_frames(error)
    text = " ".join(str(error).split())[:300]
    cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
    failed = kind(f"{what}: {cause}" if what else cause)
    failed.__cause__ = error
    return failed


def copied(failed: _Failure) -> _Failure:
    """The same failure for one more caller, because an exception belongs to one traceback."""
    copy = type(failed)(str(failed))
    copy.__cause__ = failed.__cause__
    return copy
