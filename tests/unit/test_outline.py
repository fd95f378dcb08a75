"""The outline and the sheets of a job tell what its store tells."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scale import Shape, make_store
from support.small import candidate, solutions, task
from support.stores import ROOT, TASKS, opened
from support.strategies import Happening, lives

from arcd.arc import metrics
from arcd.arc.grids import Grid, to_text
from arcd.arc.selection import Candidate, verdict
from arcd.arc.submission import BLANK, Attempts
from arcd.arc.tasks import TaskSet
from arcd.config import resolve
from arcd.jobs import events, outline
from arcd.jobs.events import Record
from arcd.jobs.history import History
from arcd.jobs.journal import new_job
from arcd.jobs.schema import VERSION
from arcd.jobs.sheets import sheets
from arcd.jobs.state import JobState, Phase
from arcd.jobs.store import Store, path_in


def since_its_daemon(store: Store, job: int) -> list[Record]:
    """The records of a job and of daemons, from the start of the daemon that it was given to."""
    found: list[Record] = []
    there = False
    for record in store.journal.records():
        if isinstance(record.event, events.DaemonStarted) and not there:
            found.clear()
        there |= record.job == job
        if record.job in (job, None):
            found.append(record)
    return found


@given(lives())
def test_the_outline_is_the_history_without_grids(
    tmp_path_factory: pytest.TempPathFactory, lived: list[Happening]
) -> None:
    with opened(tmp_path_factory.mktemp("home")) as store:
        for job, event in lived:
            store.journal.append(job, event)
        for job in {job for job, _ in lived if job is not None}:
            whole = History.of(job, since_its_daemon(store, job), {})
            found = outline.history(store.database, job)
            assert found.state.jobs == whole.state.jobs
            assert found.state.training == whole.state.training
            assert found.spans() == whole.spans()
            assert found.losses == whole.losses
            assert (found.deaths, found.notices) == (whole.deaths, whole.notices)
            assert (found.at, found.ended, found.ledger) == (whole.at, whole.ended, whole.ledger)


def test_of_a_curve_the_first_and_the_last_points_are_kept_and_no_more_than_are_asked_for() -> None:
    history = History(1, points=8)
    names = ("a",)
    history.apply(events.Record(1, 0.0, 1, events.Submitted("job", 10, names)))
    history.apply(events.Record(2, 0.0, 1, events.Started("a", 1000, 4)))
    for step in range(1, 1001):
        history.take_step(float(step), events.Training("a", step, 1000, 1 / step, 10.0))
        curve = history.losses["a"]
        assert len(curve) <= 8
        assert (curve[0], curve[-1]) == ((1, 1.0), (step, 1 / step))


ONE, TWO = task("one"), task("two", tests=2)
KNOWN = solutions([ONE, TWO])
GRIDS: tuple[Grid | None, ...] = (None, *KNOWN["two"], ((1, 2, 3),), ((1,), (2,), (3,)), ((0,),))


@st.composite
def drawn(draw: st.DrawFn) -> list[Candidate]:
    """Samples of two tasks, some by an adapter and some by the base; some tests may have none."""
    asked = draw(st.lists(st.sampled_from([(ONE, 0), (TWO, 0), (TWO, 1)]), max_size=12))
    places: Counter[tuple[str, int]] = Counter()
    found = []
    for of, test in asked:
        sample = places[of.id, test]
        places[of.id, test] += 1
        adapter = draw(st.sampled_from([None, 3]))
        found.append(candidate(of, test, sample, draw(st.sampled_from(GRIDS)), adapter))
    return found


@given(drawn(), st.integers(0, 12), st.booleans())
def test_sheets_tell_what_the_store_tells(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Candidate], voted: int, known: bool
) -> None:
    """The verdicts are on the first samples; those after them were drawn later."""
    tasks = TaskSet("two", (TWO, ONE), KNOWN if known else {})
    with opened(tmp_path_factory.mktemp("home")) as store:
        store.journal.submit(new_job("job", 10, tasks, resolve()))
        store.journal.append(1, *(events.Sampled(each.task, each) for each in samples))
        for of in tasks.tasks:
            if voted:
                mine = [each for each in samples[:voted] if each.task == of.id]
                found = verdict(of.id, len(of.tests), mine, 3)
                store.journal.append(1, events.Answered(of.id, found))
        found_sheets = list(sheets(store.database, 1))
        assert [sheet.task for sheet in found_sheets] == ["two", "one"]
        verdicts = {each.task: each for each in store.jobs.verdicts(1)}
        all_samples = store.jobs.samples(1)
        for sheet, of in zip(found_sheets, tasks.tasks, strict=True):
            assert sheet.train == [(to_text(p.input), to_text(p.output)) for p in of.train]
            assert sheet.tests == [to_text(test) for test in of.tests]
            assert [+each for each in sheet.drawn] == [
                Counter(None if grid is None else to_text(grid) for grid in test)
                for test in all_samples[of.id]
            ]
            its = verdicts.get(of.id)
            assert [[(vote.grid, vote.count) for vote in test] for test in sheet.ranked] == [
                [(to_text(vote.grid), vote.count) for vote in test]
                for test in (its.ranked if its else [()] * len(of.tests))
            ]
            assert sheet.answered == (its is not None)
            right = its.right(KNOWN[of.id]) / len(of.tests) if its and known else None
            assert sheet.right == right


@given(drawn())
def test_the_metrics_of_sheets_are_those_of_the_store(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Candidate]
) -> None:
    with opened(tmp_path_factory.mktemp("home")) as store:
        store.journal.submit(new_job("job", 10, TaskSet("two", (TWO, ONE), KNOWN), resolve()))
        store.journal.append(1, *(events.Sampled(each.task, each) for each in samples))
        found = verdict("two", 2, [each for each in samples if each.task == "two"], 3)
        store.journal.append(1, events.Answered("two", found))
        padded: list[list[Grid | None]] = [[*test, BLANK, BLANK] for test in found.attempts]
        attempts: Attempts = {"one": [[BLANK, BLANK]], "two": [test[:2] for test in padded]}
        whole = metrics.evaluate(KNOWN, attempts, store.jobs.samples(1))
        for sheet in sheets(store.database, 1):
            assert sheet.metrics() == whole.tasks[sheet.task]


def test_a_store_made_for_measurements_is_like_one_of_a_daemon(tmp_path: Path) -> None:
    first = make_store(tmp_path, 40, Shape(answered=0.5, in_flight=2, samples=4, side=2))
    second = make_store(tmp_path, 10, Shape(samples=4, steps=3, side=2))
    with opened(tmp_path, "read") as store:
        jobs = store.journal.state().jobs
        assert +jobs[first].counts == {Phase.answered: 20, Phase.trained: 2, Phase.waiting: 18}
        assert jobs[second].state is JobState.done
        of_a_task = [r for r in store.journal.records(job=second) if r.job == second]
        assert len(of_a_task) == 1 + 10 * (1 + 3 + 1 + 4 + 1) + 1
        for job in (first, second):
            found = list(sheets(store.database, job))
            assert sum(sheet.answered for sheet in found) == jobs[job].counts[Phase.answered]
            for sheet, (name, each) in zip(found, jobs[job].tasks.items(), strict=True):
                assert (sheet.task, sheet.samples) == (name, 4 if sheet.answered else 0)
                assert sum(drawn.total() for drawn in sheet.drawn) == each.sampled
        assert {sheet.right for sheet in sheets(store.database, second)} == {0.0, 1.0}


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_stores_of_released_versions_have_sheets_and_outlines(tmp_path: Path, version: int) -> None:
    shutil.copy(ROOT / "tests" / "data" / f"store-v{version}.db", path_in(tmp_path))
    with opened(tmp_path, "read") as store:
        found = {sheet.task: sheet for sheet in sheets(store.database, 1)}
        assert list(found) == [each.id for each in TASKS.tasks]
        assert found["b"].truth == [to_text(true) for true in TASKS.solutions["b"]]
        assert (found["a"].answered, found["a"].samples, found["a"].invalid) == (True, 3, 1)
        assert [each.total() for each in found["b"].drawn] == [1, 1]
        whole = History.of(1, since_its_daemon(store, 1), {})
        assert outline.history(store.database, 1).spans() == whole.spans()
