"""The job service: the one place where things happen to jobs.

An event is stored first, then applied to the state, then told to whoever listens.

Whatever is emitted is on the disk before anybody can know of it. Used from the event loop alone.
Knows nothing of trainers, engines or HTTP.
"""

from collections.abc import AsyncIterator, Callable
from itertools import islice

import anyio

from arcd.errors import BadJob, NoJob
from arcd.jobs import events
from arcd.jobs.events import Event, Record
from arcd.jobs.state import FINISHED, Job, JobState, State
from arcd.jobs.store import NewJob, Store

BATCH = 500
"""Records read from the store at once for somebody who follows."""


class JobService:
    """The jobs of a home folder, open for work."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.state: State = store.state()
        self.held: set[int] = set()
        """Unfinished jobs that this daemon leaves alone until they are resumed."""
        self.foreign: dict[int, str] = {}
        """Jobs of another base model, by number: adapters fit one base, and answers of two would
        be mixed."""
        self.listeners: list[Callable[[Record], None]] = []
        """Called with each record, after it has been applied."""
        self._changed = anyio.Event()
        self._closed = False

    def emit(self, job: int | None, *new: Event) -> None:
        """Make events of a job, or of the daemon, happen: all or none."""
        self._happened(self.store.append(job, *new))

    def submit(self, new: NewJob) -> Job:
        """Take a job on."""
        record = self.store.submit(new)
        self._happened([record])
        assert record.job is not None
        return self.state.jobs[record.job]

    def take_up(self, new: NewJob, *, done: bool = False) -> Job:
        """Go on with an unfinished job that asks for the same, or take this one on.

        With `done` a job that is done will do, too.
        """
        alike = [self.state.jobs[number] for number in self.store.like(new)]
        for job in alike:
            if not job.finished:
                return self.resume(job.id)
        if done:
            for job in alike:
                if job.state is JobState.done:
                    return job
        return self.submit(new)

    def job(self, number: int) -> Job:
        """The job of this number; raises NoJob if there is none."""
        try:
            return self.state.jobs[number]
        except KeyError:
            raise NoJob(f"job {number}: there is no such job") from None

    def pause(self, number: int) -> Job:
        """Begin none of the job's tasks any more; what is in hand is finished."""
        job = self._unfinished(number)
        if not job.paused:
            self.emit(number, events.Paused())
        return job

    def resume(self, number: int) -> Job:
        """End a pause, or take up a job that this daemon was told to leave alone."""
        job = self._unfinished(number)
        self._check_base(number)
        if job.paused or number in self.held:
            self.emit(number, events.Resumed())
            self.held.discard(number)
            self.wake()
        return job

    def cancel(self, number: int) -> Job:
        """Leave what is not answered unanswered; the answers there are stand."""
        job = self._unfinished(number)
        self.emit(number, events.Cancelled())
        return job

    def retry(self, number: int) -> Job:
        """Do the job's failed and doubtful tasks once more; their candidates are kept."""
        job = self.job(number)
        if job.cancelled:
            raise BadJob(f"job {number}: it was cancelled")
        self._check_base(number)
        names = job.retriable()
        if not names:
            raise BadJob(f"job {number}: none of its answers is failed or doubtful")
        self.emit(number, events.Retried(tuple(names)))
        return job

    def close(self) -> None:
        """Let go of everybody who follows."""
        self._closed = True
        self.wake()

    async def changed(self) -> None:
        """Return at the next event."""
        await self._changed.wait()

    async def follow(self, number: int, after: int = 0) -> AsyncIterator[Record]:
        """A job's records after number `after`, then each new one; ends with job or service."""
        job = self.job(number)
        while True:
            # Before reading: what happens after that wakes us again.
            changed, finished = self._changed, job.finished
            while batch := list(islice(self.store.records(after, number), BATCH)):
                after = batch[-1].seq
                for record in batch:
                    yield record
            if finished or self._closed:
                return
            await changed.wait()

    def _check_base(self, number: int) -> None:
        if number in self.foreign:
            raise BadJob(f"job {number}: it was given to another base, {self.foreign[number]}")

    def _unfinished(self, number: int) -> Job:
        job = self.job(number)
        if job.state in FINISHED:
            raise BadJob(f"job {number}: it is {job.state} already")
        return job

    def _happened(self, records: list[Record]) -> None:
        for record in records:
            self.state.apply(record)
            for listener in self.listeners:
                listener(record)
        self.wake()

    def wake(self) -> None:
        """Let those who wait for a change look again."""
        self._changed.set()
        self._changed = anyio.Event()
