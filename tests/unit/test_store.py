"""The store: what is in it comes back, all of it or none, also to others who read."""

import json
import stat
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import candidate, grid, task
from support.stores import JOB, TASKS, A, B, opened, sampled
from support.strategies import EVENTS, Happening, lives
from support.strategies import tasks as any_tasks

from arcd.arc import submission
from arcd.arc.grids import Grid
from arcd.arc.selection import Verdict, verdict
from arcd.arc.tasks import Task, TaskSet
from arcd.config import Config
from arcd.errors import StoreFailed
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.journal import new_job
from arcd.jobs.state import State
from arcd.jobs.store import Store
from arcd.system import files


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store with one job."""
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
        yield store


def live(store: Store, lived: list[Happening]) -> State:
    """Let it all happen; the state as it was folded meanwhile."""
    state = State()
    for job, event in lived:
        if isinstance(event, events.Submitted):
            tasks = TaskSet(event.name, tuple(task(name) for name in event.tasks), {})
            happened = [store.journal.submit(new_job(event.name, event.priority, tasks, Config()))]
        else:
            happened = store.journal.append(job, event)
        for record in happened:
            state.apply(record)
    return state


# What goes in comes out.


def test_each_kind_of_event_is_known() -> None:
    assert set(EVENTS) == set(get_args(events.Event))


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.__name__)
def test_an_event_survives_its_text_and_a_record_its_json(kind: type[events.Event]) -> None:
    @given(EVENTS[kind], st.none() | st.integers(1, 9), st.floats(0, 1e12))
    def survives(event: events.Event, job: int | None, at: float) -> None:
        assert events.load(events.kind(event), events.dump(event)) == event
        record = Record(7, at, job, event)
        assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record

    survives()


@settings(max_examples=15)
@given(st.lists(st.one_of(*EVENTS.values()), max_size=8))
def test_what_is_appended_is_read_in_its_order(
    tmp_path_factory: pytest.TempPathFactory, happened: list[events.Event]
) -> None:
    numbers = count()
    # No two candidates alike, and none of a task that is not there.
    happened = [
        replace(e, candidate=replace(e.candidate, sample=next(numbers)))
        if isinstance(e, events.Sampled)
        else e
        for e in happened
    ]
    with opened(tmp_path_factory.mktemp("home"), clock=iter(range(99)).__next__) as store:
        first = store.journal.append(4, *happened[:3])
        second = store.journal.append(5, *happened[3:])
        assert [record.event for record in first + second] == happened
        assert [record.job for record in first + second] == [4] * len(first) + [5] * len(second)
        assert [record.seq for record in first + second] == list(range(1, len(happened) + 1))
        assert list(store.journal.records()) == first + second


@settings(max_examples=15)
@given(st.lists(any_tasks(), min_size=1, unique_by=lambda task: task.id), st.text(), st.booleans())
def test_a_job_comes_back_as_it_was_submitted(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[Task], name: str, solved: bool
) -> None:
    known = {tasks[0].id: tasks[0].tests} if solved else {}
    given = TaskSet(name, tuple(tasks), known)
    job = new_job(name, 3, given, JOB.config, (Path("a"), Path("/b")))
    with opened(tmp_path_factory.mktemp("home")) as store:
        store.journal.submit(JOB)
        record = store.journal.submit(job)
        assert record.job == 2
        assert record.event == events.Submitted(name, 3, tuple(task.id for task in tasks))
        assert store.jobs.tasks(2) == given
        assert [store.jobs.task(2, task.id) for task in tasks] == tasks
        assert store.jobs.config(2) == job.config
        assert store.jobs.outs(2) == job.outs


@settings(max_examples=25)
@given(lives())
def test_replaying_the_events_gives_the_state(
    tmp_path_factory: pytest.TempPathFactory, lived: list[Happening]
) -> None:
    home = tmp_path_factory.mktemp("home")
    with opened(home) as store:
        state = live(store, lived)
        assert store.journal.state() == state
    with opened(home) as store:
        assert store.journal.state() == state
    with opened(home, mode="read") as store:
        assert store.journal.state() == state


def test_records_of_a_job_are_read_from_any_point_with_the_daemons_since_it_is_there(
    store: Store,
) -> None:
    store.journal.append(None, events.DaemonReady(1.0))
    store.journal.submit(JOB)
    store.journal.append(2, events.Paused())
    store.journal.append(1, events.Cancelled())
    assert [(record.seq, record.job) for record in store.journal.records()] == [
        (1, 1),
        (2, None),
        (3, 2),
        (4, 2),
        (5, 1),
    ]
    assert [record.seq for record in store.journal.records(after=3)] == [4, 5]
    assert [record.seq for record in store.journal.records(job=1)] == [1, 2, 5]
    assert [record.seq for record in store.journal.records(job=2)] == [3, 4]
    assert [record.seq for record in store.journal.records(after=3, job=2)] == [4]
    assert list(store.journal.records(after=5)) == []
    assert store.journal.last() == 5


def test_a_new_store_has_no_last_record(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.journal.last() == 0


def test_the_records_of_a_job_are_read_from_any_point_without_reading_all(store: Store) -> None:
    store.journal.append(None, *[events.DaemonReady(float(i)) for i in range(2000)])
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    store.database.connection.set_progress_handler(step, 10)
    assert next(store.journal.records(after=5, job=1)).seq == 6
    assert steps < 20


# Candidates, verdicts and submissions.


def test_candidates_are_found_by_their_task_in_the_order_in_which_they_finished(
    store: Store,
) -> None:
    store.journal.append(1, sampled(B, 1, 1), sampled(A, 0, 1, None))
    store.journal.append(1, sampled(B, 0, 7), sampled(A, 0, 0))
    assert [(c.task, c.test, c.sample) for c in store.jobs.candidates(1)] == [
        ("b", 1, 1),
        ("a", 0, 1),
        ("b", 0, 7),
        ("a", 0, 0),
    ]
    assert [c.sample for c in store.jobs.candidates(1, "a")] == [1, 0]
    assert store.jobs.samples(1) == {"b": [[((1,),)], [((1,),)]], "a": [[None, ((1,),)]]}
    assert list(store.jobs.candidates(2)) == []


def test_verdicts_come_in_the_order_of_the_file(store: Store) -> None:
    for name in ("a", "b"):
        store.journal.append(1, events.Answered(name, verdict(name, 1, [], None)))
    assert [found.task for found in store.jobs.verdicts(1)] == ["b", "a"]


def test_a_later_verdict_takes_the_place_of_an_earlier_one(store: Store) -> None:
    first = verdict("a", 1, [candidate(A)], None)
    second = verdict("a", 1, [candidate(A, grid=((2,),))], None)
    store.journal.append(1, events.Answered("a", first))
    store.journal.append(1, events.Retried(("a",)))
    store.journal.append(1, events.Answered("a", second))
    assert list(store.jobs.verdicts(1)) == [second]
    assert json.loads(store.jobs.submission(1)) == submission.of(TASKS.tasks, {"a": second})


def test_the_submission_is_complete_from_the_first_moment(store: Store) -> None:
    assert json.loads(store.jobs.submission(1)) == submission.blank(TASKS.tasks)
    assert list(json.loads(store.jobs.submission(1))) == ["b", "a"]


def answered(of: Task, shown: Iterable[Grid | None]) -> Verdict:
    return verdict(of.id, len(of.tests), [candidate(of, 0, i, g) for i, g in enumerate(shown)], 3)


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.sampled_from([A, B]), st.lists(st.none() | st.sampled_from([((1,),), grid(2, 3)]))
    )
)
def test_the_submission_is_that_of_the_verdicts(
    tmp_path_factory: pytest.TempPathFactory, shown: dict[Task, list[Grid | None]]
) -> None:
    found = {of.id: answered(of, grids) for of, grids in shown.items()}
    with opened(tmp_path_factory.mktemp("home")) as store:
        store.journal.submit(JOB)
        for name, each in found.items():
            store.journal.append(1, events.Answered(name, each))
        assert json.loads(store.jobs.submission(1)) == submission.of(TASKS.tasks, found)
        path = store.path.with_name("submission.json")
        files.write_text(path, store.jobs.submission(1))
        assert list(submission.read(path)) == ["b", "a"]


# All or nothing.


def test_a_finished_sample_cannot_be_stored_twice(store: Store) -> None:
    store.journal.append(1, sampled())
    with pytest.raises(StoreFailed, match=r"arcd\.db: UNIQUE constraint failed"):
        store.journal.append(1, sampled(shown=((2,),)))
    assert [c.grid for c in store.jobs.candidates(1)] == [((1,),)]
    store.journal.append(1, sampled(sample=1), sampled(B))
    store.journal.submit(JOB)
    store.journal.append(2, sampled())


def test_of_events_that_cannot_all_happen_none_does(store: Store) -> None:
    store.journal.append(1, sampled())
    before = list(store.journal.records())
    with pytest.raises(StoreFailed):
        store.journal.append(
            1,
            sampled(sample=1),
            events.Answered("a", verdict("a", 1, [candidate(A)], None)),
            sampled(),
        )
    assert list(store.journal.records()) == before
    assert len(list(store.jobs.candidates(1))) == 1
    assert list(store.jobs.verdicts(1)) == []
    assert json.loads(store.jobs.submission(1)) == submission.blank(TASKS.tasks)
    (record,) = store.journal.append(1, sampled(sample=1))
    assert record.seq == before[-1].seq + 1


def test_a_job_that_cannot_be_taken_on_leaves_nothing(store: Store) -> None:
    twice = replace(JOB, tasks=(*JOB.tasks, JOB.tasks[0]))
    with pytest.raises(StoreFailed):
        store.journal.submit(twice)
    assert len(list(store.journal.records())) == 1
    assert store.journal.submit(JOB).job == 2
    assert len(store.jobs.tasks(2).tasks) == 2


def test_serials_never_repeat(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        given = [store.facts.serial() for _ in range(3)]
    with opened(tmp_path) as store:
        given += [store.facts.serial() for _ in range(3)]
    assert given == list(range(6))


# Others who read.


def test_who_reads_sees_what_is_committed_while_another_writes(store: Store) -> None:
    with opened(store.path.parent, mode="read") as reader:
        assert len(list(reader.journal.records())) == 1
        under_way = reader.journal.records()
        next(under_way)
        store.journal.append(1, events.Paused())
        assert list(under_way) == []
        assert [record.event for record in reader.journal.records(after=1)] == [events.Paused()]
        assert reader.journal.state() == store.journal.state()
        assert reader.jobs.submission(1) == store.jobs.submission(1)


def test_who_reads_cannot_write(store: Store) -> None:
    with opened(store.path.parent, mode="read") as reader:
        with pytest.raises(StoreFailed, match="readonly"):
            reader.journal.append(1, events.Paused())
        with pytest.raises(StoreFailed, match="readonly"):
            reader.facts.serial()
        assert len(list(reader.journal.records())) == 1


def test_a_home_without_jobs_has_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match=f"^{tmp_path}: no jobs here$"):
        Store(tmp_path, "read")
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_nobody_elses(store: Store) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    log = store.path.with_name("arcd.db-wal")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


# Clocks.


def test_a_clock_that_is_set_back_changes_no_order_and_makes_no_time_negative(
    tmp_path: Path,
) -> None:
    times = iter([1000.0, 900.0, 800.0, 10.0])
    with opened(tmp_path, clock=times.__next__) as store:
        store.journal.submit(JOB)
        for event in (
            events.Started("a", 1, 1),
            sampled(),
            events.Answered("a", verdict("a", 1, [candidate(A)], None)),
        ):
            store.journal.append(1, event)
        found = list(store.journal.records())
        assert [record.seq for record in found] == [1, 2, 3, 4]
        assert [record.at for record in found] == [1000.0, 900.0, 800.0, 10.0]
        assert store.journal.state().jobs[1].tasks["a"].seconds == 0
