"""The scheduler with jobs that are forgotten: whatever it still knew of them."""

import anyio
import pytest
from support import virtual
from support.works import FEW, Build, same

from arcd.errors import NoJob
from arcd.jobs import events

pytestmark = pytest.mark.anyio

BUDGET = [*FEW, "budget.seconds=400", "budget.reserve=10"]


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@pytest.mark.parametrize("seconds", [1, 5, 9, 13, 17])
async def test_a_job_is_forgotten_when_its_tasks_have_left_the_trainer(
    build: Build, seconds: float
) -> None:
    works = build(same(4))
    first, second = works.submit(), works.submit()
    async with works.running():
        await anyio.sleep(seconds)
        assert any(number == first for number, _ in works.service.state.in_flight())
        works.service.cancel(first)
        await works.service.forget(first)
        await works.until(lambda state: state.jobs[second].finished)
    assert list(works.service.state.jobs) == [second]
    assert [type(record.event) for record in works.records(job=first)] == [events.Forgotten]


async def test_a_held_job_with_a_budget_that_is_cancelled_and_forgotten_is_gone(
    build: Build,
) -> None:
    works = build(same(4))
    held = works.submit(settings=BUDGET)
    works.service.held.add(held)
    async with works.running():
        other = works.submit()
        works.service.cancel(held)
        await anyio.sleep(1)
        await works.service.forget(held)
        await works.until(lambda state: state.jobs[other].finished)
    assert list(works.service.state.jobs) == [other]


async def test_of_two_who_forget_a_job_the_second_is_told_that_it_is_gone(build: Build) -> None:
    works = build(same(4))
    job = works.submit()
    told: list[NoJob] = []

    async def ask() -> None:
        try:
            await works.service.forget(job)
        except NoJob as error:
            told.append(error)

    async with works.running():
        await anyio.sleep(5)
        works.service.cancel(job)
        async with anyio.create_task_group() as asking:
            asking.start_soon(ask)
            asking.start_soon(ask)
    assert len(told) == 1
