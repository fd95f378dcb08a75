"""The publisher: writes each job's submission file whenever an answer has changed it.

A file is complete and valid from the job's submission on, and is replaced as a whole. One thread
writes, one file at a time. Answers that arrive meanwhile go into the next file, so 10 000 answers
do not cause 10 000 files. Knows nothing of who answers.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from anyio import to_thread

from arcd.errors import ArcdError
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.service import JobService
from arcd.jobs.store import Store
from arcd.system import files
from arcd.system.home import Home

REST_FACTOR = 4.0
"""After a file the publisher rests this many times as long as writing it took: writing takes a
fifth of the time at most."""

log = logging.getLogger(__name__)


class Publisher:
    """Writes the submission files of the jobs of a service."""

    def __init__(
        self, service: JobService, home: Home, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._service, self._home, self._clock = service, home, clock
        self._writing = threading.Lock()
        # A daemon that did not end in order may not have written its last answers.
        left = service.state.left
        jobs = service.state.jobs.values()
        self._stale = {job.id for job in jobs if not job.finished or job.changed > left}
        service.subscribe(self._hear)

    async def run(self) -> None:
        """Write stale files, one after the other, for ever."""
        while True:
            if self._stale:
                begun = self._clock()
                await to_thread.run_sync(self._publish_one)
                await anyio.sleep(REST_FACTOR * (self._clock() - begun))
            else:
                await self._service.changed()

    def flush(self) -> None:
        """Write all stale files now; the last thing before the daemon ends."""
        while self._publish_one():
            pass

    def _publish_one(self) -> bool:
        """Write one stale job, if there is one; locked, so that no older text is written last."""
        with self._writing:
            try:
                job = self._stale.pop()
            except KeyError:
                return False
            self.publish(job)
        return True

    def publish(self, job: int) -> None:
        """Write a job's submission to all its paths; a path that fails is a line in the log."""
        store = Store(self._home.path, "read")
        try:
            text, outs = store.jobs.submission(job), store.jobs.outs(job)
        finally:
            store.close()
        own = self._home.submission(job)
        own.parent.mkdir(parents=True, exist_ok=True)
        for path in (own, *outs):
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        try:
            files.write_text(path, text)
        except ArcdError as error:
            log.warning("%s", error)

    def _hear(self, record: Record) -> None:
        if record.job is not None and isinstance(record.event, events.Submitted | events.Answered):
            self._stale.add(record.job)
