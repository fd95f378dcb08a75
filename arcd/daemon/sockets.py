"""The sockets that the daemon listens on, and the token that clients by TCP must have.

Knows nothing of what is asked there.
"""

import os
import secrets
import socket
from contextlib import suppress

from arcd.daemon.options import address
from arcd.errors import ArcdError
from arcd.system.home import Home

Socket = socket.socket


def listen_on_unix(home: Home) -> socket.socket:
    """A listening socket in the home that only its owner can reach.

    Called with the home locked: a socket that is there already belongs to a dead daemon. Raises
    ArcdError where the socket's folder is not of this user alone.
    """
    path = home.socket
    if path.parent != home.path:
        path.parent.mkdir(mode=0o700, exist_ok=True)
    home.check_socket()
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(mask)
    listening.listen(128)
    return listening


def listen_on_tcp(host: str, port: int) -> socket.socket:
    """A listening socket at host and port; raises ArcdError where the address cannot be used."""
    try:
        return socket.create_server((host, port), family=_family(host))
    except OSError as error:
        raise ArcdError(f"{address(host, port)}: {error.strerror or error}") from None


def token_in(home: Home) -> str:
    """The token of this home, made at the first call; only its owner may read it.

    Called with the home locked. A file without a token, as a power cut may leave one, is replaced.
    """
    with suppress(FileNotFoundError):
        if found := home.token.read_text().strip():
            return found
    token = secrets.token_urlsafe(32)
    writing = home.token.with_name(".token.tmp")
    writing.unlink(missing_ok=True)
    with open(os.open(writing, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    writing.replace(home.token)
    return token


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
