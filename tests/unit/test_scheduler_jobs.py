"""The scheduler with several jobs on a virtual clock: shares, pauses, cancellations, retries."""

from collections import Counter
from dataclasses import replace

import anyio
import pytest
from support import virtual
from support.works import FEW, Build, Deliver, begun, same

from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Adapter, Completion, Request
from arcd.jobs import events
from arcd.jobs.state import JobState, Phase

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


# Several jobs.


async def test_two_jobs_share_by_their_priorities(build: Build) -> None:
    works = build(same(40))
    first, second = works.submit(priority=10), works.submit(priority=30)
    async with works.running():
        await works.until(lambda state: sum(map(begun, state.jobs.values())) == 40)
        shares = [begun(works.service.state.jobs[job]) for job in (first, second)]
        assert shares == [pytest.approx(10, abs=1), pytest.approx(30, abs=1)]
        works.service.cancel(first)
        works.service.cancel(second)


async def test_a_job_that_comes_late_begins_soon_and_starves_nobody(build: Build) -> None:
    works = build(same(30))
    first = works.submit()
    async with works.running():
        await works.until(lambda state: begun(state.jobs[first]) == 20)
        second = works.submit()
        await works.until(lambda state: sum(map(begun, state.jobs.values())) == 30)
        assert abs(begun(works.service.state.jobs[second]) - 5) <= 1
        await works.until(lambda state: all(job.finished for job in state.jobs.values()))
    assert works.most_in_flight() <= works.config.lookahead + 1


async def test_a_job_that_comes_while_nothing_is_to_be_done_is_begun_at_once(build: Build) -> None:
    works = build(same(2))
    async with works.running():
        await anyio.sleep(100)
        assert not works.service.state.in_flight()
        job = works.submit()
        await works.until(lambda state: state.jobs[job].finished)
    assert works.records(events.Started)[0].at == works.records(events.Submitted)[0].at


async def test_jobs_of_the_same_task_names_do_not_meet(build: Build) -> None:
    works = build(same(3))
    works.submit()
    works.submit(settings=[*FEW, "seed=9"])
    await works.finish()
    for job in (1, 2):
        assert sorted(works.names(events.Answered, job)) == ["t0", "t1", "t2"]
        assert len(list(works.store.jobs.candidates(job))) == 12


# Pauses, cancellations, retries.


async def test_a_paused_job_finishes_what_is_in_hand_and_begins_nothing(build: Build) -> None:
    works = build(same(10))
    job = works.submit()
    async with works.running():
        await works.until(lambda state: begun(state.jobs[job]) == 4)
        works.service.pause(job)
        await anyio.sleep(1000)
        assert +works.service.state.jobs[job].counts == {Phase.answered: 4, Phase.waiting: 6}
        assert not works.service.state.in_flight()
        works.service.resume(job)
        await works.until(lambda state: state.jobs[job].finished)
    assert works.records(events.Released) == []


async def test_a_paused_job_leaves_the_machine_to_the_others(build: Build) -> None:
    works = build(same(6))
    first, second = works.submit(), works.submit()
    works.service.pause(first)
    async with works.running():
        await works.until(lambda state: state.jobs[second].finished)
        assert +works.service.state.jobs[first].counts == {Phase.waiting: 6}


async def test_a_cancelled_job_stops_at_once_and_the_others_go_on(build: Build) -> None:
    works = build(same(6))
    first, second = works.submit(), works.submit()
    async with works.running():
        await works.until(lambda state: state.jobs[first].counts[Phase.answered] == 1)
        in_flight = [name for job, name in works.service.state.in_flight() if job == first]
        assert in_flight
        works.service.cancel(first)
        await works.until(lambda state: state.jobs[second].finished)
    cancelled = works.records(events.Cancelled, first)[0]
    after = [r for r in works.records(job=first) if r.seq > cancelled.seq]
    assert [r.event for r in after] == [events.Released(name) for name in in_flight]
    assert {r.at for r in after} == {cancelled.at}
    assert works.service.state.jobs[first].state is JobState.cancelled
    assert works.most_in_flight() <= works.config.lookahead + 1


async def test_the_trainer_is_free_again_after_a_cancellation(build: Build) -> None:
    works = build(same(3))
    first = works.submit()
    async with works.running():
        await works.until(lambda state: bool(state.training))
        works.service.cancel(first)
        second = works.submit()
        cancelled = anyio.current_time()
        await works.until(lambda state: not state.training)
        await works.until(lambda state: bool(state.training))
        assert anyio.current_time() - cancelled == works.trainer.seconds_per_step
        await works.until(lambda state: state.jobs[second].finished)


async def test_a_job_that_is_held_waits_until_it_is_resumed(build: Build) -> None:
    works = build(same(2))
    job = works.submit()
    works.service.held.add(job)
    async with works.running():
        await anyio.sleep(100)
        assert works.records(events.Started) == []
        works.service.resume(job)
        await works.until(lambda state: state.jobs[job].finished)


class Stammering(FakeEngine):
    """Does not come to the end of the answers to the first four samples of t1."""

    async def _answer(self, request: Request, adapter: Adapter | None, deliver: Deliver) -> None:
        def cut(completion: Completion) -> None:
            bad = completion.request.question.task == "t1" and completion.request.sample < 4
            deliver(replace(completion, finish="length") if bad else completion)

        await super()._answer(request, adapter, cut)


async def test_a_failed_task_is_done_once_more_with_all_candidates(build: Build) -> None:
    works = build(same(3), engine=Stammering)
    job = works.submit()
    async with works.running():
        await works.until(lambda state: state.jobs[job].finished)
        assert works.service.state.jobs[job].retriable() == ["t1"]
        works.service.retry(job)
        await works.until(lambda state: state.jobs[job].finished)
    assert Counter(works.names(events.Answered)) == {"t0": 1, "t1": 2, "t2": 1}
    samples = [candidate.sample for candidate in works.store.jobs.candidates(job, "t1")]
    assert sorted(samples) == list(range(8))
    (verdict,) = [found for found in works.store.jobs.verdicts(job) if found.task == "t1"]
    assert verdict.samples == 8
    assert works.tasks.solutions["t1"][0] in verdict.attempts[0]
    assert works.service.state.jobs[job].tasks["t1"].round == 1
