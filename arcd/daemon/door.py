"""The door of the server: it answers while the store is being read, and lets others wait.

Who is still waiting when the daemon ends is told so, and may come again. Knows nothing of what the
application behind it does.
"""

import asyncio

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arcd.daemon.guards import problem

EARLY = frozenset({"/health", "/stop"})
"""Paths that need no job."""


class Door:
    """An ASGI application before which requests wait until `open` has given it."""

    def __init__(self, early: ASGIApp) -> None:
        """`early` answers the paths of EARLY meanwhile."""
        self._early = early
        self._app: ASGIApp | None = None
        self._opened = anyio.Event()

    def open(self, app: ASGIApp) -> None:
        """From now on `app` answers everything."""
        self._app = app
        self._opened.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answered = False

        async def noticed(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._enter(scope, receive, noticed)
        except asyncio.CancelledError:
            if answered:
                raise
            # Only the end of the server cancels a request, and nothing follows after this.
            await problem(503, "the daemon ends")(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None and scope.get("path") in EARLY:
            await self._early(scope, receive, send)
            return
        await self._opened.wait()
        assert self._app is not None
        await self._app(scope, receive, send)
