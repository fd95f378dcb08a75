"""Requests to an ASGI application in the same event loop, without a server or a client between.

What is asked is handed over as it is, however malformed. Knows nothing of what the application
does.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.types import ASGIApp, Message

Headers = Iterable[tuple[bytes, bytes]]

JSON = ((b"content-type", b"application/json"),)
"""The headers of a body that is JSON."""


@dataclass(frozen=True)
class Answer:
    """What the application answered."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    def json(self) -> Any:
        """The document in the body."""
        return json.loads(self.body)


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    *,
    query: bytes = b"",
    headers: Headers = (),
    body: bytes = b"",
    hear: Callable[[bytes], None] = lambda _: None,
) -> Answer:
    """Send a request and wait for the whole answer; `hear` gets each piece of its body at once.

    What the application raises comes out.
    """
    start: dict[str, Any] = {}
    pieces: list[bytes] = []
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if rest:
            return rest.pop()
        await anyio.Event().wait()  # the client stays
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        elif piece := message.get("body", b""):
            pieces.append(piece)
            hear(piece)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": [(b"host", b"arcd"), *headers],
        "client": None,
        "server": ("arcd", 80),
        "state": {},
    }
    await app(scope, receive, send)
    return Answer(start["status"], dict(start["headers"]), b"".join(pieces))
