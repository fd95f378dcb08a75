"""An event loop whose clock is virtual: where nothing is ready it jumps to the next timer.

What sleeps costs nothing, and takes exactly as long as it says. Only for code that waits for
nothing but timers and its own tasks: a test that would wait for ever fails at once, and threads
would be taken for that. A module has all its tests on it with

    @pytest.fixture
    def anyio_backend() -> virtual.Backend:
        return virtual.BACKEND
"""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

END = 1e9
"""Seconds after which nothing is waited for any more; `anyio.sleep_forever` sets timers, too."""


class Stuck(Exception):
    """Nothing is ready and no timer will ever fire: this would wait for ever."""


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: whoever would wait finds the time passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None or (timeout > 0 and self.now > END):
            raise Stuck(Stuck.__doc__)
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at 0 seconds."""

    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


Backend = tuple[str, dict[str, type[VirtualLoop]]]
BACKEND: Backend = ("asyncio", {"loop_factory": VirtualLoop})


async def at_once(work: Callable[[Callable[[], None]], T]) -> T:
    """The background of a runtime on this loop, which would take a thread's work for waiting."""
    return work(lambda: None)
