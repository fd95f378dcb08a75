"""The run folder: what is written while a run goes on can be read back, also after a kill."""

import json
from pathlib import Path

import pytest

from arcd import events, runs, submission
from arcd.errors import ArcdError, BadInput
from arcd.grids import Grid
from arcd.ledger import Ledger
from arcd.selection import Candidate, verdict
from arcd.tasks import Pair, Task, TaskSet
from arcd.views import identity

ONE: Grid = ((1, 2), (3, 4))
TWO: Grid = ((5,),)
TASKS = TaskSet(
    "two", tuple(Task(name, (Pair(ONE, TWO),), (ONE, TWO)) for name in "ab"), {"a": (TWO, ONE)}
)


def candidate(task: str, test: int, sample: int, grid: Grid | None) -> Candidate:
    view = identity(TASKS.tasks[0])
    return Candidate(task, test, view, (0,), sample, 3, grid, -0.5, 4)


SAMPLES = [candidate("a", 0, 0, TWO), candidate("a", 1, 0, None), candidate("a", 0, 1, ONE)]


def recorded(home: Path, *, out: Path | None = None) -> tuple[runs.Recorder, Path]:
    """A run in which task a is answered and b is in hand."""
    folder = runs.create(home, TASKS, {"base": "x"})
    recorder = runs.Recorder(folder, TASKS, (out,) if out else (), clock=lambda: 0.0)
    recorder(events.Started("a", 4, 4))
    recorder(events.Trained("a", 3, 2, 100, 1.5, 0.25))
    for sample in SAMPLES:
        recorder(events.Sampled("a", sample))
    recorder(events.Answered("a", verdict("a", 2, SAMPLES, 3, ("a note",))))
    recorder(events.Started("b", 4, 4))
    recorder(events.Sampled("b", candidate("b", 0, 0, ONE)))
    return recorder, folder


def test_a_new_run_has_a_complete_blank_submission(tmp_path: Path):
    folder = runs.create(tmp_path, TASKS, {})
    read = submission.read(folder / "submission.json")
    assert read == {name: [[submission.BLANK] * 2] * 2 for name in "ab"}


def test_two_runs_in_one_second_have_folders_of_their_own(tmp_path: Path):
    assert runs.create(tmp_path, TASKS, {}) != runs.create(tmp_path, TASKS, {})


def test_what_was_recorded_can_be_read_back(tmp_path: Path):
    recorder, folder = recorded(tmp_path)
    recorder.close(Ledger().account())
    run = runs.Run.open(folder)
    assert list(run.candidates()) == [*SAMPLES, candidate("b", 0, 0, ONE)]
    assert run.samples()["a"] == [[TWO, ONE], [None]]
    assert run.tasks.tasks == TASKS.tasks
    assert run.tasks.solutions == TASKS.solutions
    assert run.notes("a") == ["a note"]
    (record,) = run.records()
    assert record["trained"]["loss"] == 0.25
    assert json.loads((folder / "ledger.json").read_text())["lanes"].keys() == {
        "trainer",
        "engine",
        "host",
    }


def test_the_submission_holds_every_answer_as_soon_as_it_is_known(tmp_path: Path):
    out = tmp_path / "submission.json"
    recorder, _ = recorded(tmp_path, out=out)
    read = submission.read(out)
    assert read["a"] == [[ONE, TWO], [submission.BLANK] * 2]
    assert read["b"] == [[submission.BLANK] * 2] * 2
    recorder.close(Ledger().account())


def test_a_line_torn_by_a_kill_is_not_read(tmp_path: Path):
    recorder, folder = recorded(tmp_path)
    recorder.close(Ledger().account())
    path = folder / "candidates.jsonl"
    path.write_text(path.read_text() + '{"task": "b", "te')
    assert len(list(runs.Run.open(folder).candidates())) == 4


def test_an_adapter_does_not_outlive_its_task(tmp_path: Path):
    folder = runs.create(tmp_path, TASKS, {})
    adapter = folder / "adapters" / "adapter-3"
    adapter.mkdir(parents=True)
    recorder = runs.Recorder(folder, TASKS)
    recorder(events.Started("a", 1, 1))
    assert adapter.exists()
    recorder(events.Answered("a", verdict("a", 2, (), 3)))
    assert not adapter.exists()
    recorder.close(Ledger().account())


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="not a run folder"):
        runs.Run.open(tmp_path)


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArcdError, match="file"):
        runs.create(tmp_path / "file", TASKS, {})
