"""The door: what needs no job is answered at once, the rest when the store was read."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from support import virtual

from arcd.daemon.door import Door

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


def told(heard: list[str], name: str) -> Callable[[Any, Any, Any], Awaitable[None]]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append(f"{name} {scope['path']}")

    return app


async def test_who_waits_when_the_server_ends_is_told_so() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    door = Door(told([], "early"))
    scope: Any = {"type": "http", "path": "/jobs"}
    waiting = asyncio.ensure_future(door(scope, None, send))  # type: ignore[arg-type]
    await anyio.sleep(1)
    waiting.cancel()
    await waiting
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"]) == {"error": "the daemon ends"}


async def test_requests_wait_for_the_application_but_health_does_not() -> None:
    heard: list[str] = []
    door = Door(told(heard, "early"))

    async def ask(path: str) -> None:
        await door({"type": "http", "path": path}, None, None)  # type: ignore[arg-type]

    async with anyio.create_task_group() as asking:
        asking.start_soon(ask, "/jobs")
        await anyio.sleep(1)
        await ask("/health")
        assert heard == ["early /health"]
        door.open(told(heard, "app"))
    await ask("/health")
    assert heard == ["early /health", "app /jobs", "app /health"]
