"""The Kaggle script up to the moment in which it becomes arcd."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.homes import write

from arcd.arc import submission
from arcd.arc.tasks import load
from arcd.daemon import schema

SCRIPT = Path(__file__).parents[2] / "examples" / "kaggle.py"

PAIR = {"input": [[1]], "output": [[2]]}
FINE = {"train": [PAIR], "test": [{"input": [[1]]}, {"input": [[2]]}]}
TASKS = {"fine": FINE, "no pairs": {**FINE, "train": []}, "junk": 7, "": FINE}


class Became(BaseException):
    """Raised in place of becoming another program."""

    def __init__(self, program: str, command: list[str]) -> None:
        self.command = command


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kaggle_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def become(program: str, command: list[str]) -> None:
        raise Became(program, command)

    monkeypatch.setattr(os, "execv", become)
    return module


def mount(folder: Path, name: str = "arc", tasks: object = TASKS) -> Path:
    place = folder / "input" / name
    place.mkdir(parents=True)
    return write(place / "arc-agi_test_challenges.json", tasks)


def run(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> list[str]:
    """The command that the script becomes."""
    where = ("--input", folder / "input", "--working", folder)
    monkeypatch.setattr(sys, "argv", ["kaggle.py", *map(str, (*where, *arguments))])
    with pytest.raises(Became) as caught:
        script.main()
    return caught.value.command


def shape(path: Path) -> dict[str, int]:
    return {name: len(tests) for name, tests in submission.read(path).items()}


def test_it_leaves_a_blank_for_every_id_as_arcd_does(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = mount(tmp_path)
    command = run(script, tmp_path, monkeypatch)
    assert command[1:6] == ["-m", "arcd", "run", str(tasks), "--skip-invalid"]
    left = shape(tmp_path / "submission.json")
    assert left == {"fine": 2, "no pairs": 2, "junk": 1, "": 2}
    order = schema.order(load(str(tasks), skip_invalid=True))
    assert {**order.skipped, "fine": 2} == left
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


OURS = {name: [{"attempt_1": [[3]], "attempt_2": [[0]]}] * 2 for name in TASKS}


@pytest.mark.parametrize(
    ("before", "stays"),
    [
        ({**OURS, "junk": OURS["junk"][:1]}, True),
        (OURS, False),
        ({**OURS, "another": []}, False),
        ({}, False),
        ([1], False),
        ('{"fine": [', False),
    ],
)
def test_an_earlier_submission_stays_only_if_it_is_of_these_tasks(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: Any,
    stays: bool,
) -> None:
    mount(tmp_path)
    path = write(tmp_path / "submission.json", before)
    run(script, tmp_path, monkeypatch)
    assert (json.loads(path.read_text()) == before) == stays
    assert shape(path) == {"fine": 2, "no pairs": 2, "junk": 1, "": 2}


def test_of_two_task_files_one_must_be_named(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = mount(tmp_path, "one"), mount(tmp_path, "two", {"other": FINE})
    arguments = ["kaggle.py", "--input", str(tmp_path / "input"), "--working", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        script.main()
    said = str(end.value.code)
    assert all(part in said for part in (str(one), str(other), "name it with --tasks"))
    assert str(other) in run(script, tmp_path, monkeypatch, "--tasks", other)
    assert shape(tmp_path / "submission.json") == {"other": 2}


@pytest.mark.parametrize(
    ("budget", "reserve"),
    [
        ("11h30m", ["--reserve", "300.0s"]),
        ("20m", ["--reserve", "120.0s"]),
        ("4m", ["--reserve", "24.0s"]),
        ("45", ["--reserve", "4.5s"]),
        ("soon", []),
        ("1.2.3h", []),
        ("0s", []),
    ],
)
def test_a_short_budget_has_a_short_reserve(
    script: ModuleType, budget: str, reserve: list[str]
) -> None:
    assert script.reserve(budget) == reserve
