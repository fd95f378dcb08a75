"""The store: what is in it comes back, all of it or none, whatever dies, fills up or is refused.

Each `tests/data/store-vN.db` was written by `keep(Path("tests/data"))` of this file, when N was the
version, and stays as it is: it must load for ever.
"""

import json
import os
import random
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small import candidate, grid, task
from support.strategies import EVENTS, Happening, lives
from support.strategies import tasks as any_tasks

from arcd.arc import submission
from arcd.arc.grids import Grid
from arcd.arc.selection import Verdict, verdict
from arcd.arc.tasks import Pair, Task, TaskSet
from arcd.config import Config, resolve
from arcd.errors import StoreFailed
from arcd.jobs import events, schema
from arcd.jobs.database import Mode
from arcd.jobs.events import Record, Times
from arcd.jobs.journal import NewJob
from arcd.jobs.schema import VERSION
from arcd.jobs.state import JobState, Phase, State
from arcd.jobs.store import Store, path_in
from arcd.system import files

# Of this file alone: the stores that are kept must not change with helpers.
ONE, TWO = ((1, 2), (3, 4)), ((5,),)
B = Task("b", (Pair(ONE, TWO), Pair(TWO, ONE)), (ONE, TWO))
A = Task("a", (Pair(ONE, TWO),), (ONE,))
TASKS = TaskSet("two", (B, A), {"b": (TWO, ONE)})
JOB = NewJob("job", 10, TASKS, resolve(settings=["train.steps=3"], seed=5), (Path("/o.json"),))


@contextmanager
def opened(
    home: Path, mode: Mode = "write", *, clock: Callable[[], float] = time.time
) -> Iterator[Store]:
    store = Store(home, mode, clock=clock)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A new store with one job."""
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
        yield store


def sampled(
    of: Task = A, test: int = 0, sample: int = 0, shown: Grid | None = ((1,),)
) -> events.Sampled:
    return events.Sampled(of.id, candidate(of, test, sample, shown))


def live(store: Store, lived: list[Happening]) -> State:
    """Let it all happen; the state as it was folded meanwhile."""
    state = State()
    for job, event in lived:
        if isinstance(event, events.Submitted):
            tasks = TaskSet(event.name, tuple(task(name) for name in event.tasks), {})
            happened = [store.journal.submit(NewJob(event.name, event.priority, tasks, Config()))]
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
    job = NewJob(name, 3, TaskSet(name, tuple(tasks), known), JOB.config, (Path("a"), Path("/b")))
    with opened(tmp_path_factory.mktemp("home")) as store:
        store.journal.submit(JOB)
        record = store.journal.submit(job)
        assert record.job == 2
        assert record.event == events.Submitted(name, 3, tuple(task.id for task in tasks))
        assert store.jobs.tasks(2) == job.tasks
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
    twice = replace(JOB, tasks=TaskSet("twice", (A, B, A), {}))
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


# Unclean ends.

Keep = Callable[[str], None]
"""Called with each SQL statement, before it is run."""


def copies(home: Path, folder: Path) -> tuple[list[Path], Keep]:
    """Copies of a home before each statement on its store, as a kill would leave it; their list
    grows."""
    made: list[Path] = []

    def keep(statement: str) -> None:
        made.append(folder / f"{len(made)}")
        shutil.copytree(home, made[-1])

    return made, keep


def contents(home: Path) -> list[object]:
    """All that a store has to say of job 1."""
    with opened(home) as store:
        journal, jobs, facts = store.journal, store.jobs, store.facts
        there = jobs.has(1)
        return [
            list(journal.records()),
            [jobs.tasks(1), jobs.submission(1)] if there else [],
            [list(jobs.candidates(1)), list(jobs.verdicts(1))],
            facts.measured("here"),
            facts.serial(),
        ]


def test_a_store_that_is_dropped_at_any_statement_has_what_was_done_and_nothing_else(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    found = [candidate(A, 0, i) for i in range(2)]
    with opened(home, clock=iter(range(99)).__next__) as store:
        acts: list[Callable[[], object]] = [
            lambda: store.journal.submit(JOB),
            lambda: store.journal.append(None, events.DaemonReady(1.0)),
            store.facts.serial,
            lambda: store.journal.append(1, sampled(), events.Noted("a", "x" * 9000)),
            lambda: store.journal.append(1, sampled(sample=1), sampled(B)),
            lambda: store.journal.append(1, events.Answered("a", verdict("a", 1, found, None))),
            lambda: store.facts.keep_measured("here", {"a": 1}),
        ]
        made, keep = copies(home, tmp_path)
        done: list[tuple[range, Path]] = []
        store.database.connection.set_trace_callback(keep)
        for act in acts:
            first = len(made)
            act()
            whole = tmp_path / f"after {first}"
            shutil.copytree(home, whole)
            done.append((range(first, len(made)), whole))
    before = contents(shutil.copytree(made[0], tmp_path / "before"))
    for statements, whole in done:
        assert len(statements) >= 3
        for each in statements:
            assert contents(made[each]) == before
        after = contents(whole)
        assert after != before
        before = after


def test_a_store_that_is_dropped_at_any_statement_of_its_migration_is_migrated_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(DATA / "store-v1.db", path_in(home))
    made, keep = copies(home, tmp_path)
    migrate = schema.migrate

    def watched(connection: sqlite3.Connection, found: int) -> int:
        connection.set_trace_callback(keep)
        return migrate(connection, found)

    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrate", watched)
        whole = contents(home)
    assert len(made) >= 4
    for each in made:
        assert contents(each) == whole


@pytest.fixture(scope="module")
def dead(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A home as a kill after 21 appends leaves it, and how long its log was one append before."""
    living, home = tmp_path_factory.mktemp("living"), tmp_path_factory.mktemp("dead") / "home"
    with opened(living) as store:
        store.journal.submit(JOB)
        for i in range(20):
            store.journal.append(1, sampled(sample=i), events.Noted("a", "x" * 300))
            store.facts.serial()
        size = store.path.with_name("arcd.db-wal").stat().st_size
        store.journal.append(1, sampled(sample=20), events.Noted("a", "y" * 9000))
        shutil.copytree(living, home)
    return home, size


def check_whole(home: Path, *, appends: int) -> None:
    """Just so many appends of the dead are there, and work goes on."""
    with opened(home) as store:
        assert [c.sample for c in store.jobs.candidates(1)] == list(range(appends))
        assert len(list(store.journal.records())) == 1 + 2 * appends
        assert store.journal.state().jobs[1].tasks["a"].sampled == appends
        assert store.facts.serial() == 20
        store.journal.append(1, sampled(sample=appends))
    with opened(home) as store:
        assert len(list(store.jobs.candidates(1))) == appends + 1


def test_a_store_that_is_dropped_loses_nothing_that_it_committed(
    dead: tuple[Path, int], tmp_path: Path
) -> None:
    shutil.copytree(dead[0], tmp_path / "home")
    check_whole(tmp_path / "home", appends=21)


@pytest.mark.parametrize("index", ["kept", "gone"])
@settings(max_examples=20)
@given(data=st.data())
def test_a_torn_last_write_costs_that_write_alone(
    dead: tuple[Path, int],
    tmp_path_factory: pytest.TempPathFactory,
    index: str,
    data: st.DataObject,
) -> None:
    home = tmp_path_factory.mktemp("torn") / "home"
    shutil.copytree(dead[0], home)
    log = home / "arcd.db-wal"
    torn = data.draw(st.integers(dead[1], log.stat().st_size - 1))
    os.truncate(log, torn)
    if index == "gone":  # as after a power cut
        (home / "arcd.db-shm").unlink()
    check_whole(home, appends=20)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 20_000))
def test_garbage_behind_the_last_write_is_no_harm(
    dead: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
) -> None:
    home = tmp_path_factory.mktemp("garbage") / "home"
    shutil.copytree(dead[0], home)
    with (home / "arcd.db-wal").open("ab") as log:
        log.write(random.Random(seed).randbytes(size))
    check_whole(home, appends=21)


@settings(max_examples=20)
@given(data=st.data())
def test_a_last_write_of_which_other_bytes_reached_the_disk_is_as_if_it_never_was(
    dead: tuple[Path, int], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    home = tmp_path_factory.mktemp("flipped") / "home"
    shutil.copytree(dead[0], home)
    (home / "arcd.db-shm").unlink()
    with (home / "arcd.db-wal").open("r+b") as log:
        place = data.draw(st.integers(dead[1], os.path.getsize(log.name) - 1))
        log.seek(place)
        (byte,) = log.read(1)
        log.seek(place)
        log.write(bytes([byte ^ 1 << data.draw(st.integers(0, 7))]))
    check_whole(home, appends=20)


# No room.


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes; Python ignores the signal that comes with that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = events.Noted("a", "x" * 50_000)


@pytest.mark.parametrize("room", [0, 1, 4000, 4096, 9000, 20_000, 50_000])
def test_a_log_that_may_not_grow_fails_one_append_and_works_when_there_is_room(
    store: Store, room: int
) -> None:
    store.journal.append(1, sampled())
    before = list(store.journal.records())
    log = store.path.with_name("arcd.db-wal")
    with full_after(log.stat().st_size + room):
        for _ in range(2):
            with pytest.raises(StoreFailed, match=f"^{store.path}: [^\n]+$"):
                store.journal.append(1, sampled(sample=1), LARGE)
        with pytest.raises(StoreFailed, match=f"^{store.path}: [^\n]+$"):
            store.journal.submit(replace(JOB, name="x" * 50_000))
        assert list(store.journal.records()) == before
        assert len(list(store.jobs.candidates(1))) == 1
    store.journal.append(1, sampled(sample=1), LARGE)
    assert store.facts.serial() == 0
    assert store.journal.submit(JOB).job == 2
    assert [c.sample for c in store.jobs.candidates(1)] == [0, 1]


def test_a_disk_that_is_full_fails_one_append_and_works_when_there_is_room(store: Store) -> None:
    pages = store.database.connection.execute("PRAGMA page_count").fetchone()[0]
    store.database.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    before = list(store.journal.records())
    for _ in range(2):
        with pytest.raises(StoreFailed, match=f"^{store.path}: database or disk is full$"):
            store.journal.append(1, sampled(), LARGE)
    assert list(store.journal.records()) == before
    assert list(store.jobs.candidates(1)) == []
    store.database.connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    store.journal.append(1, sampled(), LARGE)
    assert store.journal.state().jobs[1].tasks["a"].sampled == 1


def test_a_disk_without_room_for_a_new_store_leaves_one_that_can_be_made_later(
    tmp_path: Path,
) -> None:
    with full_after(0), pytest.raises(StoreFailed, match=f"^{path_in(tmp_path)}: [^\n]+$"):
        Store(tmp_path)
    with opened(tmp_path) as store:
        assert store.journal.submit(JOB).job == 1


# What cannot be opened.


def refusal(home: Path, mode: Mode = "write") -> str:
    with pytest.raises(StoreFailed) as caught:
        Store(home, mode)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_home_that_is_a_file_or_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert refusal(file) == f"{file}/arcd.db: Not a directory"
    assert refusal(tmp_path / "none") == f"{tmp_path}/none/arcd.db: No such file or directory"


def test_a_folder_in_the_place_of_the_store_is_named(tmp_path: Path) -> None:
    path_in(tmp_path).mkdir()
    assert refusal(tmp_path) == f"{tmp_path}/arcd.db: Is a directory"


ROOT = Path(__file__).parents[2]

READ_ONLY = """
import os, sys
from pathlib import Path
from arcd.errors import StoreFailed
from arcd.jobs.store import Store
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Store(Path(sys.argv[1]))
except StoreFailed as error:
    print(error)
"""


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_a_home_in_which_this_user_may_not_write_is_named(there: bool) -> None:
    # Not under tmp_path, in which nobody else may look; root drops its rights in the child.
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if there:
            with opened(home) as store:
                store.journal.submit(JOB)
            path_in(home).chmod(0o444)
        home.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, folder],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        home.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}/arcd.db: Permission denied\n"


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path, mode: Mode) -> None:
    path_in(tmp_path).write_bytes(b"something else\n" * 500)
    assert refusal(tmp_path, mode) == f"{tmp_path}/arcd.db: file is not a database"
    assert path_in(tmp_path).read_bytes() == b"something else\n" * 500


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("version", [VERSION + 1, VERSION + 100, -1])
def test_a_store_of_another_version_is_refused_and_left_alone(
    tmp_path: Path, mode: Mode, version: int
) -> None:
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
    with sqlite3.connect(path_in(tmp_path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    assert refusal(tmp_path, mode) == (
        f"{tmp_path}/arcd.db: a store of version {version}, this arcd reads version {VERSION}: "
        "use the arcd that made it, or another --home"
    )
    connection = sqlite3.connect(path_in(tmp_path))
    assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_database_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, mode: Mode) -> None:
    with sqlite3.connect(path_in(tmp_path)) as connection:
        connection.execute("CREATE TABLE events (mine)")
    connection.close()
    assert refusal(tmp_path, mode).startswith(f"{tmp_path}/arcd.db: a store of version 0, ")
    connection = sqlite3.connect(path_in(tmp_path))
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("events",)]
    connection.close()


@pytest.mark.parametrize("size", [0, 1, 50, 99, 100, 1000, 4096, 6000])
def test_a_store_cut_short_is_refused_or_made_anew_but_never_half_read(
    tmp_path: Path, size: int
) -> None:
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
    os.truncate(path_in(tmp_path), size)
    if size <= 1:  # Nothing, to SQLite.
        with opened(tmp_path) as store:
            assert list(store.journal.records()) == []
    else:
        with pytest.raises(StoreFailed, match=f"^{tmp_path}/arcd.db: "), opened(tmp_path) as store:
            list(store.journal.records())


def test_a_home_whose_name_means_something_in_an_address_can_be_read(tmp_path: Path) -> None:
    home = tmp_path / "a?b#c%20d"
    home.mkdir()
    with opened(home) as store:
        store.journal.submit(JOB)
    with opened(home, mode="read") as store:
        assert len(list(store.journal.records())) == 1


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


# Stores of released versions, for ever.

DATA = Path(__file__).parents[1] / "data"


def keep(folder: Path) -> None:
    """Write a store of this version for the tests of all later ones."""
    with tempfile.TemporaryDirectory() as home:
        with opened(Path(home), clock=map(float, count(1_700_000_000)).__next__) as store:
            _fill(store)
            store.database.connection.execute("VACUUM")
        shutil.copy(path_in(Path(home)), folder / f"store-v{VERSION}.db")


def _fill(store: Store) -> None:
    """A job that is done, retried and under way again, one that waits, and a daemon that died."""
    found = [candidate(A, 0, 0), candidate(A, 0, 1, None), candidate(A, 0, 2, ((2,),))]
    store.journal.append(None, events.DaemonStarted(7, "0.1.0", "base", "f", "cpu", "bfloat16"))
    store.journal.append(None, events.DaemonReady(1.5))
    store.journal.submit(JOB)
    store.journal.append(1, events.Started("b", 6, 4, Times(1.5, 0.5)))
    store.journal.append(1, events.Training("b", 1, 3, 0.5, 100.0))
    store.journal.append(1, events.Trained("b", store.facts.serial(), 3, 300, 2.0, 0.25, 1 << 30))
    store.journal.append(1, sampled(B, 0, 0), sampled(B, 1, 0))
    store.journal.append(1, events.Interrupted("b"))
    store.journal.append(1, events.Started("a", 6, 3), events.Noted("a", "a note"))
    store.journal.append(1, *(events.Sampled("a", each) for each in found))
    store.journal.append(1, events.Answered("a", verdict("a", 1, found, None, ("a note",))))
    store.journal.append(1, events.Retried(("a",)), events.Started("a", 6, 3), events.Released("a"))
    store.journal.submit(replace(JOB, name="second", outs=()))
    store.journal.append(2, events.Paused(), events.Resumed(), events.Paused())


@pytest.mark.parametrize("version", range(1, VERSION + 1))
@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_store_of_each_version_loads_for_ever(tmp_path: Path, version: int, mode: Mode) -> None:
    shutil.copy(DATA / f"store-v{version}.db", path_in(tmp_path))
    with opened(tmp_path, mode=mode) as store:
        state = store.journal.state()
        first, second = state.jobs[1], state.jobs[2]
        assert (first.name, first.state, second.name, second.state) == (
            "job",
            JobState.running,
            "second",
            JobState.paused,
        )
        b, a = first.tasks["b"], first.tasks["a"]
        assert (b.phase, b.deaths, b.adapter, b.sampled) == (Phase.waiting, 1, 0, 2)
        assert (a.phase, a.round, a.notes) == (Phase.waiting, 1, ("a note",))
        assert a.answer is not None
        assert (a.answer.best, a.answer.samples, a.answer.invalid) == ((1,), 3, 1)
        assert state.daemon is not None
        assert (state.daemon.pid, state.ready) == (7, True)
        assert store.jobs.tasks(1) == replace(TASKS, name="job")
        assert store.jobs.config(1).train.steps == 3
        assert (store.jobs.outs(1), store.jobs.outs(2)) == ((Path("/o.json"),), ())
        assert [c.grid for c in store.jobs.candidates(1, "a")] == [((1,),), None, ((2,),)]
        assert json.loads(store.jobs.submission(1))["a"] == submission.entry([(((1,),), ((2,),))])
        if mode == "write":
            assert store.facts.serial() == 1
            store.journal.append(1, events.Started("b", 6, 2), sampled(B, 0, 1))
            assert store.facts.measured("here") is None
            store.facts.keep_measured("here", {"a": 1})
            assert store.facts.measured("here") == {"a": 1}


def test_an_old_store_that_was_opened_has_the_tables_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    shutil.copy(DATA / "store-v1.db", path_in(tmp_path / "old"))
    for name in ("old", "new"):
        with opened(tmp_path / name):
            pass
    old, new = (sqlite3.connect(path_in(tmp_path / name)) for name in ("old", "new"))
    columns = (
        'SELECT m.name, c.name, c.type, c."notnull", c.pk FROM sqlite_master m, '
        "pragma_table_info(m.name) c ORDER BY m.name, c.name"
    )
    assert old.execute(columns).fetchall() == new.execute(columns).fetchall()
    assert old.execute("PRAGMA user_version").fetchone() == (VERSION,)
    old.close()
    new.close()


def test_what_was_measured_of_one_platform_is_not_anothers(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.facts.keep_measured("one", [1])
        store.facts.keep_measured("two", [2])
        store.facts.keep_measured("one", [3])
        assert (store.facts.measured("one"), store.facts.measured("two")) == ([3], [2])


def test_the_store_that_is_kept_is_what_this_version_writes(tmp_path: Path) -> None:
    """Fails when the schema or the events change without a new version."""
    keep(tmp_path)
    kept, new = (sqlite3.connect(folder / f"store-v{VERSION}.db") for folder in (DATA, tmp_path))
    assert list(kept.iterdump()) == list(new.iterdump())
    kept.close()
    new.close()
