"""The client: an arcd daemon from Python, a notebook or the command line.

    from arcd import Client

    client = Client()                                   # the daemon of `arcd serve` in this home
    job = client.submit("tasks.json", settings={"train": {"steps": 30}})
    for record in client.follow(job):
        print(record.event)
    attempts = client.result(job)

Raises NoDaemon where no daemon answers, and the error that the daemon explains where it refuses.
Knows the daemon only by its HTTP API.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from arcd.arc import tasks as taskfiles
from arcd.arc.tasks import Solutions, TaskSet
from arcd.daemon import schema
from arcd.errors import ArcdError, BadInput, BadJob, NoDaemon, NoJob, NotPublished
from arcd.jobs.events import Record
from arcd.jobs.state import FINISHED
from arcd.system.home import Home

TIMEOUT_S = httpx.Timeout(30.0, connect=5.0, read=120.0)
"""Of a request. A stream of events has no read timeout: it may be silent during a whole task."""

NO_DAEMON = "no daemon answers here; start one with: arcd serve"

PIECE_BYTES = 1 << 16
"""Of a request that is sent at once."""

RETRY_S = 0.2
"""Seconds between two attempts to reach a daemon that is being started again."""

RESTART_TIMEOUT_S = 120.0
"""Seconds in which a daemon that was lost while a job was followed must answer again."""


class _Socket(httpx.HTTPTransport):
    """The way to the daemon of a home, if nobody else can have made its socket."""

    def __init__(self, home: Home) -> None:
        super().__init__(uds=str(home.socket))
        self._home = home

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self._home.check_socket()
        return super().handle_request(request)


class Client:
    """A daemon to talk to; may be used in a `with` block."""

    def __init__(
        self,
        home: Path | str | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
    ) -> None:
        """The daemon of a home folder (by default ARCD_HOME's or the user's), or one by TCP.

        `url` is like http://127.0.0.1:8710, `token` what stands in the file `token` of its home;
        without a home they may also come from ARCD_URL and ARCD_TOKEN.
        """
        if home is None:
            url, token = url or os.environ.get("ARCD_URL"), token or os.environ.get("ARCD_TOKEN")
        place = Home.at(Path(home) if home is not None else None)
        self._where = url or str(place.path)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = None if url else _Socket(place)
        # Never through a proxy, whatever the environment says.
        self._http = httpx.Client(
            base_url=url or "http://arcd",
            transport=transport,
            headers=headers,
            timeout=TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def submit(
        self,
        tasks: str | Path | TaskSet,
        *,
        name: str | None = None,
        priority: int = 10,
        settings: Mapping[str, Any] | None = None,
        solutions: str | Path | None = None,
        out: str | Path | None = None,
        skip_invalid: bool = False,
    ) -> int:
        """Submit a job and return its number; see `arcd submit --help`.

        `settings` is a tree like {"train": {"steps": 30}}. Raises BadInput, naming file, task and
        reason, before anything is stored.
        """
        if isinstance(tasks, TaskSet):
            found = tasks
        else:
            found = taskfiles.load(str(tasks), skip_invalid=skip_invalid)
        if solutions is not None:
            found = found.with_solutions(Path(solutions))
        order = schema.order(
            found,
            name=name,
            priority=priority,
            settings=settings,
            outs=(Path(out),) if out is not None else (),
        )
        return int(self.send(order)["job"])

    def send(self, order: schema.Order) -> dict[str, Any]:
        """Submit an order as it is; the job as `job` gives it."""
        # Without what is as it always was: a daemon of an earlier version refuses what is new.
        return self._post("/jobs", order.model_dump_json(exclude_defaults=True))

    def health(self) -> dict[str, Any]:
        """The daemon: state (loading, ready or stopping), pid, base, device, ledger."""
        return dict(self._get("/health"))

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, oldest first, as `job` gives each."""
        return list(self._get("/jobs"))

    def job(self, job: int) -> dict[str, Any]:
        """A job: state, name, priority, and how many tasks are in which phase.

        `unpublished` has, by path, why a file does not have its last answers.
        """
        return dict(self._get(f"/jobs/{job}"))

    def forecast(self, job: int, *, detail: bool = True) -> dict[str, Any]:
        """Seconds that the rest of a job should take.

        In detail also those of each task, and how good such predictions were.
        """
        return dict(self._get(f"/jobs/{job}/forecast?detail={str(detail).lower()}"))

    def solutions(self, job: int) -> Solutions:
        """The solutions of its tasks that are known, by task, as the grids of its tests."""
        known = self._get(f"/jobs/{job}/solutions")
        return taskfiles.solutions_of(f"job {job}", known)

    def result(self, job: int) -> dict[str, Any]:
        """The submission, complete and valid at any time, in Kaggle's format."""
        return dict(json.loads(self.result_text(job)))

    def result_text(self, job: int) -> str:
        """The same, as the JSON text that it is kept as."""
        return self._ask(lambda: self._http.get(f"/jobs/{job}/result")).text

    def follow(
        self,
        job: int,
        after: int = 0,
        *,
        brief: bool = False,
        rest: Callable[[float], None] = time.sleep,
    ) -> Iterator[Record]:
        """Each of the job's records after number `after` once, until it is done or cancelled.

        In brief, steps and samples of tasks that were answered before the call are left out.
        Goes on after the death of a daemon that is started again within RESTART_TIMEOUT_S; `rest`
        waits between two attempts to reach it, or raises to give up. At the end the files of the
        job have its submission; raises NotPublished, which says why, where one has not.
        """
        lost: float | None = None
        while True:
            try:
                for record in self._stream(job, after, brief=brief):
                    after, lost = record.seq, None
                    yield record
                status = self.job(job)
                if status["state"] in FINISHED:
                    check_published(status)
                    return
            except (httpx.TransportError, NoDaemon) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > RESTART_TIMEOUT_S:
                    raise NoDaemon(f"{self._where}: the daemon is gone: {error}") from None
            rest(RETRY_S)

    def pause(self, job: int) -> dict[str, Any]:
        """Begin no more tasks of the job; those in flight are finished."""
        return self._post(f"/jobs/{job}/pause")

    def resume(self, job: int) -> dict[str, Any]:
        """End a pause."""
        return self._post(f"/jobs/{job}/resume")

    def cancel(self, job: int) -> dict[str, Any]:
        """End the job: its waiting tasks stay unanswered."""
        return self._post(f"/jobs/{job}/cancel")

    def retry(self, job: int) -> dict[str, Any]:
        """Do the job's failed and doubtful tasks once more."""
        return self._post(f"/jobs/{job}/retry")

    def forget(self, job: int) -> dict[str, Any]:
        """Delete all that is kept of a finished job; the job as it was."""
        return dict(self._answer(lambda: self._http.delete(f"/jobs/{job}")))

    def stop(self) -> None:
        """End the daemon in order."""
        self._post("/stop")

    def _stream(self, job: int, after: int, *, brief: bool) -> Iterator[Record]:
        silent = httpx.Timeout(TIMEOUT_S.connect, read=None)
        path = f"/jobs/{job}/events"
        asked = {"after": str(after), "brief": str(brief).lower()}
        with self._http.stream("GET", path, params=asked, timeout=silent) as response:
            if response.is_error:
                response.read()
                _raise(response)
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield Record.from_json(json.loads(line.removeprefix("data: ")))

    def _get(self, path: str) -> Any:
        return self._answer(lambda: self._http.get(path))

    def _post(self, path: str, body: str | None = None) -> dict[str, Any]:
        data = (body or "").encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        post = partial(self._http.post, path, content=_pieces(data), headers=headers)
        return dict(self._answer(post))

    def _answer(self, ask: Callable[[], httpx.Response]) -> Any:
        return self._ask(ask).json()

    def _ask(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            response = ask()
        except httpx.TimeoutException:
            raise NoDaemon(f"{self._where}: the daemon does not answer in time") from None
        except httpx.TransportError:
            raise NoDaemon(f"{self._where}: {NO_DAEMON}") from None
        if response.is_error:
            _raise(response)
        return response


def check_published(status: Mapping[str, Any]) -> None:
    """Raise NotPublished, in one line, if a file does not have the last answers of a job."""
    # A daemon of an earlier version does not tell.
    failed = status.get("unpublished", {})
    if failed:
        lines = "; ".join(f"{path}: {reason}" for path, reason in failed.items())
        raise NotPublished(f"job {status['job']}: {lines}")


def _pieces(data: bytes) -> Iterator[bytes]:
    """In one piece, httpx would copy what is left of a body each time that a part was sent."""
    return (data[i : i + PIECE_BYTES] for i in range(0, len(data), PIECE_BYTES))


def _raise(response: httpx.Response) -> None:
    """The error that the daemon explained."""
    kinds: dict[int, type[ArcdError]] = {
        404: NoJob,
        409: BadJob,
        422: BadInput,
        400: BadInput,
        503: NoDaemon,
    }
    try:
        text = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the daemon answered {response.status_code}"
    raise kinds.get(response.status_code, ArcdError)(text)
