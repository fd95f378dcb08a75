"""Connections that ask for nothing: closed after a while, and few enough that others get in."""

import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest
from starlette.types import Receive, Scope, Send

from arcd.daemon import connections, server

pytestmark = pytest.mark.anyio

SECONDS = 30
"""No test may take longer."""

ASK = b"GET / HTTP/1.1\r\nHost: arcd\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: arcd\r\nContent-Length: 9\r\n\r\n"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers when it has the whole body."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


class Place:
    """A server, and connections to it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[anyio.abc.ByteStream] = []

    async def connect(self) -> anyio.abc.ByteStream:
        self._open.append(await anyio.connect_tcp("127.0.0.1", self._port))
        return self._open[-1]

    async def close(self) -> None:
        for each in self._open:
            await anyio.aclose_forcefully(each)


@asynccontextmanager
async def serving() -> AsyncIterator[Place]:
    listening = socket.create_server(("127.0.0.1", 0))
    place = Place(listening.getsockname()[1])
    http = server.server_of(hello)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http.serve, [listening])
            try:
                yield place
            finally:
                with anyio.CancelScope(shield=True):
                    await place.close()
            http.should_exit = True


async def answer(stream: anyio.abc.ByteStream) -> bytes:
    found = b""
    while not found.endswith(b"hello"):
        found += await stream.receive()
    return found


async def is_closed(stream: anyio.abc.ByteStream) -> None:
    """Return when the server has closed it."""
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
        await stream.receive()


async def test_the_one_that_is_silent_for_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
    async with serving() as place:
        silent = [await place.connect() for _ in range(20)]
        asking = await place.connect()
        await asking.send(ASK)
        assert b"200" in await answer(asking)
        for stream in silent[:17]:
            await is_closed(stream)
        # Three silent ones and the one that has asked.
        await silent[-1].send(ASK)
        assert b"200" in await answer(silent[-1])


async def test_requests_under_way_do_not_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 2)
    async with serving() as place:
        busy = [await place.connect() for _ in range(2)]
        for stream in busy:
            await stream.send(POST + b"12345")
            await anyio.wait_all_tasks_blocked()
        await is_closed(await place.connect())
        for stream in busy:
            await stream.send(b"6789")
            assert b"200" in await answer(stream)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:", POST, POST + b"12345"])
async def test_a_request_that_does_not_come_is_not_awaited_for_ever(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(connections, "BODY_TIMEOUT_S", 0.05)
    async with serving() as place:
        stream = await place.connect()
        if begun:
            await stream.send(begun)
        await is_closed(stream)


async def test_a_head_that_drips_is_not_awaited_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.05)
    async with serving() as place:
        stream = await place.connect()

        async def drip() -> None:
            while True:
                await stream.send(b"G")
                await anyio.lowlevel.checkpoint()

        with pytest.raises(anyio.BrokenResourceError):
            await drip()


async def test_a_connection_is_used_again_and_an_answer_may_take_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 1)
    async with serving() as place:
        stream = await place.connect()
        for _ in range(3):
            await stream.send(ASK)
            assert b"200" in await answer(stream)


def test_a_server_takes_a_part_of_the_files_that_the_process_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def most(limit: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
        return connections.most_connections()

    assert [most(n) for n in (4, 256, 1024, 1 << 20, resource.RLIM_INFINITY)] == [
        1,
        32,
        128,
        128,
        128,
    ]
