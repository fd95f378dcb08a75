"""The scheduler with ten thousand tasks on a virtual clock: its memory and its own time."""

import cProfile
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from support import virtual
from support.works import Build, Trainer, same

from arcd import config
from arcd.config import resolve
from arcd.jobs import events, state
from arcd.jobs.events import Record
from arcd.jobs.service import JobService
from arcd.jobs.state import JobState, Phase
from arcd.scheduling import fair_queue, forecast, scheduler

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


MANY = 10_000


@contextmanager
def profiled(
    profile: cProfile.Profile, service: JobService, first: int, last: int
) -> Iterator[None]:
    """The profile runs from the `first` answer to the `last` one."""
    answered = 0

    def listen(record: Record) -> None:
        nonlocal answered
        if isinstance(record.event, events.Answered):
            answered += 1
            if answered == first:
                profile.enable()
            elif answered == last:
                profile.disable()

    service.subscribe(listen)
    yield
    profile.disable()


def seconds_in(profile: cProfile.Profile, *modules: ModuleType) -> float:
    """Seconds in functions of these modules and in what is written in C that they call."""
    files = {module.__file__ for module in modules}
    return sum(
        entry.inlinetime
        for entry in profile.getstats()
        if not isinstance(entry.code, str) and entry.code.co_filename in files
    )


@pytest.mark.full
@pytest.mark.timing
@pytest.mark.timeout(600)
async def test_ten_thousand_tasks_take_neither_memory_nor_the_schedulers_time(build: Build) -> None:
    """With the real store, but for the disk's own time: nothing is waited for to reach it.

    The scheduler's time is that in the functions of scheduler, fair_queue, state and forecast, as
    cProfile tells it for a thousand tasks in the middle; profiling makes that rather too much.
    """
    tiny = ["train.steps=1", "train.batch_size=1", "sample.samples=1"]
    works = build(
        same(MANY, side=1, pairs=2),
        config=resolve(settings=tiny),
        trainer=Trainer(seconds_per_step=1.0),
    )
    works.store.database.connection.execute("PRAGMA synchronous = OFF")
    works.trainer.folder = None
    works.submit(settings=tiny)
    profile = cProfile.Profile(builtins=False)
    resident: dict[int, int] = {}

    async def measure(answered: int) -> None:
        await works.until(lambda state: state.jobs[1].counts[Phase.answered] >= answered)
        works.trainer.asked.clear()
        resident[answered] = resident_bytes()

    with profiled(profile, works.service, 4000, 5000):
        async with works.running():
            await measure(1000)
            await measure(MANY)
    per_task = seconds_in(profile, scheduler, fair_queue, state, forecast, config) / 1000
    grown = resident[MANY] - resident[1000]
    print(f"{per_task * 1e3:.3f} ms and {grown / (MANY - 1000):.0f} bytes for each task")
    assert works.service.state.jobs[1].state is JobState.done
    assert per_task < 1e-3
    assert grown < 16 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
