"""What the daemon tells its supervisor over a pipe, and how the daemon is tied to it.

One JSON document a line: a beat (is it ready, how far is each lane) or a failure that a restart
would not mend. The daemon's side is here too: the pulse that sends, and what a child process does
first of all. Knows nothing of what a lane does, and nothing of when silence is too long.
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
"""Environment variable: the file descriptor on which the daemon tells how it is."""

SUPERVISOR_PID = "ARCD_SUPERVISOR_PID"
"""Environment variable: the pid of the supervisor that started the daemon."""

LONGEST_MESSAGE = 600
"""Characters of a failure's message that are sent: at most 6 bytes each in JSON, so that a line
stays below the 4096 bytes (PIPE_BUF) that a pipe takes whole or not at all."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Whether a lane has a step to do, and how many it has done."""

    busy: bool
    steps: int


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life."""

    ready: bool
    engine: Activity
    trainer: Activity


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that a restart would not mend; the daemon ends after it."""

    message: str
    exit_code: int


def to_line(message: Beat | Failure) -> bytes:
    """The message as one line of JSON; a failure's message is cut to LONGEST_MESSAGE."""
    fields = asdict(message)
    if isinstance(message, Failure):
        fields["message"] = message.message[:LONGEST_MESSAGE]
    return json.dumps(fields, ensure_ascii=False).encode(errors="replace") + b"\n"


def from_line(line: bytes) -> Beat | Failure | None:
    """The message of one line; None if the line is torn or is not of this kind."""
    try:
        fields = json.loads(line)
        return _failure(fields) if "message" in fields else _beat(fields)
    except (ValueError, KeyError, TypeError):
        return None


def _failure(fields: dict[str, Any]) -> Failure:
    return Failure(_typed(fields["message"], str), _typed(fields["exit_code"], int))


def _beat(fields: dict[str, Any]) -> Beat:
    engine, trainer = _activity(fields["engine"]), _activity(fields["trainer"])
    return Beat(_typed(fields["ready"], bool), engine, trainer)


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
        # Else a program that the daemon starts could keep the pipe open after its end.
        os.set_inheritable(fd, False)
        self._fd = fd

    @classmethod
    def from_environment(cls) -> Self | None:
        """The pulse that the supervisor asked for; None in a process that has no supervisor."""
        fd = os.environ.get(PULSE_FD)
        return None if fd is None else cls(int(fd))

    def send(self, message: Beat | Failure) -> None:
        """Send without ever waiting; end this process at once if the supervisor is gone.

        A full pipe means that the supervisor sleeps: the message is dropped. The next beat says
        all that this one did, and a failure comes again after the restart.
        """
        try:
            os.write(self._fd, to_line(message))
        except BlockingIOError:
            return
        except BrokenPipeError:
            os._exit(1)


def prepare_child(stacks: Path) -> None:
    """Tie this process to its supervisor; write all stacks to a file whenever SIGUSR1 comes.

    To be called first of all, by the process that the supervisor itself has started.
    """
    die_with_parent()
    if os.getppid() != int(os.environ[SUPERVISOR_PID]):
        os._exit(1)  # the supervisor was gone before the kernel was asked
    # Written in C and by the signal's own thread, so that it works while the GIL is held; open for
    # good, and appended to, because the stacks of the last life must outlast the start of this one.
    file = stacks.open("a", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
