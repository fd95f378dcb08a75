"""Submissions: the file that Kaggle scores, made from verdicts, read, written and merged.

In the file every task has an object of two attempts for each of its tests; an attempt that was not
made is the blank grid [[0]]. Reading gives grids (`Attempts`); writing takes the JSON value
(`Submission`). Knows nothing of how attempts are chosen.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from arcd.arc.grids import Grid, to_grid, to_lists
from arcd.arc.selection import ATTEMPTS, Verdict
from arcd.arc.tasks import Task, read_json
from arcd.errors import BadGrid, BadSubmission, BadTask
from arcd.system.files import write_text

BLANK: Grid = ((0,),)
"""Stands for an attempt that was not made."""

KEYS = tuple(f"attempt_{i}" for i in range(1, ATTEMPTS + 1))
"""Names of a test's attempts in the file."""

Submission = dict[str, list[dict[str, list[list[int]]]]]
"""The file as a JSON value: {id: [{"attempt_1": grid, "attempt_2": grid}, ...]}."""

Attempts = dict[str, list[list[Grid | None]]]
"""The file as it is read: by task id and test the attempts; None where it has null."""


def blank(tasks: Iterable[Task]) -> Submission:
    """A complete submission without any answer."""
    return of(tasks, {})


def of(tasks: Iterable[Task], verdicts: Mapping[str, Verdict]) -> Submission:
    """The submission of these verdicts, by task id: every task and every test, in their order.

    A test with a single answer has a blank second attempt: the same answer twice would not score
    more, and would hide that there was only one.
    """
    return {task.id: entry(_attempts(task, verdicts.get(task.id))) for task in tasks}


def entry(attempts: Sequence[Sequence[Grid]]) -> list[dict[str, list[list[int]]]]:
    """One task in the file: for each test two attempts, blank where there is none."""
    return [_test(test) for test in attempts]


@cache
def blank_text(tests: int) -> str:
    """The entry of a task with this number of tests and no answer, as a JSON text."""
    return json.dumps(entry([()] * tests))


def _attempts(task: Task, verdict: Verdict | None) -> Sequence[Sequence[Grid]]:
    found = verdict.attempts if verdict else ()
    return [found[i] if i < len(found) else () for i in range(len(task.tests))]


def _test(attempts: Sequence[Grid | None]) -> dict[str, list[list[int]]]:
    padded = [*attempts, *[None] * ATTEMPTS]
    return {key: to_lists(grid or BLANK) for key, grid in zip(KEYS, padded, strict=False)}


def read(path: Path) -> Attempts:
    """The attempts in a submission file; the blank grid is read like any other.

    Raises BadSubmission naming the file, the task and the reason.
    """
    try:
        value = read_json(path)
    except BadTask as error:
        raise BadSubmission(str(error)) from None
    return parse(str(path), value)


def parse(name: str, value: object) -> Attempts:
    """The attempts in a submission's JSON value; BadSubmission names `name` as the file."""
    if not isinstance(value, dict):
        raise BadSubmission(f"{name}: not a submission: expected an object of task ids")
    try:
        return {task_id: _to_tests(task_id, tests) for task_id, tests in value.items()}
    except BadSubmission as error:
        raise BadSubmission(f"{name}: {error}") from None


def _to_tests(task_id: str, tests: object) -> list[list[Grid | None]]:
    if not isinstance(tests, list) or not tests:
        raise BadSubmission(f"task {task_id}: not a non-empty list with an entry for each test")
    return [_to_attempts(f"task {task_id}: test {i}", test) for i, test in enumerate(tests)]


def _to_attempts(where: str, test: object) -> list[Grid | None]:
    if not isinstance(test, dict) or set(test) != set(KEYS):
        raise BadSubmission(f"{where}: not an object with just {' and '.join(KEYS)}")
    return [_to_attempt(f"{where} {key}", test[key]) for key in KEYS]


def _to_attempt(where: str, grid: object) -> Grid | None:
    try:
        return None if grid is None else to_grid(grid)
    except BadGrid as error:
        raise BadSubmission(f"{where}: {error}") from None


def write(path: Path, submission: Submission) -> None:
    """Write the submission to `path`, whole or not at all; see `files.write_text`."""
    write_text(path, json.dumps(submission))


Mode = Literal["both", "second"]
"""Whose second attempt is taken first: "both" that of the first file, "second" the second's."""

_ORDER: dict[Mode, tuple[tuple[int, int], ...]] = {
    "both": ((0, 0), (1, 0), (0, 1), (1, 1)),
    "second": ((0, 0), (1, 0), (1, 1), (0, 1)),
}
"""The order in which the attempts of two submissions are taken: (submission, attempt)."""


def merge(first: Attempts, second: Attempts, mode: Mode) -> Submission:
    """One submission out of two: the ids of the first, then those that only the second has.

    A test that is in both is answered with the first attempt of each. Where these are equal, or one
    is blank, the next one that differs takes its place: with "both" the second attempt of `first`,
    then that of `second`; with "second" the other way round. A test that is in one only keeps its
    attempts.
    """
    return {
        task_id: _merge_tests(first.get(task_id, []), second.get(task_id, []), mode)
        for task_id in {**first, **second}
    }


def _merge_tests(
    first: Sequence[Sequence[Grid | None]], second: Sequence[Sequence[Grid | None]], mode: Mode
) -> list[dict[str, list[list[int]]]]:
    unknown: Sequence[Grid | None] = ()
    pairs = zip_longest(first, second, fillvalue=unknown)
    return [_test(_merge_test(*pair, mode)) for pair in pairs]


def _merge_test(
    first: Sequence[Grid | None], second: Sequence[Grid | None], mode: Mode
) -> Sequence[Grid | None]:
    if not first or not second:
        return first or second
    both = (first, second)
    wanted = [both[file][i] for file, i in _ORDER[mode] if i < len(both[file])]
    answers = dict.fromkeys(grid for grid in wanted if grid not in (None, BLANK))
    return list(answers)[:ATTEMPTS]
