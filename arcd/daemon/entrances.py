"""The entrances: where clients reach the daemon, each with a door that is opened a little later.

Knows nothing of what the application behind a door does.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from arcd.daemon import server, sockets
from arcd.daemon.door import Door
from arcd.daemon.options import Options, address
from arcd.system.home import Home

log = logging.getLogger("arcd.daemon")


@dataclass(frozen=True, slots=True)
class Entrance:
    """A socket with its server; clients that come by TCP must have the token."""

    http: server.Server
    listening: sockets.Socket
    door: Door
    token: str | None


def open_entrances(
    options: Options, home: Home, early: Callable[[str | None], ASGIApp]
) -> list[Entrance]:
    """The home's own socket and, when asked for, one by TCP.

    `early` makes, for a token, what answers until a door is opened.
    """
    found = [_entrance(sockets.listen_on_unix(home), early, None)]
    if options.host is not None:
        listening = sockets.listen_on_tcp(options.host, options.port)
        log.info("listening on %s", address(*listening.getsockname()[:2]))
        found.append(_entrance(listening, early, sockets.token_in(home)))
    return found


def _entrance(
    listening: sockets.Socket, early: Callable[[str | None], ASGIApp], token: str | None
) -> Entrance:
    door = Door(early(token))
    return Entrance(server.server_of(door), listening, door, token)
