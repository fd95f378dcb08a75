"""The job service: stored before anybody knows of it, told to everybody once, refused in a line."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from support import virtual
from support.small import candidate, task, task_set
from support.stores import take_on

from arcd.arc.selection import verdict
from arcd.config import Config
from arcd.errors import BadJob, NoJob, StoreFailed
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.following import Line
from arcd.jobs.journal import new_job
from arcd.jobs.service import JobService
from arcd.jobs.state import JobState
from arcd.jobs.store import Store

pytestmark = pytest.mark.anyio

TASKS = task_set(task("a"), task("b"))
SURE = {name: verdict(name, 1, [candidate(task(name), 0, 0)], None) for name in "ab"}
DONE = [events.Answered(name, SURE[name]) for name in "ab"]
FAILED = [events.Answered(name, verdict(name, 1, [], None)) for name in "ab"]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, type[virtual.VirtualLoop]]]:
    return virtual.BACKEND


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def service(store: Store) -> JobService:
    """With job 1 of the tasks a and b."""
    service = JobService(store)
    take_on(service, new_job("job", 10, TASKS, Config()))
    return service


def refusal(act: Callable[[int], object], job: int) -> str:
    with pytest.raises(BadJob) as caught:
        act(job)
    line = str(caught.value)
    assert "\n" not in line
    return line


# What happens.


async def test_whoever_hears_of_something_finds_it_on_the_disk_and_in_the_state(
    service: JobService,
) -> None:
    heard: list[Record] = []

    def listen(record: Record) -> None:
        heard.append(record)
        assert service.state.seq == record.seq
        reader = Store(service.store.path.parent, "read")
        assert next(reader.journal.records(after=record.seq - 1)) == record
        reader.close()

    service.subscribe(listen)
    service.emit(1, events.Started("a", 1, 1), events.Noted("a", "a note"))
    service.pause(1)
    service.emit(None, events.DaemonReady(1.0))
    take_on(service, new_job("second", 10, TASKS, Config()))
    assert [events.kind(record.event) for record in heard] == [
        "Started",
        "Noted",
        "Paused",
        "DaemonReady",
        "Submitted",
    ]


async def test_what_cannot_be_stored_did_not_happen(service: JobService) -> None:
    sampled = events.Sampled("a", candidate(task("a")))
    service.emit(1, events.Started("a", 1, 1), sampled)
    heard: list[Record] = []
    service.subscribe(heard.append)
    seq = service.state.seq
    with pytest.raises(StoreFailed):
        service.emit(1, events.Noted("a", "a note"), sampled)
    assert heard == []
    assert service.state.seq == seq
    assert service.state == service.store.journal.state()


async def test_a_desk_that_is_opened_again_knows_what_happened(service: JobService) -> None:
    service.emit(1, events.Started("a", 1, 1), DONE[0])
    assert JobService(service.store).state == service.state


async def test_who_waits_for_a_change_wakes_at_the_next_one(service: JobService) -> None:
    woken: list[int] = []

    async def wait(number: int) -> None:
        await service.changed()
        woken.append(number)

    async with anyio.create_task_group() as waiting:
        for number in range(3):
            waiting.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        assert woken == []
        service.emit(1, events.Paused())
    assert sorted(woken) == [0, 1, 2]


# Who follows.


def records_in(lines: list[Line]) -> list[Record]:
    return [Record.from_json(json.loads(line.text)) for line in lines]


async def collect(service: JobService, found: list[Record], *arguments: int) -> None:
    async for lines in service.follow(*arguments):
        found.extend(records_in(lines))


@pytest.mark.parametrize("after", [0, 1, 3, 6])
async def test_who_follows_gets_each_record_once_until_the_job_ends(
    service: JobService, after: int
) -> None:
    take_on(service, new_job("another", 10, TASKS, Config()))
    service.emit(1, events.Started("a", 1, 1))
    found: list[Record] = []
    async with anyio.create_task_group() as following:
        following.start_soon(collect, service, found, 1, after)
        await anyio.wait_all_tasks_blocked()
        service.emit(2, events.Paused())
        service.emit(1, events.Noted("a", "one"), events.Noted("a", "two"))
        service.emit(None, events.DaemonReady(1.0))
        await anyio.wait_all_tasks_blocked()
        service.emit(1, DONE[0])
        service.emit(1, DONE[1])
    assert found == list(service.store.journal.records(after, 1))
    assert found[-1].event == DONE[1]


async def test_what_happens_while_a_slow_one_follows_is_not_lost(service: JobService) -> None:
    found: list[Record] = []

    async def follow() -> None:
        async for lines in service.follow(1):
            found.extend(records_in(lines))
            await anyio.sleep(10)

    async with anyio.create_task_group() as following:
        following.start_soon(follow)
        for i in range(20):
            await anyio.sleep(3)
            service.emit(1, events.Noted("a", f"{i}"))
        service.emit(1, *DONE)
    assert found == list(service.store.journal.records(job=1))


async def test_a_job_that_is_over_is_followed_to_its_end_at_once(service: JobService) -> None:
    service.emit(1, *DONE)
    found: list[Record] = []
    await collect(service, found, 1)
    assert [events.kind(record.event) for record in found] == ["Submitted", "Answered", "Answered"]


async def test_a_cancelled_job_is_over_for_who_follows(service: JobService) -> None:
    found: list[Record] = []
    async with anyio.create_task_group() as following:
        following.start_soon(collect, service, found, 1)
        await anyio.wait_all_tasks_blocked()
        service.cancel(1)
    assert found[-1].event == events.Cancelled()


async def test_who_follows_is_let_go_when_the_desk_closes(service: JobService) -> None:
    found: list[Record] = []
    async with anyio.create_task_group() as following:
        for _ in range(3):
            following.start_soon(collect, service, found, 1)
        await anyio.wait_all_tasks_blocked()
        service.emit(1, events.Paused())
        service.close()
    assert [record.seq for record in found] == [1, 1, 1, 2, 2, 2]


async def test_who_gives_up_following_disturbs_nobody(service: JobService) -> None:
    found: list[Record] = []
    async with anyio.create_task_group() as following:
        following.start_soon(collect, service, found, 1)
        async with anyio.create_task_group() as short:
            short.start_soon(collect, service, [], 1)
            await anyio.wait_all_tasks_blocked()
            short.cancel_scope.cancel()
        service.emit(1, *DONE)
    assert found == list(service.store.journal.records())


async def test_a_job_that_is_not_there_cannot_be_followed(service: JobService) -> None:
    with pytest.raises(NoJob):
        await collect(service, [], 7)


# What can be done with a job.


async def test_a_pause_lasts_until_the_job_is_resumed(service: JobService) -> None:
    assert service.pause(1).state is JobState.paused
    assert service.resume(1).state is JobState.queued


async def test_to_pause_what_is_paused_or_resume_what_runs_changes_nothing(
    service: JobService,
) -> None:
    service.resume(1)
    service.pause(1)
    seq = service.state.seq
    service.pause(1)
    assert service.state.seq == seq


async def test_a_job_that_is_held_is_free_once_it_is_resumed(service: JobService) -> None:
    service.held.add(1)
    async with anyio.create_task_group() as waiting:
        waiting.start_soon(service.changed)
        await anyio.wait_all_tasks_blocked()
        service.resume(1)
    assert service.held == set()
    assert list(service.store.journal.records())[-1].event == events.Resumed()


async def test_a_job_that_is_paused_and_held_is_free_of_both_once_it_is_resumed(
    service: JobService,
) -> None:
    service.pause(1)
    service.held.add(1)
    assert service.resume(1).state is JobState.queued
    assert service.held == set()


async def test_a_cancelled_job_keeps_its_answers(service: JobService) -> None:
    service.emit(1, DONE[0])
    assert service.cancel(1).state is JobState.cancelled
    assert list(service.store.jobs.verdicts(1)) == [SURE["a"]]


async def test_failed_and_doubtful_tasks_are_done_once_more(service: JobService) -> None:
    service.emit(1, FAILED[0], DONE[1])
    assert service.state.jobs[1].state is JobState.done
    job = service.retry(1)
    assert job.state is JobState.queued
    assert (job.tasks["a"].round, job.tasks["b"].round) == (1, 0)
    assert list(service.store.journal.records())[-1].event == events.Retried(("a",))


async def test_a_job_can_be_retried_before_all_of_it_is_answered(service: JobService) -> None:
    service.emit(1, FAILED[0], events.Started("b", 1, 1))
    assert service.retry(1).tasks["b"].in_flight


@pytest.mark.parametrize("act", ["job", "pause", "resume", "cancel", "retry"])
async def test_a_job_that_is_not_there_is_named(service: JobService, act: str) -> None:
    with pytest.raises(NoJob) as caught:
        getattr(service, act)(7)
    assert str(caught.value) == "job 7: there is no such job"


@pytest.mark.parametrize("act", ["pause", "resume", "cancel"])
@pytest.mark.parametrize(
    ("happened", "state"),
    [(DONE, "done"), (FAILED, "failed"), ([events.Cancelled()], "cancelled")],
)
async def test_a_job_that_is_over_stays_so(
    service: JobService, act: str, happened: list[events.Event], state: str
) -> None:
    service.emit(1, *happened)
    seq = service.state.seq
    assert refusal(getattr(service, act), 1) == f"job 1: it is {state} already"
    assert service.state.seq == seq


async def test_what_cannot_be_retried_says_why(service: JobService) -> None:
    line = "job 1: none of its answers is failed or doubtful"
    assert refusal(service.retry, 1) == line
    service.emit(1, *DONE)
    assert refusal(service.retry, 1) == line
    service.emit(1, events.Cancelled())
    assert refusal(service.retry, 1) == "job 1: it was cancelled"
