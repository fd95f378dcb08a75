"""The intake: a large job is read in slices, and nothing else changes."""

import anyio
import pytest
from support import virtual
from support.small import task, task_set
from support.works import FEW, Build

from arcd.jobs import events
from arcd.jobs.state import JobState
from arcd.scheduling import intake

pytestmark = pytest.mark.anyio

SIDES = (5, 2, 8, 3, 7, 4, 6)
TASKS = task_set(*(task(f"t{side}", side=side) for side in SIDES), task("other"))
LARGE = TASKS.tasks[:-1]


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@pytest.mark.parametrize("slice_", [2, 100])
async def test_the_order_of_a_job_does_not_depend_on_its_slices(
    build: Build, monkeypatch: pytest.MonkeyPatch, slice_: int
) -> None:
    monkeypatch.setattr(intake, "SLICE", slice_)
    works = build(TASKS)
    works.submit(*LARGE, settings=[*FEW, "order=cheapest"])
    await works.finish()
    assert works.names(events.Started) == [f"t{side}" for side in sorted(SIDES)]


async def test_a_job_is_cancelled_while_it_is_read(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SLICE", 1)
    works = build(TASKS)
    async with works.running():
        job = works.submit(*LARGE)
        await anyio.lowlevel.checkpoint()
        works.service.cancel(job)
        other = works.submit(task("other"))
        await works.until(lambda state: state.jobs[other].state is JobState.done)
    assert works.names(events.Started) == ["other"]


async def test_jobs_are_read_one_after_the_other(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SLICE", 2)
    works = build(TASKS)
    works.submit(*LARGE)
    works.submit(*LARGE)
    await works.finish()
    assert {job.state for job in works.service.state.jobs.values()} == {JobState.done}
