"""The messages from a daemon to its supervisor, and how the daemon's process is tied to it.

One JSON document a line, over a pipe: a beat (is the daemon ready, how many steps have trainer and
engine made) or a failure that a restart would not mend. The daemon sends with a `Pulse`, and calls
`prepare_child` first of all. Knows nothing of when a daemon counts as stalled.
"""

import faulthandler
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from arcd.system.processes import die_with_parent

T = TypeVar("T")

PULSE_FD = "ARCD_PULSE_FD"
"""Environment variable: the file descriptor to which the daemon writes."""

SUPERVISOR_PID = "ARCD_SUPERVISOR_PID"
"""Environment variable: the pid of the supervisor that started the daemon."""

PREDECESSOR_DIED = "ARCD_PREDECESSOR_DIED"
"""Environment variable: "1" if the same supervisor saw a daemon before this one end, after it was
ready, although nobody had asked it to. Only then are the tasks in flight charged a death: a daemon
that was never ready has begun none."""

LONGEST_MESSAGE = 600
"""Characters of a failure's message that are sent. A character is at most 6 bytes in JSON, so a
line stays below 4096 bytes (PIPE_BUF), which a pipe takes as a whole or not at all."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Whether trainer or engine has work, and how many steps it has made."""

    busy: bool
    steps: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life, sent twice a second."""

    ready: bool
    engine: Activity
    trainer: Activity
    stopping: bool = False
    """Whether the daemon was asked to end, by whomever: whatever ends it then is no death."""
    loading: str = ""
    """The stages of the start-up that are under way: while they change, loading gets on."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a restart would not mend; the daemon ends after sending it."""

    message: str
    exit_code: int
    passing: bool = False
    """Whether it may be gone soon: a GPU that a dead process still holds. After a death such a
    failure is worth a second try."""


def to_line(message: Beat | Failure) -> bytes:
    """The message as one line of JSON; a failure's message is cut to LONGEST_MESSAGE."""
    fields = asdict(message)
    if isinstance(message, Failure):
        fields["message"] = message.message[:LONGEST_MESSAGE]
    return json.dumps(fields, ensure_ascii=False).encode(errors="replace") + b"\n"


def from_line(line: bytes) -> Beat | Failure | None:
    """The message in a line; None if the line is incomplete or something else."""
    try:
        fields = json.loads(line)
        return _failure(fields) if "message" in fields else _beat(fields)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _failure(fields: dict[str, Any]) -> Failure:
    message, exit_code = _typed(fields["message"], str), _typed(fields["exit_code"], int)
    return Failure(message, exit_code, _typed(fields.get("passing", False), bool))


def _beat(fields: dict[str, Any]) -> Beat:
    engine, trainer = _activity(fields["engine"]), _activity(fields["trainer"])
    stopping = _typed(fields["stopping"], bool)
    loading = _typed(fields.get("loading", ""), str)
    return Beat(_typed(fields["ready"], bool), engine, trainer, stopping, loading)


def _activity(fields: dict[str, Any]) -> Activity:
    return Activity(_typed(fields["busy"], bool), _typed(fields["steps"], int))


def _typed(value: Any, kind: type[T]) -> T:
    # Exact, because True is an int too.
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not a {kind.__name__}")
    return value


class Pulse:
    """The daemon's end of the pipe."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        # A program that the daemon starts must not keep the pipe open after the daemon's end.
        os.set_inheritable(fd, False)
        self._fd = fd

    @classmethod
    def from_environment(cls) -> Self | None:
        """The pulse to this process's supervisor; None in a process without one."""
        fd = os.environ.get(PULSE_FD)
        return None if fd is None else cls(int(fd))

    def send(self, message: Beat | Failure) -> None:
        """Send without waiting; end this process at once if the supervisor is dead.

        If the pipe is full, the message is dropped: the next beat contains all that this one did,
        and a failure is sent again after the restart.
        """
        try:
            os.write(self._fd, to_line(message))
        except BlockingIOError:
            return
        except BrokenPipeError:
            os._exit(1)


def prepare_child(stacks: Path) -> None:
    """Tie this process to its supervisor, and write all stacks to a file on each SIGUSR1.

    To be called first of all, in the process that the supervisor has started.
    """
    die_with_parent()
    if os.getppid() != int(os.environ[SUPERVISOR_PID]):
        os._exit(1)  # the supervisor died before the kernel was told
    # faulthandler writes in C, in the signal handler, so it works while the GIL is held. The file
    # is appended to: the stacks of the last daemon must not be lost when this one starts.
    file = stacks.open("a", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
