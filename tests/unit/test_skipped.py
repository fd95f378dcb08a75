"""Every id of a task file is in the submission, whatever is wrong with its task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.homes import write

from arcd.arc import submission
from arcd.arc.tasks import MAX_GRIDS, Skipped, from_challenges, load
from arcd.config import resolve
from arcd.daemon import schema
from arcd.daemon.client import Client
from arcd.errors import BadInput, BadTask
from arcd.jobs.store import Store

GRID = [[1, 2], [3, 4]]
GOOD: dict[str, Any] = {
    "train": [{"input": GRID, "output": GRID}],
    "test": [{"input": GRID}, {"input": GRID}],
}


def bad_tasks() -> st.SearchStrategy[object]:
    junk = st.none() | st.booleans() | st.integers(-1, 12) | st.text(max_size=3)
    values = st.recursive(junk, lambda v: st.lists(v, max_size=3), max_leaves=6)
    tests = st.lists(st.fixed_dictionaries({"input": values}) | values, max_size=4) | values
    return values | st.fixed_dictionaries({"train": values}, optional={"test": tests})


def ids() -> st.SearchStrategy[str]:
    letters = st.characters(exclude_categories=["Cs"])
    return st.text(letters, max_size=8) | st.text(letters, min_size=101, max_size=120)


def stored(home: Path, order: schema.Order) -> str:
    """The submission of the job that a daemon makes of an order."""
    sent = schema.Order.model_validate_json(order.model_dump_json())
    store = Store(home)
    record = store.journal.submit(schema.accept(sent, resolve()))
    store.close()
    reader = Store(home, "read")
    assert record.job is not None
    found = reader.jobs.submission(record.job)
    reader.close()
    return found


@given(st.dictionaries(ids(), bad_tasks(), max_size=4))
def test_every_id_of_a_file_is_in_the_submission_of_its_job(
    tmp_path_factory: pytest.TempPathFactory, bad: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("skipped")
    path = write(folder / "tasks.json", {**bad, "fine": GOOD})
    tasks = load(str(path), skip_invalid=True)
    assert all("\n" not in each.error and str(path) in each.error for each in tasks.skipped)
    found = submission.parse("job", json.loads(stored(folder, schema.order(tasks))))
    assert found.keys() == bad.keys() | {"fine"}
    assert len(found["fine"]) == 2
    for each in tasks.skipped:
        assert found[each.id] == [[submission.BLANK] * 2] * each.tests


@pytest.mark.parametrize(
    ("value", "tests"),
    [
        ({**GOOD, "train": []}, 2),
        ({"test": [1, 2, 3]}, 3),
        ({"test": []}, 1),
        ({"test": {"a": 1}}, 1),
        ({"test": [{}] * 1000}, MAX_GRIDS),
        (None, 1),
        ([1, 2], 1),
    ],
)
def test_it_has_as_many_blanks_as_tests_can_be_told(value: object, tests: int) -> None:
    (found,) = from_challenges("set", {"x": value}, skip_invalid=True).skipped
    assert (found.id, found.tests) == ("x", tests)


@pytest.mark.parametrize(
    ("task_id", "reason"),
    [
        ("", "its id is not of 1 to 100 characters that can be printed"),
        ("x" * 101, "its id is not of 1 to 100 characters"),
        ("a\nb", "its id is not of 1 to 100 characters"),
        ("many", "more than 200 grids"),
    ],
)
def test_what_no_daemon_would_take_is_skipped_when_it_is_read(task_id: str, reason: str) -> None:
    value = {**GOOD, "test": GOOD["test"] * 100} if task_id == "many" else GOOD
    found = from_challenges("set", {task_id: value, "fine": GOOD}, skip_invalid=True)
    (skipped,) = found.skipped
    assert (skipped.id, reason in skipped.error) == (task_id, True)
    assert schema.order(found).skipped == {task_id: skipped.tests}


def sent(monkeypatch: pytest.MonkeyPatch, act: Callable[[Client], object]) -> dict[str, Any]:
    """The body of the order that a client sends."""
    bodies: list[str] = []

    def post(client: Client, path: str, body: str) -> dict[str, int]:
        bodies.append(body)
        return {"job": 1}

    monkeypatch.setattr(Client, "_post", post)
    with Client("/nowhere") as client:
        act(client)
    (body,) = bodies
    found: dict[str, Any] = json.loads(body)
    return found


def test_a_client_skips_when_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "tasks.json", {"bad": 7, "fine": GOOD})
    with Client("/nowhere") as client, pytest.raises(BadTask, match="task bad"):
        client.submit(path)
    body = sent(monkeypatch, lambda client: client.submit(path, skip_invalid=True))
    assert (list(body["tasks"]), body["skipped"]) == (["fine"], {"bad": 1})


def test_an_order_that_skips_nothing_is_one_that_earlier_daemons_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = from_challenges("set", {"a": GOOD})
    body = sent(monkeypatch, lambda client: client.send(schema.order(tasks)))
    assert body.keys() == {"name", "tasks"}


def test_files_whose_names_are_no_text_have_ids_that_are(tmp_path: Path) -> None:
    for name in (b"fine.json", b"\xff.json", b"\xfe.json"):
        Path(str(tmp_path).encode().decode(), name.decode(errors="surrogateescape")).write_text(
            json.dumps(GOOD) if name != b"\xfe.json" else "{"
        )
    found = load(str(tmp_path), skip_invalid=True)
    assert {task.id for task in found.tasks} == {"fine", "\\xff"}
    assert [each.id for each in found.skipped] == ["\\xfe"]


def test_half_a_surrogate_pair_is_no_json(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.json", '{"\\ud800": 1}')
    with pytest.raises(BadInput, match="has half of a surrogate pair"):
        load(str(path), skip_invalid=True)


def test_an_id_cannot_be_a_task_and_skipped() -> None:
    tasks = from_challenges("set", {"a": GOOD})
    order = schema.order(tasks).model_copy(update={"skipped": {"a": 1}})
    with pytest.raises(BadInput, match="task a: both among the tasks and skipped"):
        schema.accept(order, resolve())


def test_jobs_that_differ_in_what_they_skip_do_not_ask_for_the_same() -> None:
    tasks = from_challenges("set", {"a": GOOD, "b": 7}, skip_invalid=True)
    assert tasks.skipped == (Skipped("b", 1, "set: task b: not an object with 'train' and 'test'"),)
    one = schema.accept(schema.order(tasks), resolve())
    other = schema.accept(schema.order(from_challenges("set", {"a": GOOD})), resolve())
    assert one.digest != other.digest
