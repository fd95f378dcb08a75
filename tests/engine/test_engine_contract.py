"""What every `Engine` owes its callers, whatever stands behind it.

A `Subject` is an engine with a prompt whose answer ends by itself at once and one whose answer goes
on up to its limit of tokens. A new engine adds a function to SUBJECTS.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest
from support.toys import CLOSING, ENDLESS, ask, toy_engine, write_adapter, write_toy_base

from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Adapter, Completion, Engine, Request
from arcd.model.encoding import END, INPUT, NEWLINE, OUTPUT, CellEncoding

# A warning in the middle of a vLLM step is no reason to end the engine.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("default")]

LONG = 300
"""Tokens of an answer that is still open when short ones are done."""


@dataclass(frozen=True)
class Subject:
    """An engine under test and what to ask it; answers close with `end`."""

    engine: Engine
    end: int
    closing: tuple[int, ...]
    endless: tuple[int, ...]
    adapters: tuple[Adapter, Adapter]
    """Of two tasks."""


@asynccontextmanager
async def vllm_subject(folder: Path) -> AsyncIterator[Subject]:
    pytest.importorskip("vllm")
    base = write_toy_base(folder / "base")
    first, second = (
        Adapter(serial, write_adapter(base, folder / f"{serial}", seed=serial)) for serial in (1, 2)
    )
    async with toy_engine(base) as engine:
        yield Subject(engine, END, CLOSING, ENDLESS, (first, second))


@asynccontextmanager
async def fake_subject(folder: Path) -> AsyncIterator[Subject]:
    engine = FakeEngine(CellEncoding(), {}, {}, seconds_per_token=1e-4)
    adapters = (Adapter(1, folder), Adapter(2, folder))
    yield Subject(engine, END, (NEWLINE, END), (NEWLINE,), adapters)


SUBJECTS = [
    pytest.param(fake_subject, id="fake"),
    pytest.param(vllm_subject, id="vllm", marks=pytest.mark.engine),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=SUBJECTS)
async def subject(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Subject]:
    async with request.param(tmp_path_factory.mktemp("subject")) as subject:
        yield subject


async def answers(
    subject: Subject, requests: list[Request], adapter: Adapter | None = None
) -> dict[Request, tuple[int, ...]]:
    """The tokens that each request got."""
    found: list[Completion] = []
    await subject.engine.sample(requests, adapter, found.append)
    return {completion.request: completion.tokens for completion in found}


async def test_each_request_is_answered_exactly_once_with_its_own_provenance(
    subject: Subject,
) -> None:
    requests = [
        ask(prompt, limit, task=task, sample=sample)
        for task in ("a", "b")
        for sample, (prompt, limit) in enumerate(
            [(subject.closing, 9), (subject.endless, 1), (subject.endless, 40)] * 4
        )
    ]
    found: list[Completion] = []
    await subject.engine.sample(requests, None, found.append)
    assert len(found) == len(requests)
    assert {completion.request for completion in found} == set(requests)


async def test_nothing_asked_is_nothing_answered(subject: Subject) -> None:
    assert await answers(subject, []) == {}


async def test_a_completion_is_delivered_when_it_finishes_not_when_all_have(
    subject: Subject,
) -> None:
    slow, fast = ask(subject.endless, LONG), ask(subject.closing, LONG, sample=1)
    order: list[Request] = []
    with anyio.CancelScope() as scope:

        def deliver(completion: Completion) -> None:
            order.append(completion.request)
            scope.cancel()

        await subject.engine.sample([slow, fast], None, deliver)
    assert order == [fast]


async def test_a_later_fast_call_does_not_wait_for_an_earlier_slow_one(subject: Subject) -> None:
    order: list[str] = []

    async def call(prompt: tuple[int, ...], task: str) -> None:
        await answers(subject, [ask(prompt, LONG, task=task)])
        order.append(task)

    async with anyio.create_task_group() as calls:
        calls.start_soon(call, subject.endless, "slow")
        calls.start_soon(call, subject.closing, "fast")
    assert order == ["fast", "slow"]


async def test_two_tasks_at_once_get_the_answers_they_get_alone(subject: Subject) -> None:
    requests = [ask(subject.endless, 20, sample=sample) for sample in range(3)]
    alone = [await answers(subject, requests, adapter) for adapter in subject.adapters]
    together: dict[Adapter, dict[Request, tuple[int, ...]]] = {}

    async def call(adapter: Adapter) -> None:
        together[adapter] = await answers(subject, requests, adapter)

    async with anyio.create_task_group() as calls:
        for adapter in subject.adapters:
            calls.start_soon(call, adapter)
    assert [together[adapter] for adapter in subject.adapters] == alone


async def test_the_same_requests_get_the_same_answers_again(subject: Subject) -> None:
    requests = [ask(subject.closing, 9), ask(subject.endless, 30, sample=1)]
    for adapter in (None, subject.adapters[0]):
        first = await answers(subject, requests, adapter)
        assert await answers(subject, requests, adapter) == first


async def test_there_is_one_logprob_for_each_token(subject: Subject) -> None:
    found: list[Completion] = []
    requests = [ask(subject.closing, 9), ask(subject.endless, 30, sample=1)]
    await subject.engine.sample(requests, None, found.append)
    for completion in found:
        assert len(completion.logprobs) == len(completion.tokens) > 0
        assert all(logprob <= 0 for logprob in completion.logprobs)


async def test_a_given_answer_is_as_likely_as_when_it_was_sampled(subject: Subject) -> None:
    # The last is read in more than one step.
    prompts = [(subject.closing, 9), (subject.endless, 30), (subject.closing * 200, 9)]
    requests = [ask(prompt, limit, sample=i) for i, (prompt, limit) in enumerate(prompts)]
    for adapter in (None, subject.adapters[0]):
        sampled: list[Completion] = []
        await subject.engine.sample(requests, adapter, sampled.append)
        given = {replace(c.request, answer=c.tokens): c for c in sampled}
        other = replace(requests[1], answer=(INPUT, OUTPUT, subject.end))
        found: list[Completion] = []
        # Beside the samples of another task, more of them than there are tokens in a prompt.
        others: list[Completion] = []
        async with anyio.create_task_group() as calls:
            beside = [ask(subject.endless, 20, task="other", sample=i) for i in range(24)]
            calls.start_soon(subject.engine.sample, beside, subject.adapters[1], others.append)
            await subject.engine.sample([*given, requests[0], other], adapter, found.append)
        assert len(others) == len(beside)
        by_request = {completion.request: completion for completion in found}
        assert set(by_request) == {*given, requests[0], other}
        for request, completion in given.items():
            rescored = by_request[request]
            assert (rescored.tokens, rescored.finish) == (completion.tokens, "stop")
            assert rescored.logprobs == pytest.approx(completion.logprobs, abs=0.05)
        assert by_request[requests[0]].tokens == sampled[0].tokens
        assert len(by_request[other].logprobs) == 3
        assert sum(by_request[other].logprobs) < -1


async def test_an_answer_closes_with_the_end_token_unless_the_limit_cut_it(
    subject: Subject,
) -> None:
    found: list[Completion] = []
    requests = [
        ask(subject.closing, LONG),
        ask(subject.closing, 1, sample=1),
        ask(subject.endless, 30, sample=2),
    ]
    await subject.engine.sample(requests, None, found.append)
    closed, cut, endless = sorted(found, key=lambda completion: completion.request.sample)
    assert (closed.finish, cut.finish, endless.finish) == ("stop", "length", "length")
    assert closed.tokens.index(subject.end) == len(closed.tokens) - 1
    assert subject.end not in cut.tokens + endless.tokens
    assert (len(cut.tokens), len(endless.tokens)) == (1, 30)


async def test_a_cancelled_call_gets_nothing_more_and_the_engine_serves_on(
    subject: Subject,
) -> None:
    found: list[Completion] = []
    slow = [ask(subject.endless, LONG, sample=sample) for sample in range(4)]
    with anyio.CancelScope() as scope:

        def deliver(completion: Completion) -> None:
            found.append(completion)
            scope.cancel()

        await subject.engine.sample([ask(subject.closing, 9), *slow], subject.adapters[0], deliver)
    assert scope.cancelled_caught
    assert [completion.request.question.tokens for completion in found] == [subject.closing]
    # What outlives those that were cancelled would have shown whatever is still delivered.
    after = await answers(subject, slow, subject.adapters[0])
    assert len(found) == 1
    assert set(after) == set(slow)


async def test_a_call_that_is_cancelled_at_once_does_no_harm(subject: Subject) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await answers(subject, [ask(subject.endless, LONG)], subject.adapters[0])
    assert len(await answers(subject, [ask(subject.closing, 9)], subject.adapters[0])) == 1


async def test_an_error_of_the_caller_in_delivery_reaches_the_caller(subject: Subject) -> None:
    def deliver(completion: Completion) -> None:
        raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, ExceptionGroup)):
        await subject.engine.sample([ask(subject.closing, 9)], None, deliver)
    assert len(await answers(subject, [ask(subject.closing, 9)])) == 1
