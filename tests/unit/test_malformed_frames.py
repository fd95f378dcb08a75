"""Malformed HTTP on a socket: the server refuses it or hangs up, and answers whoever comes next.

`--all` sends 1000 frames, the gate 100.
"""

import socket
from random import Random

import anyio
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from support.malformed import VALUES, as_bytes, damaged

from arcd.daemon import server

pytestmark = pytest.mark.anyio

SECONDS = 60
"""For all frames of a test."""

BODY = b'{"name": "x", "tasks": {}}'
FRAMES = (
    b"GET /jobs/1 HTTP/1.1\r\nHost: arcd\r\n\r\n",
    b"GET /jobs/1/events?after=3&brief=1 HTTP/1.1\r\nHost: arcd\r\nAccept: */*\r\n\r\n",
    b"POST /jobs HTTP/1.1\r\nHost: arcd\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    b"POST /jobs HTTP/1.1\r\nHost: arcd\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
)
ASK = b"GET /health HTTP/1.1\r\nHost: arcd\r\nConnection: close\r\n\r\n"


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body, whatever was asked, and answers."""
    message = await receive()
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
    headers = [(b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def malformed(random: Random) -> bytes:
    """A frame with one thing in it broken, or two, or with a header of a wild value."""
    frame = random.choice(FRAMES)
    kind = random.random()
    if kind < 0.2:
        line, rest = frame.split(b"\r\n", 1)
        value = as_bytes(random.choice(VALUES))[:100_000]
        names = (b"Content-Length", b"Host", b"Transfer-Encoding", b"Expect", value[:50], b"")
        return line + b"\r\n" + random.choice(names) + b": " + value + b"\r\n" + rest
    frame = damaged(random, frame)
    return damaged(random, frame) if kind < 0.5 else frame


async def answer_to(port: int, frame: bytes) -> bytes:
    """All that comes back until the server hangs up."""
    found = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        try:
            await stream.send(frame)
            await stream.send_eof()
            async for piece in stream:
                found += piece
        except (anyio.BrokenResourceError, OSError):
            pass  # it has hung up before it had read all
    return found


async def check_all(app: ASGIApp, random: Random, count: int) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    http = server.server_of(app)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(http.serve, [listening])
            for number in range(count):
                frame = malformed(random)
                answer = await answer_to(port, frame)
                assert b"HTTP/1.1 5" not in answer, f"frame {number}: {frame[:2000]!r}: {answer!r}"
                if number % 10 == 0:
                    assert b"200 OK" in await answer_to(port, ASK), f"frame {number}"
            http.should_exit = True


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.full)])
async def test_whatever_comes_the_next_one_is_served(
    count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    await check_all(hello, Random(count), count)
    assert "Traceback" not in capfd.readouterr().err
