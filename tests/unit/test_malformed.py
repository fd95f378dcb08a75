"""Malformed orders, tasks, settings and requests against the whole daemon, in this process.

Whatever is sent, the daemon lives, answers without a 5xx, and refuses in one line. Its trainer is
busy for ever, so that what is accepted after all only waits. `--all` sends 8000 requests and 2000
lines for the supervisor, the gate some hundred.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support import asgi
from support.lives import Life
from support.machine import Machine
from support.malformed import VALUES, as_bytes, broken, damaged, wild_text
from support.small import task, task_set

from arcd.arc import submission
from arcd.config import DAEMON_KEYS, Config, resolve
from arcd.daemon import schema
from arcd.daemon.heartbeat import Activity, Beat, Failure, from_line, to_line
from arcd.daemon.options import Options
from arcd.model.base_model import bundled

REQUESTS = 400
"""In each part."""

PARTS = [
    pytest.param(part, marks=() if part == 0 else pytest.mark.full) for part in range(8000 // 400)
]

LONGEST_REFUSAL = 1000
"""Characters: whoever sends a megabyte does not get it back."""

TASKS = task_set(task("a", pairs=2), task("b", pairs=2, tests=2))
SMALL = {"train": {"steps": 2}, "sample": {"samples": 2}}
WHOLE = Config().model_dump(mode="json", exclude=set(DAEMON_KEYS))
"""All settings that an order may have."""

DONE, BUSY = 1, 2
"""Numbers of the jobs that are there."""


@dataclass(frozen=True)
class Asked:
    """A request, as malformed as it may be."""

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    def __str__(self) -> str:
        shown = self.body if len(self.body) < 4000 else self.body[:4000] + b"..."
        return ascii((self.method, self.path, self.query, self.headers)) + f"\n{shown!r}"


def order(random: Random, out: Path) -> dict[str, Any]:
    """A valid one."""
    settings = random.choice((SMALL, SMALL, WHOLE, {}, {"budget": {"seconds": 60, "reserve": 5}}))
    found = schema.order(TASKS, settings=settings, outs=(out,) if random.random() < 0.5 else ())
    document = found.model_dump(mode="json")
    document["take_up"] = random.choice(("never", "unfinished", "done"))
    return document


def malformed_order(random: Random, out: Path) -> Asked:
    document = order(random, out)
    part = random.choice((None, None, None, "settings", "tasks", "solutions", "outs"))
    if part is None:
        document = broken(random, document)
    else:
        document = {**document, part: broken(random, document[part])}
    body = as_bytes(document)
    return Asked("POST", "/jobs", headers=asgi.JSON, body=body)


def damaged_order(random: Random, out: Path) -> Asked:
    body = damaged(random, as_bytes(order(random, out)))
    return Asked("POST", "/jobs", headers=asgi.JSON, body=body)


def malformed_path(random: Random, out: Path) -> Asked:
    word = random.choice((wild_text(random), str(random.choice(VALUES))[:300]))
    path = random.choice(
        (
            f"/jobs/{word}",
            f"/jobs/{word}/{random.choice(('events', 'result', 'forecast', 'solutions'))}",
            f"/jobs/{word}/{random.choice(('pause', 'resume', 'cancel', 'retry'))}",
            f"/jobs/{DONE}/{word}",
            f"/{word}",
            word,
        )
    )
    method = random.choice(("GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "", word))
    if random.random() < 0.1:
        method, path = "DELETE", f"/jobs/{BUSY}{word}"
    # A server hands over what it could decode of it.
    return Asked(method, path.encode(errors="replace").decode())


def malformed_query(random: Random, out: Path) -> Asked:
    value = as_bytes(random.choice(VALUES))[:5000]
    key = random.choice((b"after", b"detail", b"", b"after=1&after", value[:50]))
    query = random.choice((key + b"=" + value, damaged(random, b"after=1&detail=0"), value))
    path = random.choice((f"/jobs/{DONE}/events", f"/jobs/{BUSY}/forecast", "/jobs", "/health"))
    return Asked("GET", path, query=query)


def malformed_headers(random: Random, out: Path) -> Asked:
    value = as_bytes(random.choice(VALUES))[:5000]
    known = random.choice(
        (
            *(b"content-type", b"content-length", b"transfer-encoding", b"host", b"accept"),
            *(b"authorization", b"last-event-id", b"cookie", b"expect", b"content-encoding"),
        )
    )
    name = random.choice((known, known, known, value[:50].lower()))
    headers = ((name, value), *random.choice((asgi.JSON, ())))
    method, path = random.choice((("POST", "/jobs"), ("GET", f"/jobs/{DONE}"), ("GET", "/jobs")))
    body = as_bytes(order(random, out)) if method == "POST" else b""
    return Asked(method, path, headers=headers, body=body)


KINDS = (
    *(malformed_order, malformed_order, malformed_order, malformed_order, damaged_order),
    *(malformed_path, malformed_query, malformed_headers),
)


class Bench:
    """A daemon with a job that is cancelled and one that never ends."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.out = self.machine.disk / "out.json"
        home = self.machine.disk / "home"
        home.mkdir()
        config = resolve(settings=["lookahead=0"])
        options = Options(home=home, base=bundled(), config=config)
        self.life = Life(self.machine, options, TASKS.solutions, predecessor_died=False)
        assert self.life.until(lambda: self.life.ready)
        assert self.submit({"train": {"steps": 5_000, "batch_size": 1}}) == DONE
        self.ask(Asked("POST", f"/jobs/{DONE}/cancel"))
        assert self.submit({"train": {"steps": 5_000, "batch_size": 1}}) == BUSY
        self.life.advance(1.0)

    def submit(self, settings: dict[str, Any]) -> int:
        document = schema.order(TASKS, settings=settings).model_dump(mode="json")
        return int(self.ask(Asked("POST", "/jobs", body=as_bytes(document))).json()["job"])

    def ask(self, asked: Asked) -> asgi.Answer:
        """The answer, of which no request may lack one."""
        request = asgi.ask(
            self.life.app,
            asked.method,
            asked.path,
            query=asked.query,
            headers=asked.headers,
            body=asked.body,
        )
        answer = self.life.do(request)
        assert answer is not None, f"the daemon is dead: {self.life.error}"
        return answer

    def check(self, asked: Asked) -> None:
        """Send it; what must hold, whatever it is."""
        before = self.numbers()
        answer = self.ask(asked)
        assert answer.status < 500, answer.body
        if answer.status >= 400 and asked.method != "HEAD":
            check_refusal(answer.json()["error"])
        for number in self.numbers() - before:
            self.check_accepted(number)
        assert self.numbers() == before

    def numbers(self) -> set[int]:
        answer = self.ask(Asked("GET", "/jobs"))
        assert answer.status == 200, answer.body
        return {status["job"] for status in answer.json()}

    def check_accepted(self, number: int) -> None:
        """A job that was accepted is one: it can be asked for, cancelled and forgotten."""
        for what in ("", "/forecast", "/solutions", "/result"):
            answer = self.ask(Asked("GET", f"/jobs/{number}{what}"))
            assert answer.status == 200, (what, answer.body)
        submission.parse("result", answer.json())
        assert self.ask(Asked("POST", f"/jobs/{number}/cancel")).status == 200
        assert self.ask(Asked("DELETE", f"/jobs/{number}")).status == 200


def check_refusal(error: str) -> None:
    """It is one line that says something."""
    assert error.strip()
    assert len(error.splitlines()) == 1
    assert len(error) <= LONGEST_REFUSAL


@contextmanager
def opened(folder: Path) -> Iterator[Bench]:
    """A bench on a machine of its own."""
    machine = Machine(folder)
    with machine.installed():
        bench = Bench(machine)
        try:
            yield bench
        finally:
            bench.life.close()


@pytest.mark.parametrize("part", PARTS)
def test_whatever_is_sent_the_daemon_lives_and_refuses_in_one_line(
    tmp_path: Path, part: int
) -> None:
    random = Random(part)
    with opened(tmp_path) as bench:
        for number in range(REQUESTS):
            asked = random.choice(KINDS)(random, bench.out)
            try:
                bench.check(asked)
            except Exception as error:
                raise AssertionError(f"request {number} of part {part}: {asked}") from error


LINES = (
    Beat(True, Activity(True, 3), Activity(False, 0)),
    Failure("no such base", 2),
)


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.full)])
def test_a_line_to_the_supervisor_is_a_message_or_nothing(count: int) -> None:
    random = Random(0)
    for _ in range(count):
        line = to_line(random.choice(LINES)).strip()
        document = broken(random, json.loads(line))
        text = as_bytes(document) if random.random() < 0.6 else damaged(random, line)
        message = from_line(text)
        assert message is None or isinstance(message, Beat | Failure)
