"""Ctrl-Z while a live screen is shown: the terminal is the shell's until the command goes on.

Knows nothing of what is shown.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Screen(Protocol):
    """What can give the terminal back and take it again; rich's `Live` does."""

    def start(self, refresh: bool = False) -> None:
        """Take the terminal."""
        ...

    def stop(self) -> None:
        """Leave it as it was."""
        ...


def stop_process() -> None:
    """Stop this process until it is continued. The shell has sent SIGTSTP to the others itself."""
    os.kill(os.getpid(), signal.SIGSTOP)


@contextmanager
def suspendable(screen: Screen, suspend: Callable[[], None] = stop_process) -> Iterator[None]:
    """Within the block SIGTSTP takes the screen away, suspends, and brings the screen back.

    Only the main thread can handle signals; in another nothing is done.
    """

    def handle(signum: int, frame: object) -> None:
        screen.stop()
        suspend()
        screen.start(refresh=True)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTSTP, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)
