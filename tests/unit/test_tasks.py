import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import tasks as any_tasks

from arcd.arc.tasks import (
    BUNDLED,
    Pair,
    Skipped,
    Task,
    TaskSet,
    from_challenges,
    load,
    load_solutions,
    solutions_of,
    to_challenges,
)
from arcd.errors import BadTask

GRID = [[1, 2], [3, 4]]
PAIR = {"input": GRID, "output": [[5]]}
GOOD = {"train": [PAIR], "test": [{"input": GRID}]}
SOLVED = {"train": [PAIR], "test": [{"input": GRID, "output": [[7]]}]}


def put(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def refusal(source: object) -> str:
    """The one line with which a source is refused."""
    with pytest.raises(BadTask) as caught:
        load(str(source))
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_challenges_file_gives_its_tasks_in_order(tmp_path: Path) -> None:
    found = load(str(put(tmp_path / "set.json", {"b": GOOD, "a": SOLVED})))
    pair = Pair(((1, 2), (3, 4)), ((5,),))
    assert found.name == "set"
    assert found.tasks == (
        Task("b", (pair,), (((1, 2), (3, 4)),)),
        Task("a", (pair,), (((1, 2), (3, 4)),)),
    )
    assert found.solutions == {"a": (((7,),),)}
    assert found.skipped == ()


def test_a_single_task_is_named_by_its_file(tmp_path: Path) -> None:
    found = load(str(put(tmp_path / "007bbfb7.json", SOLVED)))
    assert [task.id for task in found.tasks] == ["007bbfb7"]
    assert found.solutions == {"007bbfb7": (((7,),),)}


def test_a_folder_gives_its_tasks_by_name_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "b.json", GOOD)
    put(tmp_path / "a.json", GOOD)
    put(tmp_path / "readme.txt", "not a task")
    assert [task.id for task in load(str(tmp_path)).tasks] == ["a", "b"]


def test_outputs_that_are_null_are_not_solutions(tmp_path: Path) -> None:
    blind = {"train": [PAIR], "test": [{"input": GRID, "output": None}]}
    assert load(str(put(tmp_path / "t.json", {"a": blind}))).solutions == {}


def without(key: str) -> dict[str, object]:
    return {k: v for k, v in GOOD.items() if k != key}


def showing(pair: object) -> dict[str, object]:
    return {"train": [PAIR, pair], "test": GOOD["test"]}


def asking(*tests: object) -> dict[str, object]:
    return {"train": [PAIR], "test": list(tests)}


BAD_TASKS: dict[str, tuple[object, str]] = {
    "not an object": ([], "not an object with 'train' and 'test'"),
    "null": (None, "not an object with 'train' and 'test'"),
    "no train": (without("train"), "'train' is missing or empty"),
    "no test": (without("test"), "'test' is missing or empty"),
    "train empty": ({**GOOD, "train": []}, "'train' is missing or empty"),
    "test empty": ({**GOOD, "test": []}, "'test' is missing or empty"),
    "train not a list": ({**GOOD, "train": {"0": PAIR}}, "'train' is missing or empty"),
    "pair not an object": (showing([GRID, GRID]), "train pair 1 has no 'input'"),
    "pair without input": (showing({"output": GRID}), "train pair 1 has no 'input'"),
    "pair without output": (showing({"input": GRID}), "train pair 1 has no 'output'"),
    "test not an object": (asking(GRID), "test 0 has no 'input'"),
    "test without input": (asking({"output": GRID}), "test 0 has no 'input'"),
    "grid empty": (
        showing({"input": [], "output": GRID}),
        "train pair 1 input: not a non-empty list of rows: []",
    ),
    "row empty": (
        showing({"input": [[]], "output": GRID}),
        "train pair 1 input: row 0 is not a non-empty list of colours: []",
    ),
    "ragged rows": (
        showing({"input": GRID, "output": [[1, 2], [3]]}),
        "train pair 1 output: row 1 has 1 cells, row 0 has 2",
    ),
    "colour beyond 9": (
        showing({"input": [[10]], "output": GRID}),
        "train pair 1 input: cell (0, 0) is not a colour 0..9: 10",
    ),
    "colour below 0": (
        asking({"input": [[0, -1]]}),
        "test 0 input: cell (0, 1) is not a colour 0..9: -1",
    ),
    "bool": (
        asking({"input": [[True]]}),
        "test 0 input: cell (0, 0) is not a colour 0..9: True",
    ),
    "too many rows": (
        asking({"input": [[0]] * 31}),
        "test 0 input: 31 rows, at most 30 are allowed",
    ),
    "bad output of a test": (
        asking({"input": GRID, "output": "?"}),
        "test 0 output: not a non-empty list of rows: '?'",
    ),
    "output of one test only": (
        asking({"input": GRID, "output": GRID}, {"input": GRID}),
        "test 1 has no output, but others have",
    ),
}


@pytest.mark.parametrize(("value", "reason"), BAD_TASKS.values(), ids=BAD_TASKS.keys())
def test_a_bad_task_is_refused_naming_file_task_and_reason(
    tmp_path: Path, value: object, reason: str
) -> None:
    path = put(tmp_path / "set.json", {"fine": GOOD, "broken": value})
    assert refusal(path) == f"{path}: task broken: {reason}"


@pytest.mark.parametrize(("value", "reason"), BAD_TASKS.values(), ids=BAD_TASKS.keys())
def test_a_bad_task_can_be_skipped_and_is_told(tmp_path: Path, value: object, reason: str) -> None:
    path = put(tmp_path / "set.json", {"broken": value, "fine": GOOD})
    found = load(str(path), skip_invalid=True)
    assert [task.id for task in found.tasks] == ["fine"]
    assert [each.error for each in found.skipped] == [f"{path}: task broken: {reason}"]


BAD_FILES = {
    "malformed": ('{"a": [1,\n 2', "not JSON: Expecting ',' delimiter in line 2"),
    "empty": ("", "not JSON: Expecting value in line 1"),
    "a list": ("[]", "neither a task nor a set of tasks: expected a non-empty object"),
    "no task": ("{}", "neither a task nor a set of tasks: expected a non-empty object"),
    "an id twice": ('{"a": 1, "b": 2, "a": 3}', "'a' stands in it twice"),
    "a key twice": ('{"a": {"train": [], "train": []}}', "'train' stands in it twice"),
    "nested deeply": ("[" * 100_000, "not a task file: nested too deeply"),
}


@pytest.mark.parametrize(("text", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_naming_it_and_the_reason(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = put(tmp_path / "set.json", text)
    assert refusal(path) == f"{path}: {reason}"


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_bytes(b'{"a": "\xff"}')
    assert refusal(path) == f"{path}: not JSON: not UTF-8 text"


def test_a_number_beyond_reason_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "set.json", '{"a": ' + "1" * 5000 + "}")
    assert refusal(path).startswith(f"{path}: not JSON")


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "file.json", GOOD)
    assert refusal(tmp_path / "none.json") == f"{tmp_path}/none.json: No such file or directory"
    assert refusal(file / "inside") == f"{file}/inside: Not a directory"


def test_a_name_longer_than_the_file_system_allows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 300)
    assert refusal(path) == f"{path}: File name too long"


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}: a folder without .json files"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        assert refusal(tmp_path) == f"{tmp_path}: Permission denied"
    finally:
        tmp_path.chmod(0o700)


def test_a_bad_file_in_a_folder_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    put(tmp_path / "a.json", GOOD)
    broken = put(tmp_path / "b.json", "{")
    gone = tmp_path / "c.json"
    gone.symlink_to(tmp_path / "nowhere")
    assert refusal(tmp_path).startswith(f"{broken}: not JSON: ")
    found = load(str(tmp_path), skip_invalid=True)
    assert [task.id for task in found.tasks] == ["a"]
    first, second = found.skipped
    assert first.error.startswith(f"{broken}: not JSON: ")
    assert second.error == f"{gone}: No such file or directory"
    assert [each.id for each in found.skipped] == ["b", "c"]


def test_nothing_left_after_skipping_is_an_error(tmp_path: Path) -> None:
    path = put(tmp_path / "set.json", {"broken": None})
    with pytest.raises(BadTask, match="no usable task in it"):
        load(str(path), skip_invalid=True)


@pytest.mark.parametrize(
    ("name", "count"),
    [("arc1-train", 400), ("arc1-eval", 400), ("arc2-train", 1000), ("arc2-eval", 120)],
)
def test_the_bundled_sets_load_whole_with_solutions(name: str, count: int) -> None:
    found = load(name)
    assert found.name == name
    assert len(found.tasks) == len(found.solutions) == count
    assert all(len(task.tests) == len(found.solutions[task.id]) for task in found.tasks)


def test_every_bundled_set_is_tested() -> None:
    assert set(BUNDLED) == {"arc1-train", "arc1-eval", "arc2-train", "arc2-eval"}


def test_a_number_takes_the_first_tasks_of_a_bundled_set() -> None:
    whole = load("arc1-eval").tasks
    assert load("arc1-eval:50").tasks == whole[:50]
    assert load("arc1-eval:4000").tasks == whole


def test_ids_take_these_tasks_in_this_order() -> None:
    found = load("arc1-eval:b9630600,25094a63")
    assert [task.id for task in found.tasks] == ["b9630600", "25094a63"]
    assert set(found.solutions) == {"b9630600", "25094a63"}


def test_an_id_made_of_digits_is_an_id() -> None:
    assert [task.id for task in load("arc1-eval:00576224").tasks] == ["00576224"]
    assert [task.id for task in load("arc1-eval:00576224,03560426").tasks] == [
        "00576224",
        "03560426",
    ]


def test_a_list_of_ids_takes_these_tasks(tmp_path: Path) -> None:
    ids = put(tmp_path / "ids.json", ["b9630600", "00576224"])
    assert [task.id for task in load(f"arc1-eval@{ids}").tasks] == ["b9630600", "00576224"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("arc1-eval:nosuch", "arc1-eval: no task 'nosuch' in this set"),
        ("arc1-eval:", "arc1-eval: no task '' in this set"),
        ("arc1-eval:²", "arc1-eval: no task '²' in this set"),
        ("arc1-eval:-5", "arc1-eval: no task '-5' in this set"),
        ("arc1-eval:0", "arc1-eval:0: no usable task in it"),
        ("arc1-eval:00576224,00576224", "arc1-eval: task '00576224' is asked for twice"),
        ("arc3-eval", "arc3-eval: No such file or directory"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(source: str, reason: str) -> None:
    assert refusal(source) == reason


@pytest.mark.parametrize("value", [{"a": 1}, ["a", 1], 7, None])
def test_a_list_of_ids_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    ids = put(tmp_path / "ids.json", value)
    assert refusal(f"arc1-eval@{ids}") == f"{ids}: not a list of task ids"


def test_solutions_come_from_their_own_file(tmp_path: Path) -> None:
    tasks = load(str(put(tmp_path / "tasks.json", {"a": GOOD, "b": SOLVED, "c": GOOD})))
    solutions = put(tmp_path / "solutions.json", {"a": [[[6]]], "other": [[[1]], [[2]]]})
    assert load_solutions(solutions) == {"a": (((6,),),), "other": (((1,),), ((2,),))}
    found = tasks.with_solutions(solutions)
    assert found.tasks == tasks.tasks
    assert found.solutions == {"a": (((6,),),), "b": (((7,),),)}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "not a solutions file: expected a non-empty object of task ids"),
        ({}, "not a solutions file: expected a non-empty object of task ids"),
        ({"a": []}, "task a: not a non-empty list of grids"),
        ({"a": {"0": GRID}}, "task a: not a non-empty list of grids"),
        ({"a": GRID}, "task a: row 0 is not a non-empty list of colours: 1"),
        ({"a": [[[10]]]}, "task a: cell (0, 0) is not a colour 0..9: 10"),
    ],
)
def test_bad_solutions_are_refused_naming_file_and_task(
    tmp_path: Path, value: object, reason: str
) -> None:
    path = put(tmp_path / "solutions.json", value)
    with pytest.raises(BadTask) as caught:
        load_solutions(path)
    assert str(caught.value) == f"{path}: {reason}"


def test_a_task_with_another_number_of_solutions_than_tests_is_refused(tmp_path: Path) -> None:
    tasks = load(str(put(tmp_path / "tasks.json", {"a": GOOD})))
    path = put(tmp_path / "solutions.json", {"a": [GRID, GRID]})
    with pytest.raises(BadTask) as caught:
        tasks.with_solutions(path)
    assert str(caught.value) == f"{path}: task a: 2 solutions, 1 tests"


def test_challenges_that_came_by_another_way_are_read_as_from_their_file(tmp_path: Path) -> None:
    value = {"b": GOOD, "a": SOLVED}
    assert from_challenges("set", value) == load(str(put(tmp_path / "set.json", value)))


def test_errors_in_challenges_name_what_they_are_called() -> None:
    with pytest.raises(BadTask) as caught:
        from_challenges("sent", {"a": GOOD, "b": {**GOOD, "test": []}})
    assert str(caught.value) == "sent: task b: 'test' is missing or empty"


def test_challenges_may_be_none_and_bad_ones_may_be_left_out() -> None:
    assert from_challenges("sent", {}) == TaskSet("sent", (), {})
    found = from_challenges("sent", {"a": GOOD, "b": 7}, skip_invalid=True)
    assert [task.id for task in found.tasks] == ["a"]
    assert found.skipped == (
        Skipped("b", 1, "sent: task b: not an object with 'train' and 'test'"),
    )


@given(st.lists(any_tasks(), unique_by=lambda task: task.id))
def test_tasks_survive_their_challenges(tasks: list[Task]) -> None:
    value = json.loads(json.dumps(to_challenges(TaskSet("some", tuple(tasks), {}))))
    assert from_challenges("some", value).tasks == tuple(tasks)


def test_solutions_that_were_sent_are_those_of_their_tasks() -> None:
    tasks = from_challenges("sent", {"a": GOOD, "b": SOLVED})
    given = solutions_of("answers", {"a": [[[6]]], "other": [[[1]]]})
    assert tasks.solved_by("answers", given).solutions == {"a": (((6,),),), "b": (((7,),),)}
    with pytest.raises(BadTask) as caught:
        tasks.solved_by("answers", solutions_of("answers", {"a": [GRID, GRID]}))
    assert str(caught.value) == "answers: task a: 2 solutions, 1 tests"
    with pytest.raises(BadTask) as caught:
        solutions_of("answers", {"a": 7})
    assert str(caught.value) == "answers: task a: not a non-empty list of grids"
