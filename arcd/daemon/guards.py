"""What every request has to pass, and how a refusal is told: one line of JSON, whatever it is.

Knows nothing of routes.
"""

import hmac

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arcd.daemon.schema import MAX_BODY, Problem
from arcd.errors import BadInput, BadJob, NoJob, in_one_line

MOST_DIGITS = 18
"""Of a length that is announced; Python refuses to read numbers of more than 4300."""


async def explain(request: Request, error: Exception) -> JSONResponse:
    """An error that arcd can explain."""
    status = 500
    match error:
        case NoJob():
            status = 404
        case BadJob():
            status = 409
        case BadInput():
            status = 422
    return problem(status, str(error))


async def explain_validation(request: Request, error: Exception) -> JSONResponse:
    """A message that is not as its model says; the first of its errors."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    status = 400 if first["type"] == "json_invalid" else 422
    return problem(status, f"{where}: {first['msg']}" if where else first["msg"])


async def explain_http(request: Request, error: Exception) -> JSONResponse:
    """An error of the framework, or of a route in its words."""
    assert isinstance(error, HTTPException)
    answer = problem(error.status_code, error.detail)
    answer.headers.update(error.headers or {})
    return answer


def problem(status: int, error: str) -> JSONResponse:
    """The answer that refuses a request."""
    # What is no text, such as half of a surrogate pair in a path, is told in its digits.
    told = in_one_line(error).encode(errors="backslashreplace").decode()
    return JSONResponse(Problem(error=told).model_dump(), status)


class Guarded:
    """Answers 401 to requests without the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                await problem(401, "the token is missing or wrong")(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Limited:
    """Answers 413 to bodies of more than MAX_BODY bytes; unannounced ones are cut off."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and (len(announced) > MOST_DIGITS or int(announced) > MAX_BODY):
            await problem(413, f"at most {MAX_BODY} bytes are taken")(scope, receive, send)
            return
        read = 0

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                # As if the client had disconnected: no handler reads on.
                return {"type": "http.disconnect"}
            return message

        await self._app(scope, counting, send)
