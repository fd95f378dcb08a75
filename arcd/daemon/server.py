"""The server: the service over HTTP, on a Unix socket or, when asked for, by TCP with a token.

Routes, limits and their OpenAPI document; nothing is decided here. Knows nothing of trainers or
engines.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any, Protocol, cast

import msgspec
import uvicorn
from anyio import to_thread
from fastapi import FastAPI, Query, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from arcd.config import Config
from arcd.daemon import guards
from arcd.daemon.connections import Connections, most_connections
from arcd.daemon.schema import (
    Forecast,
    Health,
    JobNumber,
    Order,
    Problem,
    Status,
    accept,
    read,
)
from arcd.errors import ArcdError, BadInput, BadJob, NoJob
from arcd.jobs.job_table import JobTable
from arcd.jobs.journal import NewJob
from arcd.jobs.service import JobService
from arcd.jobs.state import Job
from arcd.jobs.store import Store
from arcd.version import __version__

Server = uvicorn.Server

Number = Annotated[JobNumber, InPath(description="Number of the job")]
PROBLEMS: dict[int | str, dict[str, object]] = {
    400: {"model": Problem, "description": "The body is not JSON"},
    401: {"model": Problem, "description": "The token is missing or wrong"},
    404: {"model": Problem, "description": "There is no such job"},
    409: {"model": Problem, "description": "This cannot be done with the job"},
    413: {"model": Problem, "description": "The body is too large"},
    422: {"model": Problem, "description": "The input cannot be used"},
}


class Publishing(Protocol):
    """What becomes of the files that have a job's submission."""

    async def settled(self, job: int) -> None:
        """Return when each has the job's last answers, or could not be written with them."""

    def unpublished(self, job: int) -> dict[str, str]:
        """By path, why a file does not have the job's last answers."""


Tell = Callable[[Job], Status]


def application(
    service: JobService,
    config: Config,
    *,
    base: str = "",
    publishing: Publishing,
    check: Callable[[NewJob], None],
    health: Callable[[], Health],
    forecast: Callable[[Job, bool], Forecast],
    stop: Callable[[], None],
    forget: Callable[[int], Awaitable[None]],
    token: str | None = None,
) -> ASGIApp:
    """The daemon's interface; with a token, only for clients that send it.

    `check` refuses, with BadInput, a job that the daemon cannot do.
    """
    app = _empty_application()
    _route_daemon(app, health, stop)

    def tell(job: Job) -> Status:
        return Status(**job.to_json(), unpublished=publishing.unpublished(job.id))

    def job_in(body: bytearray) -> tuple[Order, NewJob]:
        order = _order_in(body)
        if order.outs and token is not None:
            raise BadJob("outs: only a client on this machine may name files")
        job = accept(order, config, base)
        check(job)
        _ = job.digest  # kept by the job: of a large one it takes a third of a second
        return order, job

    @app.post("/jobs", status_code=201, openapi_extra=_TAKES_ORDER)
    async def post_job(request: Request) -> Status:
        """Take a job on."""
        # In a thread: reading 20 000 tasks takes seconds.
        try:
            order, job = await to_thread.run_sync(job_in, await _body(request))
        except RecursionError:
            raise BadInput("nested too deeply") from None
        if order.take_up == "never":
            return tell(await service.submit(job))
        return tell(await service.take_up(job, done=order.take_up == "done"))

    _route_reading(app, service, publishing, forecast, tell)
    _route_control(app, service, tell)
    _route_forgetting(app, service, forget, tell)
    return _protected(app, token)


def early_application(
    health: Callable[[], Health], stop: Callable[[], None], token: str | None
) -> ASGIApp:
    """The part of the interface that needs no job: it answers while the store is being read."""
    app = _empty_application()
    _route_daemon(app, health, stop)
    return _protected(app, token)


def _empty_application() -> FastAPI:
    app = _Application(title="arcd", version=__version__, responses=PROBLEMS, redoc_url=None)
    app.add_exception_handler(ArcdError, guards.explain)
    app.add_exception_handler(RequestValidationError, guards.explain_validation)
    app.add_exception_handler(HTTPException, guards.explain_http)
    return app


async def _body(request: Request) -> bytearray:
    """The body of a request; in one piece of memory, for it may be large."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
    except ClientDisconnect:
        raise HTTPException(400, "the body is cut off or too large") from None
    return body


def _order_in(body: bytearray) -> Order:
    """The order in a body; raises what explains itself to the client."""
    try:
        return read(body)
    except msgspec.ValidationError as error:
        raise BadInput(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"not JSON: {error}") from None
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


_TAKES_ORDER = {
    "requestBody": {
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
        "required": True,
    }
}


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """With the order: its route reads the body itself, so FastAPI does not know of it."""
        document = super().openapi()
        document["components"]["schemas"].setdefault("Order", Order.model_json_schema())
        return document


def _protected(app: FastAPI, token: str | None) -> ASGIApp:
    guarded: ASGIApp = guards.Limited(app)
    return guards.Guarded(guarded, token) if token is not None else guarded


def _route_daemon(app: FastAPI, health: Callable[[], Health], stop: Callable[[], None]) -> None:
    """What concerns the daemon itself."""

    @app.get("/health")
    async def get_health() -> Health:
        """The daemon and how it is."""
        return health()

    @app.post("/stop", status_code=202)
    async def post_stop() -> Health:
        """End in order: finish or set aside the tasks in flight, write the submissions."""
        stop()
        return health()


def _route_reading(
    app: FastAPI,
    service: JobService,
    publishing: Publishing,
    forecast: Callable[[Job, bool], Forecast],
    tell: Tell,
) -> None:
    """What can be read of jobs."""

    @app.get("/jobs")
    async def get_jobs() -> list[Status]:
        """All jobs, oldest first."""
        return [tell(job) for job in service.state.jobs.values()]

    @app.get("/jobs/{job}")
    async def get_job(job: Number) -> Status:
        """One job."""
        return tell(service.job(job))

    @app.get("/jobs/{job}/forecast")
    async def get_forecast(
        job: Number,
        detail: Annotated[bool, Query(description="By task, with how good forecasts were")] = True,
    ) -> Forecast:
        """Seconds that the rest of a job should take."""
        return forecast(service.job(job), detail)

    @app.get("/jobs/{job}/solutions", response_model=dict[str, list[list[list[int]]]])
    async def get_solutions(job: Number) -> Response:
        """The solutions of its tasks that are known, in Kaggle's format."""
        return await _stored(service, job, JobTable.solutions)

    @app.get("/jobs/{job}/result", response_model=dict[str, list[dict[str, list[list[int]]]]])
    async def get_result(job: Number) -> Response:
        """The job's submission, complete and valid at any time."""
        return await _stored(service, job, JobTable.submission)

    @app.get("/jobs/{job}/events", response_class=StreamingResponse)
    async def get_events(
        job: Number,
        after: Annotated[int, Query(ge=0, le=2**53, description="Number of the last one seen")] = 0,
        brief: Annotated[
            bool,
            Query(description="Leave out steps and samples of tasks that were answered before"),
        ] = False,
    ) -> StreamingResponse:
        """The job's events as server-sent events, each a record as JSON.

        Ends with the job, when its submission is in its files or could not be written there.
        """
        service.job(job)
        stream = _stream(service, publishing, job, after, brief)
        return StreamingResponse(stream, media_type="text/event-stream")


async def _stored(service: JobService, job: int, read: Callable[[JobTable, int], str]) -> Response:
    """What the store has of a job as a JSON text, read in a thread: it may be many MB."""

    def text() -> str:
        home = service.store.path.parent
        with closing(Store(home, "read")) as store, store.database.one_moment():
            if not store.jobs.has(job):
                raise NoJob(f"job {job}: there is no such job")
            return read(store.jobs, job)

    return Response(await to_thread.run_sync(text), media_type="application/json")


def _route_control(app: FastAPI, service: JobService, tell: Tell) -> None:
    """What changes a job."""

    @app.post("/jobs/{job}/pause")
    async def post_pause(job: Number) -> Status:
        """Begin no more of its tasks."""
        return tell(service.pause(job))

    @app.post("/jobs/{job}/resume")
    async def post_resume(job: Number) -> Status:
        """End a pause."""
        return tell(service.resume(job))

    @app.post("/jobs/{job}/cancel")
    async def post_cancel(job: Number) -> Status:
        """End the job: its waiting tasks stay unanswered."""
        return tell(service.cancel(job))

    @app.post("/jobs/{job}/retry")
    async def post_retry(job: Number) -> Status:
        """Do its failed and doubtful tasks once more."""
        return tell(service.retry(job))


def _route_forgetting(
    app: FastAPI, service: JobService, forget: Callable[[int], Awaitable[None]], tell: Tell
) -> None:
    """What ends all knowledge of a job."""

    @app.delete("/jobs/{job}")
    async def delete_job(job: Number) -> Status:
        """Delete the records, samples and files of a finished job; answers with what it was."""
        before = tell(service.job(job))
        await forget(job)
        return before


def server_of(app: ASGIApp) -> uvicorn.Server:
    """A server to be awaited with `serve([socket])`; it ends once its `should_exit` is set."""
    most = most_connections()
    settings = uvicorn.Config(
        app,
        # Not "warning": any client can cause those.
        log_level="error",
        http=cast(type[asyncio.Protocol], Connections(most)),
        ws="none",
        backlog=most,
        lifespan="off",
        access_log=False,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    return _Uvicorn(settings)


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the daemon, which handles them."""
        yield


async def _stream(
    service: JobService, publishing: Publishing, job: int, after: int, brief: bool
) -> AsyncIterator[str]:
    async for lines in service.follow(job, after, brief=brief):
        yield "".join(f"id: {line.seq}\ndata: {line.text}\n\n" for line in lines)
    if job in service.state.jobs and service.job(job).finished:
        # Who waits for the job reads its files next.
        await publishing.settled(job)
