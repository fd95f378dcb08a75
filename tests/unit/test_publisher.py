"""The publisher: which files a daemon writes, when, and what becomes of those that it cannot write.

A `Life` is a publisher on the store of a home; the next one on it is the next daemon. Its thread is
taken by the event loop, and a write takes `SECONDS`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from support import virtual
from support.small import candidate
from support.stores import JOB, TASKS, opened, take_on

from arcd.arc import submission
from arcd.arc.selection import verdict
from arcd.daemon import publisher as module
from arcd.daemon.publisher import LEFT, MOST_RETRY_S, RETRY_S, Publisher
from arcd.errors import StoreFailed
from arcd.jobs import events
from arcd.jobs.forgetting import delete
from arcd.jobs.job_table import JobTable, Published
from arcd.jobs.service import JobService
from arcd.jobs.store import Store
from arcd.system import files
from arcd.system.home import Home

pytestmark = pytest.mark.anyio

SECONDS = 0.25
BY_NAME = {task.id: task for task in TASKS.tasks}
TESTS = {name: len(task.tests) for name, task in BY_NAME.items()}
NAMES = tuple(TESTS)


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_sync(function: Callable[..., Any], *arguments: object) -> Any:
        found = function(*arguments)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(SECONDS)
        return found

    monkeypatch.setattr(module, "to_thread", SimpleNamespace(run_sync=run_sync))


class Disk:
    """Counts the files that are written, and is full where it is told to be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full: set[Path] = set()
        self.error: Exception = OSError(28, "No space left on device")
        self.written: list[Path] = []
        self.tried: list[float] = []
        write = files._replace

        def replacing(target: Path, *rest: Any) -> None:
            self.tried.append(anyio.current_time())
            if target in self.full:
                raise self.error
            write(target, *rest)
            self.written.append(target)

        monkeypatch.setattr(files, "_replace", replacing)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Life:
    """A daemon's publisher on a home that is open for writing."""

    def __init__(self, store: Store, held: Sequence[int], began: int | None) -> None:
        self.home, self.store = Home(store.path.parent), store
        self.service = JobService(store)
        self.service.held = set(held)
        self.publisher = Publisher(self.service, self.home, began)

    def submit(self, *outs: Path) -> int:
        return take_on(self.service, replace(JOB, outs=outs)).id

    def answer(self, job: int, *names: str) -> None:
        for name in names:
            samples = [candidate(BY_NAME[name], test) for test in range(TESTS[name])]
            found = verdict(name, TESTS[name], samples, None)
            self.service.emit(job, events.Answered(name, found))

    def finish(self, job: int) -> None:
        self.answer(job, *NAMES)
        assert self.service.job(job).finished

    async def settle(self, seconds: float = 10.0) -> None:
        """Publish for so long."""
        with anyio.move_on_after(seconds):
            await self.publisher.run()

    def has_all(self, path: Path, job: int) -> bool:
        return path.read_text() == self.store.jobs.submission(job)


@contextmanager
def life(home: Path, *, held: Sequence[int] = (), began: int | None = None) -> Iterator[Life]:
    with opened(home) as store:
        yield Life(store, held, began)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


# What is written.


async def test_a_file_is_there_from_the_submission_on_and_has_each_answer(
    home: Path, out: Path
) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        await daemon.settle()
        blank = {name: [[submission.BLANK] * 2] * tests for name, tests in TESTS.items()}
        assert submission.read(out) == blank
        assert submission.read(daemon.home.submission(job)) == blank
        for name in NAMES:
            daemon.answer(job, name)
            await daemon.settle()
            for path in (out, daemon.home.submission(job)):
                assert daemon.has_all(path, job)
        last = daemon.service.job(job).changed
        assert daemon.store.jobs.published() == {job: Published(last, last)}


async def test_answers_that_arrive_during_a_write_go_into_the_next_file(
    home: Path, out: Path, disk: Disk
) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        async with anyio.create_task_group() as publishing:
            publishing.start_soon(daemon.publisher.run)
            await anyio.sleep(SECONDS / 2)
            for _ in range(100):
                daemon.answer(job, NAMES[0])
            await anyio.sleep(10)
            publishing.cancel_scope.cancel()
        assert disk.written.count(out) == 2
        assert daemon.has_all(out, job)


async def test_writing_takes_a_fifth_of_the_time_but_the_last_answers_do_not_wait(
    home: Path, out: Path, disk: Disk
) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        async with anyio.create_task_group() as publishing:
            publishing.start_soon(daemon.publisher.run)
            for _ in range(400):
                await anyio.sleep(SECONDS / 10)
                daemon.answer(job, NAMES[0])
            assert disk.written.count(out) == pytest.approx(400 / 10 / 5, abs=1)
            await anyio.sleep(10)
            daemon.answer(job, NAMES[0])
            await anyio.sleep(1.1 * SECONDS)
            daemon.answer(job, NAMES[1])
            await anyio.sleep(1.1 * SECONDS)
            assert daemon.has_all(out, job)
            publishing.cancel_scope.cancel()


async def test_what_is_behind_is_written_before_the_daemon_ends(home: Path, out: Path) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.answer(job, NAMES[0])
        await daemon.publisher.flush()
        assert daemon.has_all(out, job)


# What is left alone.


async def test_what_an_earlier_daemon_has_written_is_not_written_again(
    home: Path, out: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.json"
    with life(home) as daemon:
        job = daemon.submit(out, gone)
        daemon.finish(job)
        await daemon.settle()
    out.write_text("merged by hand")
    gone.unlink()
    for began in (None, 0):
        with life(home, began=began) as daemon:
            await daemon.settle()
            await daemon.publisher.flush()
            assert daemon.publisher.unpublished(job) == {}
    assert out.read_text() == "merged by hand"
    assert not gone.exists()


async def test_a_daemon_brings_its_own_file_up_to_date_and_no_other(home: Path, out: Path) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        await daemon.settle()
        daemon.finish(job)
    out.write_text("another job's")
    with life(home) as daemon:
        await daemon.settle()
        assert daemon.has_all(daemon.home.submission(job), job)
        assert daemon.publisher.unpublished(job) == {str(out): LEFT}
    assert out.read_text() == "another job's"


async def test_a_daemon_that_replaces_a_dead_one_writes_what_that_has_not(
    home: Path, out: Path
) -> None:
    with life(home) as daemon:
        before = daemon.submit(out)
        daemon.finish(before)
        began = daemon.store.journal.last()
    with life(home, began=began) as daemon:
        job = daemon.submit(out)
        daemon.finish(job)
    with life(home, began=began) as daemon:
        await daemon.settle()
        assert daemon.has_all(out, job)
        assert daemon.publisher.unpublished(job) == {}
        assert daemon.publisher.unpublished(before) == {str(out): LEFT}


async def test_an_unfinished_job_is_written_with_its_next_answer(home: Path, out: Path) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.answer(job, NAMES[0])
    with life(home) as daemon:
        await daemon.settle()
        assert not out.exists()
        daemon.answer(job, NAMES[1])
        await daemon.settle()
        assert daemon.has_all(out, job)


async def test_a_job_that_is_held_is_left_alone_until_it_is_resumed(home: Path, out: Path) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.answer(job, NAMES[0])
    out.write_text("another job's")
    with life(home, held=[job], began=0) as daemon:
        await daemon.settle()
        await daemon.publisher.flush()
        assert out.read_text() == "another job's"
        assert daemon.has_all(daemon.home.submission(job), job)
        daemon.service.resume(job)
        await daemon.settle()
        assert daemon.has_all(out, job)


async def test_a_job_that_is_resumed_leaves_a_file_that_has_all_its_answers(
    home: Path, out: Path
) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.answer(job, NAMES[0])
        await daemon.settle()
    out.write_text("merged by hand")
    with life(home, held=[job]) as daemon:
        daemon.service.resume(job)
        await daemon.settle()
        assert out.read_text() == "merged by hand"
        daemon.answer(job, NAMES[1])
        await daemon.settle()
        assert daemon.has_all(out, job)


@pytest.mark.parametrize("same_life", [True, False])
async def test_a_job_that_is_taken_up_is_written_to_its_new_file_at_once_and_no_longer_to_the_old(
    home: Path, out: Path, tmp_path: Path, same_life: bool
) -> None:
    new = tmp_path / "new.json"
    again = replace(JOB, outs=(new,))
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.answer(job, NAMES[0])
        await daemon.settle()
        if same_life:
            assert (await daemon.service.take_up(again)).id == job
            await daemon.settle()
            assert daemon.has_all(new, job)
    out.write_text("another job's")
    with life(home, held=[] if same_life else [job]) as daemon:
        assert (await daemon.service.take_up(again)).id == job
        await daemon.settle()
        assert daemon.has_all(new, job)
        daemon.finish(job)
        await daemon.settle()
        assert daemon.has_all(new, job)
        assert out.read_text() == "another job's"


async def test_a_file_counts_as_written_only_when_it_is(home: Path, out: Path, disk: Disk) -> None:
    disk.full = {out}
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.finish(job)
        await daemon.publisher.flush()
        last = daemon.service.job(job).changed
        assert daemon.store.jobs.published()[job] == Published(own=last)


# What fails.


async def test_who_waits_for_a_job_is_let_go_when_its_files_have_all_answers(
    home: Path, out: Path
) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.finish(job)
        async with anyio.create_task_group() as publishing:
            publishing.start_soon(daemon.publisher.run)
            await daemon.publisher.settled(job)
            assert daemon.has_all(out, job)
            assert daemon.has_all(daemon.home.submission(job), job)
            assert daemon.publisher.unpublished(job) == {}
            publishing.cancel_scope.cancel()


async def test_who_waits_is_told_why_a_file_could_not_be_written(
    home: Path, out: Path, disk: Disk
) -> None:
    disk.full = {out}
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.finish(job)
        async with anyio.create_task_group() as publishing:
            publishing.start_soon(daemon.publisher.run)
            await daemon.publisher.settled(job)
            reason = "not written: No space left on device"
            assert daemon.publisher.unpublished(job) == {str(out): reason}
            assert daemon.has_all(daemon.home.submission(job), job)
            publishing.cancel_scope.cancel()


async def test_a_file_is_tried_again_less_and_less_often_until_there_is_room(
    home: Path, out: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.full = {out}
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.finish(job)
        await daemon.settle(1000)
        waited = [later - earlier - SECONDS for earlier, later in pairwise(disk.tried[1:])]
        assert waited[:3] == pytest.approx([RETRY_S, 2 * RETRY_S, 4 * RETRY_S])
        assert waited[-1] == pytest.approx(MOST_RETRY_S)
        assert caplog.text.count("No space left") == 1
        disk.full = set()
        await daemon.settle(MOST_RETRY_S + 1)
        assert daemon.has_all(out, job)
        assert daemon.publisher.unpublished(job) == {}
        assert disk.written.count(daemon.home.submission(job)) == 1
        last = daemon.service.job(job).changed
        assert daemon.store.jobs.published()[job] == Published(last, last)


async def test_a_new_answer_is_a_new_try(home: Path, out: Path, disk: Disk) -> None:
    disk.full = {out}
    with life(home) as daemon:
        job = daemon.submit(out)
        await daemon.settle(1000)
        disk.full = set()
        daemon.answer(job, NAMES[0])
        await daemon.settle(5)
        assert daemon.has_all(out, job)


@pytest.mark.parametrize("path", ["/nowhere/\0.json", "/tmp/\ud800.json", "/" + "x" * 300])
async def test_a_path_that_no_system_takes_is_a_failed_path_and_not_the_end(
    home: Path, out: Path, path: str
) -> None:
    """A store of an earlier version may have one."""
    with life(home) as daemon:
        job = daemon.submit(Path(path), out)
        daemon.finish(job)
        await daemon.settle()
        assert daemon.has_all(out, job)
        (failed,) = daemon.publisher.unpublished(job)
        json.dumps(failed, ensure_ascii=False).encode()
        assert failed.isprintable()
    with life(home) as daemon:
        await daemon.settle()


@pytest.mark.parametrize("error", [ValueError("odd"), RuntimeError("odd"), MemoryError("odd")])
async def test_no_error_of_any_kind_ends_the_publisher(
    home: Path, out: Path, disk: Disk, error: Exception
) -> None:
    disk.full, disk.error = {out}, error
    with life(home) as daemon:
        job = daemon.submit(out)
        await daemon.settle()
        assert "odd" in daemon.publisher.unpublished(job)[str(out)]
        disk.full = set()
        await daemon.publisher.flush()
        assert daemon.has_all(out, job)


async def test_a_store_that_cannot_be_read_or_written_now_is_tried_again(
    home: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreFailed("disk I/O error")

    for method in ("submission_at", "keep_published"):
        with life(home) as daemon, monkeypatch.context() as patch:
            job = daemon.submit(out)
            patch.setattr(JobTable, method, fail)
            await daemon.settle()
            patch.undo()
            daemon.answer(job, NAMES[0])
            await daemon.publisher.flush()
            assert daemon.has_all(out, job)
            assert daemon.publisher.unpublished(job) == {}


# What is forgotten.


async def forget(daemon: Life, job: int) -> None:
    """As the daemon does it, but without the folder."""
    await daemon.service.forget(job)
    await daemon.publisher.let_go(job)


async def test_a_job_that_is_forgotten_while_it_is_written_is_no_error(
    home: Path, out: Path
) -> None:
    with life(home) as daemon:
        job, other = daemon.submit(out), daemon.submit()
        daemon.finish(job)
        async with anyio.create_task_group() as publishing:
            publishing.start_soon(daemon.publisher.run)
            publishing.start_soon(daemon.publisher.settled, job)
            await anyio.sleep(SECONDS / 2)
            await forget(daemon, job)
            await daemon.publisher.settled(job)
            await anyio.sleep(10)
            assert daemon.has_all(daemon.home.submission(other), other)
            publishing.cancel_scope.cancel()
        await daemon.publisher.flush()


async def test_a_file_keeps_the_answers_of_a_job_that_is_forgotten_before_it_is_read(
    home: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with life(home) as daemon:
        job = daemon.submit(out)
        daemon.finish(job)
        await daemon.publisher.flush()
        before = out.read_text()
        daemon.answer(job, NAMES[0])
        publisher = daemon.publisher
        write = publisher._write

        def forgotten_first(number: int, paths: Sequence[Path]) -> Any:
            with daemon.store.database.without_foreign_keys():
                daemon.service.emit(number, events.Forgotten())
            assert list(delete(daemon.store.database, number))
            return write(number, paths)

        monkeypatch.setattr(publisher, "_write", forgotten_first)
        await publisher.flush()
        assert out.read_text() == before


async def test_a_file_belongs_to_the_job_that_asked_for_it_last(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    other = tmp_path / "folder" / ".." / "o.json"
    (tmp_path / "folder").mkdir()
    with life(home) as daemon:
        old = daemon.submit(out)
        new = daemon.submit(other)
        daemon.finish(new)
        await daemon.settle()
        daemon.answer(old, NAMES[0])
        await daemon.settle()
        assert daemon.has_all(out, new)
        assert f"belongs to job {new}" in daemon.publisher.unpublished(old)[str(out)]
    with life(home) as daemon:
        daemon.answer(old, NAMES[0])
        await daemon.settle()
        assert daemon.has_all(out, new)
        daemon.service.emit(old, events.Resumed())
        daemon.finish(old)
        await daemon.settle()
        assert daemon.has_all(out, old)
        assert daemon.publisher.unpublished(old) == {}
