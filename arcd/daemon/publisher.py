"""The publisher: writes each job's submission to its files whenever an answer has changed it.

A file is complete and valid from the job's submission on, and is replaced as a whole. One thread
writes, one job at a time. Answers that arrive meanwhile go into the next file, so 10 000 answers do
not cause 10 000 files. A file that cannot be written is tried again, and never ends the daemon.

The file in the home folder is arcd's own: every daemon brings it up to date. The further files
(`outs`) are their user's, who may have changed them, or given them to another job, since they were
written. So they are written only if an answer is missing in them, and only for a job that was asked
for or answered in this session: the lives of the daemons that one command keeps alive. Of several
jobs that name one file, only the one that was asked for last writes it. The store
remembers the last answer that was written. Knows nothing of who answers.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import anyio
from anyio import to_thread

from arcd.daemon.owners import Owners
from arcd.errors import ArcdError
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.job_table import NEVER, Published
from arcd.jobs.service import JobService
from arcd.jobs.store import Store
from arcd.system import files
from arcd.system.home import Home

REST_FACTOR = 4.0
"""After a file the publisher rests this many times as long as writing it took, so that writing
takes a fifth of the time at most. The last answers of a job, which somebody may wait for, do not
wait for that."""

RETRY_S = 1.0
"""Seconds until a file that could not be written is tried again; twice as long after each try."""

MOST_RETRY_S = 60.0

LEFT = "not written: the daemon ended before, and the job was not asked for since"

FORGOTTEN = "not written: the job was forgotten"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _File:
    """A file that is to have a job's submission."""

    path: Path
    has: int
    """Number of the last answer in it."""
    tried: int = NEVER
    """Number of the last answer when it could not be written."""
    reason: str = ""
    """Why it could not be written."""
    failures: int = 0
    """Since it was written last."""
    retry_at: float = 0.0

    def due(self, last: int) -> float:
        """When to write it so that it has answer `last`, in the event loop's time."""
        if self.has >= last:
            return math.inf
        return self.retry_at if self.tried >= last else 0.0

    def written(self, last: int) -> None:
        """Take in that it has answer `last` now."""
        if self.failures:
            log.info("%s: written at last", files.shown(self.path))
        self.has, self.reason, self.failures = last, "", 0

    def failed(self, last: int, reason: str, now: float) -> None:
        """Take in that it could not be written, and why."""
        if reason != self.reason:
            log.warning("%s: %s", files.shown(self.path), reason)
        self.tried, self.reason = last, reason
        self.retry_at = now + min(MOST_RETRY_S, RETRY_S * 2**self.failures)
        self.failures += 1


@dataclass(slots=True)
class _Publication:
    """The files of a job."""

    own: _File
    outs: list[_File] | None = None
    """None: they are left as they are."""


class Publisher:
    """Writes the submission files of the jobs of a service; used from the event loop alone."""

    def __init__(self, service: JobService, home: Home, began: int | None = None) -> None:
        """`began` is the last record before this session, if this is not its first daemon."""
        self._service, self._home = service, home
        self._stored = service.store.jobs.published()
        self._publications: dict[int, _Publication] = {}
        self._writing = anyio.Lock()
        self._told = anyio.Event()
        self._rested = 0.0
        self._owners = Owners()
        for job in sorted(service.state.jobs.values(), key=attrgetter("asked")):
            self._owners.take(job.id, service.store.jobs.outs(job.id))
        session = service.state.seq if began is None else began
        for job in service.state.jobs.values():
            if max(job.asked, job.changed) > session:
                self._take_on(job.id)
        self._behind = {job.id for job in service.state.jobs.values() if self._is_behind(job.id)}
        service.subscribe(self._hear)

    async def run(self) -> None:
        """Write what is behind, one job after the other, for ever."""
        while True:
            due, number = self._next()
            if due <= anyio.current_time():
                await self._publish(number, anyio.current_time())
                continue
            with anyio.CancelScope(deadline=due):
                await self._service.changed()

    async def flush(self) -> None:
        """Write what is behind now, whatever failed before: the last thing that a daemon does."""
        for number in sorted(self._behind):
            await self._publish(number, math.inf)

    async def settled(self, job: int) -> None:
        """Return when each file of a job has all answers, or could not be written with them."""
        while self._knows(job) and any(
            file.due(self._last(job)) == 0.0 for file in self._files(job)
        ):
            await self._told.wait()

    async def let_go(self, job: int) -> None:
        """Return when no file of a forgotten job is written any more."""
        async with self._writing:
            self._publications.pop(job, None)
            self._stored.pop(job, None)
        self._tell()

    def unpublished(self, job: int) -> dict[str, str]:
        """By path, why a file of a job does not have its last answers."""
        found = {files.shown(file.path): file.reason for file in self._files(job) if file.reason}
        left = self._service.state.jobs[job].finished and not self._writes_outs(job)
        if left and self._published(job).outs < self._last(job):
            found |= {files.shown(out): LEFT for out in self._service.store.jobs.outs(job)}
        for file in self._publication(job).outs or ():
            owner = self._owners.of(file.path)
            if owner != job and file.has < self._last(job):
                found[files.shown(file.path)] = f"not written: it belongs to job {owner} now"
        return found

    def _hear(self, record: Record) -> None:
        asked = isinstance(record.event, events.Submitted | events.Resumed | events.Retried)
        if record.job is not None and asked:
            self._owners.take(record.job, self._service.store.jobs.outs(record.job))
        if record.job is not None and (asked or isinstance(record.event, events.Answered)):
            self._take_on(record.job, anew=asked)
            self._behind.add(record.job)

    def _take_on(self, job: int, *, anew: bool = False) -> None:
        """From now on the job's outs are written, too; `anew`: they may be others than before."""
        publication = self._publication(job)
        if publication.outs is None or anew:
            kept = {file.path: file for file in publication.outs or ()}
            self._stored[job] = self._service.store.jobs.published_of(job)
            has, outs = self._published(job).outs, self._service.store.jobs.outs(job)
            publication.outs = [kept.get(out) or _File(out, has) for out in outs]

    def _publication(self, job: int) -> _Publication:
        if job not in self._publications:
            own = _File(self._home.submission(job), self._published(job).own)
            self._publications[job] = _Publication(own)
        return self._publications[job]

    def _published(self, job: int) -> Published:
        return self._stored.get(job, Published())

    def _writes_outs(self, job: int) -> bool:
        """A job that is held is left alone, and so are its outs."""
        return self._publication(job).outs is not None and job not in self._service.held

    def _files(self, job: int) -> list[_File]:
        """Those that may be written."""
        publication = self._publication(job)
        outs = publication.outs if self._writes_outs(job) else None
        owned = [file for file in outs or () if self._owners.of(file.path) == job]
        return [publication.own, *owned]

    def _knows(self, job: int) -> bool:
        """Whether the job is not forgotten."""
        return job in self._service.state.jobs

    def _last(self, job: int) -> int:
        return self._service.state.jobs[job].changed

    def _is_behind(self, job: int) -> bool:
        return any(file.has < self._last(job) for file in self._files(job))

    def _next(self) -> tuple[float, int]:
        """When to write next, and the job to be written; never, if nothing is behind."""
        self._behind &= self._service.state.jobs.keys()
        return min(((self._due(job), job) for job in self._behind), default=(math.inf, 0))

    def _due(self, job: int) -> float:
        due = min(file.due(self._last(job)) for file in self._files(job))
        ended = self._service.state.jobs[job].finished and self._writes_outs(job)
        return due if ended else max(due, self._rested)

    async def _publish(self, job: int, until: float) -> None:
        """Write the files of a job that are due by then, and remember how far they are."""
        async with self._writing:
            due = self._due_files(job, until) if self._knows(job) else []
            if due:
                await self._write_all(job, due)
            # It may be forgotten by now.
            if due and self._knows(job):
                self._remember(job)
            if not (self._knows(job) and self._is_behind(job)):
                self._behind.discard(job)
        self._tell()

    def _due_files(self, job: int, until: float) -> list[_File]:
        last = self._last(job)
        return [file for file in self._files(job) if file.has < last and file.due(last) <= until]

    def _tell(self) -> None:
        """Let those look again who wait for files."""
        self._told.set()
        self._told = anyio.Event()

    async def _write_all(self, job: int, due: Sequence[_File]) -> None:
        begun, wanted = anyio.current_time(), self._last(job)
        paths = [file.path for file in due]
        last, failed = await to_thread.run_sync(self._write, job, paths)
        now = anyio.current_time()
        self._rested = now + REST_FACTOR * (now - begun)
        for file in due:
            if reason := failed.get(file.path):
                file.failed(max(last, wanted), reason, now)
            else:
                file.written(last)

    def _remember(self, job: int) -> None:
        """Write down how far the files are, which are on the disk."""
        before, publication = self._published(job), self._publication(job)
        own = publication.own.has
        outs = before.outs
        if publication.outs is not None:
            outs = min((file.has for file in publication.outs), default=own)
        if before != (found := Published(own, outs)):
            try:
                self._service.store.jobs.keep_published(job, found)
            except ArcdError as error:
                log.warning("%s", error)
                return
            self._stored[job] = found

    def _write(self, job: int, paths: Sequence[Path]) -> tuple[int, dict[Path, str]]:
        """Write a job's submission; the last answer in it, and why which paths failed.

        Whatever goes wrong with a file is told: it must not end the daemon.
        """
        try:
            with closing(Store(self._home.path, "read")) as store, store.database.one_moment():
                if not store.jobs.has(job):
                    return NEVER, dict.fromkeys(paths, FORGOTTEN)
                text, last = store.jobs.submission_at(job)
        except Exception as error:
            return NEVER, dict.fromkeys(paths, f"not written: {error}")
        failed = {}
        for path in paths:
            try:
                if path == self._home.submission(job):
                    path.parent.mkdir(parents=True, exist_ok=True)
                files.replace_text(path, text)
            except Exception as error:
                failed[path] = str(error).removeprefix(f"{files.shown(path)}: ")
        return last, failed
