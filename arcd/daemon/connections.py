"""The connections of a server: how many there may be, and how long one may take to ask.

Whoever reaches the port can open connections, also without the token, and each takes one of the
process's files. Where there are too many, the one that has been silent for longest makes room.
Knows nothing of what is asked.
"""

import asyncio
import resource
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MOST_CONNECTIONS = 128
"""Connections of one server at most."""

FILES_EACH = 8
"""A server has at most one connection for so many files that the process may have open: the store,
adapters and models need the others."""

HEAD_TIMEOUT_S = 10.0
"""Seconds in which a client must have sent the head of a request."""

BODY_TIMEOUT_S = 60.0
"""Seconds in which the next part of a body must arrive."""


def most_connections() -> int:
    """Connections that one server of this process may have; as many may wait to be accepted."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(1, min(MOST_CONNECTIONS, files // FILES_EACH))


class Connections:
    """Makes the protocols of one server, and knows which of them wait for their clients."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._silent: dict[_Connection, None] = {}
        """Those without a request under way, the one that is silent for longest first."""

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> asyncio.Protocol:
        """A protocol; uvicorn calls this for each connection as if it were a class."""
        return _Connection(self, config, server_state, app_state, _loop)

    def admit(self, new: "_Connection") -> None:
        """Close a connection if there are too many with this one."""
        if len(new.connections) > self._most:
            sent = (old for old in self._silent if not old.transport.get_write_buffer_size())
            closed = next(sent, new)
            closed.transport.abort()
            # At once: several may come before the event loop tells that it is lost.
            closed.connections.discard(closed)
            self.note(closed, silent=False)

    def note(self, connection: "_Connection", *, silent: bool) -> None:
        """Remember whether a connection has a request under way."""
        if silent:
            self._silent.setdefault(connection)
        else:
            self._silent.pop(connection, None)


class _Connection(H11Protocol):
    """HTTP by h11, on which nobody can wait for ever."""

    def __init__(self, all_: Connections, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._all = all_
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._all.admit(self)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._all.note(self, silent=False)
        self._stop_timer()

    def _wait(self) -> None:
        """Give the client as long as it may take for what must come next."""
        asked = self.cycle is not None and not self.cycle.response_complete
        self._all.note(self, silent=not asked)
        if asked:
            self._stop_timer()
        if asked and self.cycle.more_body:
            self._timer = self.loop.call_later(BODY_TIMEOUT_S, self._end)
        elif not asked and self._timer is None:
            # Not anew with each byte: a head that drips would take for ever.
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end)

    def _end(self) -> None:
        """Close the connection, unless it is the application that does not read on."""
        self._timer = None
        if self.flow.read_paused:
            self._wait()
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
