"""The job service: the one place where things happen to jobs.

An event is written to the store, then applied to the state, then told to the subscribers: what is
known is on the disk. Used from the event loop alone. Knows nothing of trainers, engines
or HTTP.
"""

from collections.abc import AsyncIterator, Callable
from typing import Self

import anyio
from anyio.lowlevel import checkpoint

from arcd.errors import BadJob, NoJob
from arcd.jobs import events
from arcd.jobs.events import Event, Record
from arcd.jobs.following import Feed, Line
from arcd.jobs.forgetting import delete, half_deleted
from arcd.jobs.journal import NewJob
from arcd.jobs.recovery import Recovery, plan
from arcd.jobs.state import FINISHED, Job, JobState, State
from arcd.jobs.store import Store

Subscriber = Callable[[Record], None]


class JobService:
    """The jobs of a home folder, open for work."""

    def __init__(self, store: Store, state: State | None = None) -> None:
        """`state` is that of the store, where it was folded already."""
        self.store = store
        self.state = store.journal.state() if state is None else state
        self.held: set[int] = set()
        """Jobs that are left alone until they are resumed."""
        self.foreign: dict[int, str] = {}
        """Jobs of another base model, by number, with its name. An adapter fits one base, and one
        job must not mix the answers of two."""
        self._deleting = anyio.Lock()
        self._submitting = anyio.Lock()
        """One job at a time: of two that ask for the same, the second must find the first."""
        self._feed = Feed(store.path, self.state.seq)
        self._subscribers: list[Subscriber] = [self._feed.hear]
        self._changed = anyio.Event()
        self._closed = False

    @classmethod
    def open(cls, store: Store, state: State, base: str, since: int) -> tuple[Self, Recovery]:
        """The service of a daemon with this base, and what to do about earlier daemons.

        `state` is that of the store. A job is held if its last request has a record number below
        `since`, or if it is of another base.
        """
        service = cls(store, state)
        recovery = plan(service.state, store.jobs.bases(), base, since)
        service.held = set(recovery.held)
        service.foreign = dict(recovery.foreign)
        return service, recovery

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call it with each record from now on, after the record was applied to the state."""
        self._subscribers.append(subscriber)

    def emit(self, job: int | None, *new: Event) -> None:
        """Make events of a job, or of the daemon, happen: all or none."""
        self.announce(*self.store.journal.append(job, *new))

    def announce(self, *records: Record) -> None:
        """Take in records that are in the store by now, and tell the subscribers."""
        for record in records:
            self.state.apply(record)
            for subscriber in self._subscribers:
                subscriber(record)
        self.wake()

    async def submit(self, new: NewJob) -> Job:
        """Take a job on; a large one in steps, between which others have their turn."""
        async with self._submitting:
            return await self._submit(new)

    async def take_up(self, new: NewJob, *, done: bool = False) -> Job:
        """Go on with an unfinished job that asks for the same, or take this one on.

        The submission of an unfinished job is written where the new one's would be, and no longer
        elsewhere. With `done`, a job that asks for the same and is done is enough, and none is
        written elsewhere than before.
        """
        async with self._submitting:
            return self._alike(new, done=done) or await self._submit(new)

    async def _submit(self, new: NewJob) -> Job:
        record: Record | None = None
        try:
            for record in self.store.journal.submitting(new):
                if record is None:
                    await checkpoint()
        finally:
            if record is None:
                self.store.journal.discard_unsubmitted()
        assert record is not None
        assert record.job is not None
        self.announce(record)
        return self.state.jobs[record.job]

    def _alike(self, new: NewJob, *, done: bool) -> Job | None:
        """The job to go on with instead of a new one that asks for the same."""
        alike = [self.state.jobs[number] for number in self.store.jobs.like(new)]
        for job in alike:
            if not job.finished:
                moved = not done and new.outs != self.store.jobs.outs(job.id)
                if moved:
                    self.store.journal.redirect(job.id, new.outs)
                return self.resume(job.id, anyway=moved)
        if done:
            for job in alike:
                if job.state is JobState.done:
                    return job
        return None

    def job(self, number: int) -> Job:
        """The job of this number; raises NoJob if there is none."""
        try:
            return self.state.jobs[number]
        except KeyError:
            raise NoJob(f"job {number}: there is no such job") from None

    def pause(self, number: int) -> Job:
        """Begin none of the job's tasks any more; tasks in flight are finished."""
        job = self._unfinished(number)
        if not job.paused:
            self.emit(number, events.Paused())
        return job

    def resume(self, number: int, *, anyway: bool = False) -> Job:
        """End a pause, or take up a job that is held; `anyway`: say so even where it is neither."""
        job = self._unfinished(number)
        self._check_base(number)
        if job.paused or number in self.held or anyway:
            self.emit(number, events.Resumed())
            self.held.discard(number)
            self.wake()
        return job

    def cancel(self, number: int) -> Job:
        """Leave the tasks without an answer unanswered; the answers there are stand."""
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

    async def forget(self, number: int) -> None:
        """Delete all that the store has of a finished job, when none of its tasks is in flight."""
        while (job := self.job(number)).in_flight or not job.finished:
            if not job.finished:
                raise BadJob(f"job {number}: it is not finished; cancel it first")
            await self.changed()
        with self.store.database.without_foreign_keys():  # its tasks go later
            self.emit(number, events.Forgotten())
        self.held.discard(number)
        self.foreign.pop(number, None)
        await self.delete_forgotten()

    async def delete_forgotten(self) -> None:
        """Delete what the store still has of forgotten jobs."""
        async with self._deleting:
            for number in half_deleted(self.store.database):
                for _ in delete(self.store.database, number):
                    await checkpoint()

    def close(self) -> None:
        """End every `follow`."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Let `changed` return."""
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self) -> None:
        """Return at the next event."""
        await self._changed.wait()

    async def follow(
        self, number: int, after: int = 0, *, brief: bool = False
    ) -> AsyncIterator[list[Line]]:
        """A job's records after number `after`, then each new one; ends with job or service.

        In brief, steps and samples of the past are left out that a screen does not need.
        """
        job = self.job(number)
        past = None
        if brief and after < self.state.seq:
            in_flight = [name for name, task in job.tasks.items() if task.in_flight]
            past = await self._feed.brief(number, self.state.seq, in_flight)
        while True:
            while after < self.state.seq:
                found = await self._feed.read(number, after, self.state.seq, past)
                after = found.end
                if found.lines:
                    yield found.lines
            # Nothing is awaited between the last look at the state and here: no event is missed.
            if job.finished or self._closed:
                return
            await self.changed()

    def _check_base(self, number: int) -> None:
        if number in self.foreign:
            raise BadJob(f"job {number}: it was given to another base, {self.foreign[number]}")

    def _unfinished(self, number: int) -> Job:
        job = self.job(number)
        if job.state in FINISHED:
            raise BadJob(f"job {number}: it is {job.state} already")
        return job
