"""The server over its own OpenAPI document, fuzzed; tokens, limits, sockets and streams."""

import hashlib
import json
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    positive_data_acceptance,
)
from starlette.testclient import TestClient
from support.small import candidate, task
from support.stores import take_on

from arcd.arc.selection import verdict
from arcd.arc.tasks import load
from arcd.config import resolve
from arcd.daemon import guards, schema, server
from arcd.daemon.schema import Forecast, Health, Prediction
from arcd.jobs import events, following, journal
from arcd.jobs.job_table import JobTable
from arcd.jobs.journal import new_job
from arcd.jobs.service import JobService
from arcd.jobs.state import Job, JobState
from arcd.jobs.store import Store
from arcd.scheduling.forecast import COLD

if TYPE_CHECKING:
    # What the test client answers with; at run time it takes httpx where there is no httpx2.
    from httpx2 import Response

pytestmark = [
    pytest.mark.filterwarnings("default"),
    # As for all tests: see pyproject.toml.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

TASKS = load("arc1-train:2")


def health() -> Health:
    return Health(
        state="ready",
        pid=1,
        version="0",
        base="base",
        device="cpu",
        dtype="float32",
        jobs=0,
        rates=COLD.to_json(),
        ledger={},
    )


def forecast(job: Job, detail: bool) -> Forecast:
    tasks = {name: Prediction(train=1.0, infer=2.0) for name in job.tasks}
    return Forecast(job=job.id, seconds=3.0, tasks=tasks, accuracy=job.accuracy())


class Published:
    """As if all files were written, but for those that a test puts here."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.waited: list[int] = []

    async def settled(self, job: int) -> None:
        self.waited.append(job)

    def unpublished(self, job: int) -> dict[str, str]:
        return self.failed


class Bench:
    """An application on a service without a scheduler: nothing ever happens to a job by itself."""

    def __init__(self, home: Path, token: str | None = None) -> None:
        # The test client runs each request in a thread of its own, one after the other.
        connect = partial(sqlite3.connect, check_same_thread=False)
        with patch("arcd.jobs.database.sqlite3.connect", connect):
            self.service = JobService(Store(home))
        self.stopped = 0
        self.published = Published()
        self.app = server.application(
            self.service,
            resolve(),
            publishing=self.published,
            check=lambda _: None,
            health=health,
            forecast=forecast,
            stop=self._stop,
            forget=self.service.forget,
            token=token,
        )
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def _stop(self) -> None:
        self.stopped += 1

    def order(self, **changes: object) -> dict[str, object]:
        return {**schema.order(TASKS).model_dump(mode="json"), **changes}

    def submit(self, **changes: object) -> "Response":
        # The test client's own JSON has no lone surrogates.
        body, headers = json.dumps(self.order(**changes)), {"Content-Type": "application/json"}
        return self.client.post("/jobs", content=body, headers=headers)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.service.store.close()


def fuzzed() -> Bench:
    """Jobs 1 and 2 are there, and streams end where the records do."""
    found = Bench(Path(tempfile.mkdtemp(prefix="arcd-fuzz-")))
    for _ in range(2):
        take_on(found.service, new_job("two", 10, TASKS, resolve()))
    found.service.close()
    return found


api = schemathesis.openapi.from_asgi("/openapi.json", fuzzed().app)


# Starlette tells each route's own methods in `Allow`, where two routes share a path; and no schema
# can say which grids make a task.
LENIENT = [allow_header_conformance, positive_data_acceptance]


@api.parametrize()
@settings(derandomize=True, max_examples=30, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_the_answer_is_as_documented(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(excluded_checks=LENIENT)


def test_a_job_is_taken_on_and_can_be_asked_for(bench: Bench) -> None:
    answer = bench.submit(name="mine", priority=3, settings={"train": {"steps": 5}})
    assert answer.status_code == 201
    status = answer.json()
    assert (status["job"], status["name"], status["state"]) == (1, "mine", "queued")
    assert bench.client.get("/jobs/1").json() == status
    assert bench.client.get("/jobs").json() == [status]
    assert bench.service.store.jobs.config(1).train.steps == 5
    result = bench.client.get("/jobs/1/result").json()
    assert set(result) == {task.id for task in TASKS.tasks}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tasks": {"t": {"train": [], "test": []}}}, "task t: 'train' is missing or empty"),
        ({"tasks": {"t": [[1]]}}, "task t: not an object"),
        ({"tasks": {}}, "tasks"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"priority": 0}, "priority"),
        ({"priority": True}, "priority"),
        ({"settings": {"train": {"stepz": 1}}}, "train.stepz: unknown key"),
        ({"settings": {"engine": {"max_loras": 4}}}, "engine: settled when the daemon starts"),
        ({"settings": {"train": {"rank": 64}}}, "train.rank: at most 16 in this daemon"),
        ({"settings": {"train": 3}}, "train"),
        ({"solutions": {"00d62c1b": [[[10]]]}}, "not a colour"),
        ({"outs": ["relative.json"]}, "relative.json: the submission cannot be written there"),
        ({"outs": ["/nowhere/at/all.json"]}, "cannot be written there"),
        ({"outs": ["/tmp/a\0b.json"]}, "outs.0: Value error, a path with characters"),
        ({"outs": ["/tmp/a\nb.json"]}, "outs.0: Value error, a path with characters"),
        ({"outs": ["/tmp/a\ud800b.json"]}, "not JSON: "),
        ({"outs": [f"/tmp/{'x' * 256}"]}, "File name too long"),
        ({"outs": ["/tmp/" + "x/" * 3000]}, "File name too long"),
        ({"outs": ["/tmp"]}, "/tmp: the submission cannot be written there: Is a directory"),
        ({"outs": ["/dev/null"]}, "it is not a regular file"),
        ({"outs": ["/dev/stdout"]}, "it names an open file of a process"),
        ({"outs": ["/proc/self/fd/1"]}, "it names an open file of a process"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_order_is_refused_in_one_line_and_leaves_nothing(
    bench: Bench, changes: dict[str, object], reason: str
) -> None:
    answer = bench.submit(**changes)
    assert answer.status_code in (400, 409, 422)
    assert reason in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert bench.client.get("/jobs").json() == []


def test_a_start_is_in_the_folder_of_who_asks(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    monkeypatch.chdir("/usr")
    settings = {"train": {"start": "lib/adapter", "steps": 3}}
    order = schema.order(TASKS, settings=settings)
    assert order.settings == {"train": {"start": "/usr/lib/adapter", "steps": 3}}
    answer = bench.submit(settings={"train": {"start": "lib/adapter"}})
    assert answer.status_code == 422
    assert answer.json()["error"] == "train.start: lib/adapter: not an absolute path"


def test_a_reason_with_what_is_no_text_can_be_sent(bench: Bench) -> None:
    body = json.dumps(bench.order(settings={"train": {"\ud800": 1}}))
    answer = bench.client.post("/jobs", content=body)
    assert answer.status_code in (400, 422)


def test_what_is_skipped_is_blank_in_the_result(bench: Bench) -> None:
    assert bench.submit(skipped={"bad [/b]": 2}).status_code == 201
    result = bench.client.get("/jobs/1/result").json()
    blank = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert result.keys() == {"bad [/b]", *(task.id for task in TASKS.tasks)}
    assert result["bad [/b]"] == [blank] * 2
    for wrong in ({"x": 0}, {"x": 201}, {"x": True}, {"x": None}, {TASKS.tasks[0].id: 1}):
        assert bench.submit(skipped=wrong).status_code == 422


def test_a_job_that_is_taken_up_is_written_where_it_is_asked_for(
    bench: Bench, tmp_path: Path
) -> None:
    one, other = str(tmp_path / "one.json"), str(tmp_path / "other.json")

    def outs() -> list[str]:
        return [str(out) for out in bench.service.store.jobs.outs(1)]

    assert bench.submit(outs=[one]).json()["job"] == 1
    assert bench.submit(outs=[other], take_up="unfinished").json()["job"] == 1
    assert outs() == [other]
    # A sweep that finds a job of somebody else's leaves his file to him.
    assert bench.submit(take_up="done").json()["job"] == 1
    assert outs() == [other]
    assert bench.submit(take_up="unfinished").json()["job"] == 1
    assert outs() == []
    budget = {"budget": {"seconds": 60}}
    assert bench.submit(take_up="unfinished", settings=budget).json()["job"] == 2


def test_a_name_is_a_label_and_never_a_path(bench: Bench, tmp_path: Path) -> None:
    assert bench.submit(name="../../etc/passwd").status_code == 201
    assert {path.name for path in tmp_path.iterdir()} <= {"arcd.db", "arcd.db-wal", "arcd.db-shm"}


def test_what_was_unfinished_is_taken_up_if_it_asks_for_the_same(bench: Bench) -> None:
    assert bench.submit(take_up="unfinished").json()["job"] == 1
    assert bench.submit(take_up="unfinished", name="other name").json()["job"] == 1
    assert bench.submit(take_up="unfinished", settings={"train": {"steps": 5}}).json()["job"] == 2
    assert bench.submit().json()["job"] == 3
    bench.client.post("/jobs/1/cancel")
    bench.client.post("/jobs/3/cancel")
    assert bench.submit(take_up="unfinished").json()["job"] == 4


def test_what_is_done_is_not_done_again_if_that_will_do(bench: Bench) -> None:
    (job,) = (bench.service.state.jobs[bench.submit().json()["job"]],)
    for name in job.tasks:
        bench.service.emit(job.id, events.Started(name, 1, 1))
        sample = candidate(task(name))
        bench.service.emit(job.id, events.Answered(name, verdict(name, 1, [sample], 3)))
    assert job.state is JobState.done
    assert bench.submit(take_up="done").json()["job"] == job.id
    assert bench.submit(take_up="done", settings={"train": {"steps": 5}}).json()["job"] == 2
    assert bench.submit(take_up="unfinished").json()["job"] == 3


def test_a_job_that_is_not_there_is_not_found(bench: Bench) -> None:
    for method, path in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("POST", "/cancel")):
        answer = bench.client.request(method, f"/jobs/7{path}")
        assert (answer.status_code, answer.json()) == (
            404,
            {"error": "job 7: there is no such job"},
        )


def test_what_cannot_be_done_is_a_conflict(bench: Bench) -> None:
    bench.submit()
    assert bench.client.post("/jobs/1/retry").status_code == 409
    assert bench.client.post("/jobs/1/cancel").json()["state"] == "cancelled"
    assert bench.client.post("/jobs/1/pause").json() == {"error": "job 1: it is cancelled already"}


def test_events_are_streamed_with_their_numbers(bench: Bench) -> None:
    bench.submit()
    bench.client.post("/jobs/1/cancel")
    text = bench.client.get("/jobs/1/events").text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    records = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [record["event"] for record in records] == ["Submitted", "Cancelled"]
    assert [identity for identity, _ in blocks] == [f"id: {r['seq']}" for r in records]
    after = bench.client.get("/jobs/1/events", params={"after": records[0]["seq"]}).text
    assert "Submitted" not in after
    assert "Cancelled" in after


def test_the_stream_of_a_job_that_is_over_ends_when_its_files_are_settled(bench: Bench) -> None:
    bench.submit()
    bench.service.close()
    bench.client.get("/jobs/1/events")
    assert bench.published.waited == [], "the daemon ends, the job goes on"
    bench.client.post("/jobs/1/cancel")
    bench.client.get("/jobs/1/events")
    assert bench.published.waited == [1]


def test_a_file_that_could_not_be_written_is_told_with_the_job(bench: Bench) -> None:
    assert bench.submit().json()["unpublished"] == {}
    bench.published.failed = {"/full/o.json": "not written: No space left on device"}
    for status in (
        bench.client.get("/jobs/1").json(),
        bench.client.get("/jobs").json()[0],
        bench.client.post("/jobs/1/cancel").json(),
    ):
        assert status["unpublished"] == bench.published.failed


def test_a_screen_can_ask_for_a_brief_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RECORDS_IN_MEMORY", 1)
    bench = Bench(tmp_path)
    bench.submit()
    name = TASKS.tasks[0].id
    for step in (1, 2, 3):
        bench.service.emit(1, events.Training(name, step, 3, 0.5, 100.0))
    bench.client.post("/jobs/1/cancel")
    whole, brief = (
        bench.client.get("/jobs/1/events", params={"brief": wanted}).text
        for wanted in (False, True)
    )
    assert [text.count('"event": "Training"') for text in (whole, brief)] == [3, 0]
    assert [text.count('"event": "Cancelled"') for text in (whole, brief)] == [1, 1]
    bench.service.store.close()


def test_stop_is_passed_on(bench: Bench) -> None:
    assert bench.client.post("/stop").status_code == 202
    assert bench.stopped == 1


@pytest.mark.parametrize("header", [None, "", "Bearer wrong", "Bearer secre", "secret"])
def test_without_the_token_nobody_gets_in(tmp_path: Path, header: str | None) -> None:
    bench = Bench(tmp_path, token="secret")
    headers = {"Authorization": header} if header is not None else {}
    for path in ("/health", "/jobs", "/openapi.json", "/nowhere"):
        assert bench.client.get(path, headers=headers).status_code == 401
    with_it = {"Authorization": "Bearer secret"}
    assert bench.client.get("/health", headers=with_it).status_code == 200
    bench.service.store.close()


def test_a_client_from_afar_may_not_name_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path, token="secret")
    bench.client.headers["Authorization"] = "Bearer secret"
    answer = bench.submit(outs=[str(tmp_path / "out.json")])
    assert answer.status_code == 409
    assert bench.submit().status_code == 201
    bench.service.store.close()


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(guards, "MAX_BODY", 1000)
    body = json.dumps(bench.order())
    content = body if announced else iter([body[:500].encode(), body[500:].encode()])
    answer = bench.client.post("/jobs", content=content)
    assert answer.status_code in (400, 413)
    assert bench.client.get("/jobs").json() == []


@pytest.mark.parametrize("field", ["settings", "tasks", "solutions", "name", "other"])
def test_an_order_that_is_nested_too_deeply_is_a_bad_one(bench: Bench, field: str) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    whole = json.dumps({**bench.order(), field: "DEEP" if field == "name" else {"a": "DEEP"}})
    answer = bench.client.post("/jobs", content=whole.replace('"DEEP"', deep))
    assert answer.status_code in (400, 422)
    reasons = ("not JSON: nested too deeply", "nested too deeply", "Object contains unknown field")
    assert answer.json()["error"].startswith(reasons)
    assert bench.client.get("/jobs").json() == []


@pytest.mark.parametrize("what", ["solutions", "result"])
def test_what_is_large_is_read_in_a_thread_and_no_task_for_it(
    bench: Bench, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 000 tasks take eight seconds, in which the daemon would give no sign of life."""
    bench.submit()
    expected = bench.client.get(f"/jobs/1/{what}").json()
    assert set(expected) == {task.id for task in TASKS.tasks}
    threads: list[str] = []
    method = {"solutions": "solutions", "result": "submission"}[what]
    read = getattr(JobTable, method)

    def noted(table: JobTable, job: int) -> str:
        threads.append(threading.current_thread().name)
        return str(read(table, job))

    monkeypatch.setattr(JobTable, method, noted)
    monkeypatch.delattr(JobTable, "tasks")
    assert bench.client.get(f"/jobs/1/{what}").json() == expected
    assert threads == ["AnyIO worker thread"]


def test_the_digest_of_an_order_is_made_once_and_in_a_thread(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noted(text: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return hashlib.sha256(text)

    monkeypatch.setattr(journal, "hashlib", SimpleNamespace(sha256=noted))
    bench.submit(take_up="done")
    assert threads == ["AnyIO worker thread"]
