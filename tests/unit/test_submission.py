import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small import grid
from support.strategies import grids

from arcd.arc import submission
from arcd.arc.grids import Grid
from arcd.arc.selection import Verdict, Vote
from arcd.arc.submission import Attempts, Mode, Submission
from arcd.arc.tasks import Pair, Task, load
from arcd.errors import ArcdError, BadSubmission
from arcd.system import files

A, B, C, D = (grid(1, 1, colour) for colour in (1, 2, 3, 4))
NONE: Grid = ((0,),)
PAIR = Pair(A, B)
TASKS = (Task("b", (PAIR,), (A, B)), Task("a", (PAIR,), (A,)))


def entry(first: Grid, second: Grid = NONE) -> dict[str, list[list[int]]]:
    return {"attempt_1": [list(row) for row in first], "attempt_2": [list(row) for row in second]}


def verdict(task: str, *tests: Sequence[Grid]) -> Verdict:
    ranked = tuple(tuple(Vote(grid, 1, 0.0) for grid in grids) for grids in tests)
    return Verdict(task, ranked, 4, 0, None)


def test_a_blank_submission_has_every_task_and_test_in_the_order_of_their_file() -> None:
    found = submission.blank(TASKS)
    assert list(found) == ["b", "a"]
    assert found == {"b": [entry(NONE), entry(NONE)], "a": [entry(NONE)]}


def test_a_submission_has_exactly_the_ids_and_lengths_of_its_task_file() -> None:
    tasks = load("arc1-eval:50").tasks
    found = submission.of(tasks, {tasks[3].id: verdict(tasks[3].id, (A,))})
    assert [(i, len(tests)) for i, tests in found.items()] == [(t.id, len(t.tests)) for t in tasks]


def test_verdicts_fill_in_their_two_best_grids() -> None:
    found = submission.of(TASKS, {"b": verdict("b", (A, B, C), (D, A)), "a": verdict("a", (B, C))})
    assert found == {"b": [entry(A, B), entry(D, A)], "a": [entry(B, C)]}


def test_a_single_answer_is_not_repeated() -> None:
    assert submission.of(TASKS[1:], {"a": verdict("a", (A,))}) == {"a": [entry(A, NONE)]}


def test_a_test_or_task_without_an_answer_is_blank() -> None:
    found = submission.of(TASKS, {"b": verdict("b", (), (D,)), "other": verdict("other", (A,))})
    assert found == {"b": [entry(NONE), entry(D)], "a": [entry(NONE)]}


def test_the_entry_of_a_task_is_what_the_whole_file_holds_for_it() -> None:
    found = verdict("b", (A, B, C), ())
    assert submission.entry(found.attempts) == submission.of(TASKS, {"b": found})["b"]
    assert submission.entry([(), ()]) == submission.blank(TASKS)["b"]
    assert submission.entry([(A,), (B, C)]) == [entry(A), entry(B, C)]


def test_a_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    files.write_text(path, '{"a":  []}')
    assert path.read_text(encoding="utf-8") == '{"a":  []}'
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    submission.write(path, submission.of(TASKS, {"b": verdict("b", (A, B), (C,))}))
    assert submission.read(path) == {"b": [[A, B], [C, NONE]], "a": [[NONE, NONE]]}
    assert list(submission.read(path)) == ["b", "a"]


@given(st.dictionaries(st.text("ab", min_size=1), st.lists(grids(max_side=4), min_size=1)))
def test_any_grid_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, attempts: dict[str, list[Grid]]
) -> None:
    path = tmp_path_factory.mktemp("written") / "submission.json"
    submission.write(path, {i: [entry(g, g) for g in tests] for i, tests in attempts.items()})
    assert submission.read(path) == {i: [[g, g] for g in tests] for i, tests in attempts.items()}


def test_null_is_read_as_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.write_text('{"a": [{"attempt_1": [[1]], "attempt_2": null}]}', encoding="utf-8")
    assert submission.read(path) == {"a": [[A, None]]}


BAD_FILES = {
    "malformed": ("{", "not JSON: Expecting property name enclosed in double quotes in line 1"),
    "a list": ("[]", "not a submission: expected an object of task ids"),
    "an id twice": ('{"a": [], "a": []}', "'a' stands in it twice"),
    "no test": ('{"a": []}', "task a: not a non-empty list with an entry for each test"),
    "not a list": (
        '{"a": {"attempt_1": [[1]], "attempt_2": [[1]]}}',
        "task a: not a non-empty list with an entry for each test",
    ),
    "not an object": (
        '{"a": [[[1]]]}',
        "task a: test 0: not an object with just attempt_1 and attempt_2",
    ),
    "one attempt": (
        '{"a": [{"attempt_1": [[1]]}]}',
        "task a: test 0: not an object with just attempt_1 and attempt_2",
    ),
    "three attempts": (
        '{"a": [{"attempt_1": [[1]], "attempt_2": [[1]], "attempt_3": [[1]]}]}',
        "task a: test 0: not an object with just attempt_1 and attempt_2",
    ),
    "not a grid": (
        '{"a": [{"attempt_1": [[1]], "attempt_2": []}]}',
        "task a: test 0 attempt_2: not a non-empty list of rows: []",
    ),
    "a bad colour": (
        '{"a": [{"attempt_1": [[10]], "attempt_2": [[1]]}]}',
        "task a: test 0 attempt_1: cell (0, 0) is not a colour 0..9: 10",
    ),
}


@pytest.mark.parametrize(("text", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_submission_is_refused_in_one_line_naming_file_and_task(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = tmp_path / "submission.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadSubmission) as caught:
        submission.read(path)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_submission_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSubmission) as caught:
        submission.read(tmp_path / "none.json")
    assert str(caught.value) == f"{tmp_path}/none.json: No such file or directory"


def test_writing_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    submission.write(path, {"a": [entry(A)]})
    submission.write(path, {"a": [entry(B)]})
    assert submission.read(path) == {"a": [[B, NONE]]}
    assert os.listdir(tmp_path) == ["submission.json"]


def test_a_reader_of_the_old_file_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    submission.write(path, {"a": [entry(A)]})
    with path.open(encoding="utf-8") as old:
        submission.write(path, {"a": [entry(B)]})
        assert json.load(old) == {"a": [entry(A)]}


def test_the_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    path, usual = tmp_path / "submission.json", tmp_path / "usual"
    submission.write(path, {})
    usual.touch()
    assert path.stat().st_mode == usual.stat().st_mode


def test_a_write_that_fails_leaves_the_old_file_intact(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    submission.write(path, {"a": [entry(A)]})
    before = path.read_bytes()
    unwritable = cast(Submission, {"a": [object()]})
    with pytest.raises(TypeError):
        submission.write(path, unwritable)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["submission.json"]


LimitedFileSize = Callable[[int], AbstractContextManager[None]]


def test_a_disk_that_is_full_leaves_the_old_file_intact(
    tmp_path: Path, limited_file_size: LimitedFileSize
) -> None:
    path = tmp_path / "submission.json"
    submission.write(path, {"a": [entry(A)]})
    before = path.read_bytes()
    with limited_file_size(1000), pytest.raises(ArcdError) as caught:
        submission.write(path, {str(i): [entry(A)] for i in range(1000)})
    assert str(caught.value) == f"{path}: not written: File too large"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["submission.json"]


@pytest.fixture
def limited_file_size() -> LimitedFileSize:
    """A context in which the system refuses to let a file grow beyond some bytes."""
    import resource
    import signal

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


def test_a_write_over_a_folder_fails_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.mkdir()
    with pytest.raises(ArcdError) as caught:
        submission.write(path, {})
    assert str(caught.value) == f"{path}: not written: Is a directory"
    assert os.listdir(tmp_path) == ["submission.json"]


def test_a_write_to_nowhere_fails_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none" / "submission.json"
    with pytest.raises(ArcdError) as caught:
        submission.write(path, {})
    assert str(caught.value) == f"{path}: not written: No such file or directory"
    assert caught.value.exit_code == 1


Made = list[Grid | None]
Merged = tuple[Grid, Grid]

MERGED: dict[str, tuple[Made, Made, Merged, Merged]] = {
    "both differ": ([A, B], [C, D], (A, C), (A, C)),
    "first attempts equal": ([A, B], [A, C], (A, B), (A, C)),
    "only the second file has another": ([A, NONE], [A, C], (A, C), (A, C)),
    "only the first file has another": ([A, B], [A, NONE], (A, B), (A, B)),
    "all equal": ([A, A], [A, A], (A, NONE), (A, NONE)),
    "equal but in order": ([A, B], [B, A], (A, B), (A, B)),
    "the second file is blank": ([A, B], [NONE, NONE], (A, B), (A, B)),
    "the first file is blank": ([NONE, NONE], [C, D], (C, D), (C, D)),
    "the first attempt of the first is blank": ([NONE, B], [C, D], (C, B), (C, D)),
    "null is blank": ([A, None], [None, D], (A, D), (A, D)),
    "both are blank": ([NONE, NONE], [NONE, None], (NONE, NONE), (NONE, NONE)),
}


@pytest.mark.parametrize(("first", "second", "both", "_"), MERGED.values(), ids=MERGED.keys())
def test_merging_takes_the_first_attempts_then_the_next_that_differ(
    first: Made, second: Made, both: Merged, _: Merged
) -> None:
    assert submission.merge({"a": [first]}, {"a": [second]}, "both") == {"a": [entry(*both)]}


@pytest.mark.parametrize(("first", "second", "_", "own"), MERGED.values(), ids=MERGED.keys())
def test_merging_can_leave_the_second_attempt_to_the_second_file(
    first: Made, second: Made, _: Merged, own: Merged
) -> None:
    assert submission.merge({"a": [first]}, {"a": [second]}, "second") == {"a": [entry(*own)]}


MODES = pytest.mark.parametrize("mode", ["both", "second"])


@MODES
def test_merging_keeps_what_only_one_file_has(mode: Mode) -> None:
    first: Attempts = {"x": [[A, A]], "both": [[A, B], [A, None]]}
    second: Attempts = {"y": [[C, NONE]], "both": [[C, D]]}
    found = submission.merge(first, second, mode)
    assert list(found) == ["x", "both", "y"]
    assert found["x"] == [entry(A, A)]
    assert found["y"] == [entry(C, NONE)]
    assert found["both"] == [entry(A, C), entry(A, NONE)]


@MODES
def test_merging_with_nothing_changes_nothing(mode: Mode) -> None:
    full: Attempts = {"a": [[A, B], [C, D]], "b": [[D, NONE]]}
    same = {"a": [entry(A, B), entry(C, D)], "b": [entry(D)]}
    assert submission.merge(full, {}, mode) == same
    assert submission.merge({}, full, mode) == same
    assert submission.merge(full, full, mode) == same
    assert submission.merge({}, {}, mode) == {}


def test_a_file_that_does_not_know_a_test_may_be_first() -> None:
    first: Attempts = {"a": [[A, B]]}
    second: Attempts = {"a": [[C, D], [D, C]]}
    assert submission.merge(first, second, "both") == {"a": [entry(A, C), entry(D, C)]}


def attempts() -> st.SearchStrategy[Attempts]:
    grid = st.sampled_from([A, B, C, NONE, None])
    tests = st.lists(st.lists(grid, min_size=2, max_size=2), min_size=1, max_size=3)
    return st.dictionaries(st.sampled_from("abc"), tests)


@given(attempts(), attempts(), st.sampled_from(["both", "second"]))
def test_merging_never_fails_and_never_loses_a_test_or_an_answer(
    first: Attempts, second: Attempts, mode: Mode
) -> None:
    found = submission.merge(first, second, mode)
    assert set(found) == {*first, *second}
    for task_id, tests in found.items():
        ours, theirs = first.get(task_id, []), second.get(task_id, [])
        assert len(tests) == max(len(ours), len(theirs))
        for i, test in enumerate(tests):
            known = {g for side in (ours, theirs) if i < len(side) for g in side[i]}
            real = known - {NONE, None}
            used = {tuple(map(tuple, grid)) for grid in test.values()}
            assert used <= known | {NONE}
            if i < len(ours) and i < len(theirs):
                assert len(used - {NONE}) == min(2, len(real))
