"""The Kaggle script up to the moment in which it becomes arcd."""

import importlib.util
import json
import os
import sys
import tomllib
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
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

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.command, self.environment = command, environment


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("kaggle_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def become(program: Path, command: list[str], environment: dict[str, str]) -> None:
        assert str(program) == command[0]
        raise Became(command, environment)

    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setattr(module, "no_gpu", lambda: None)
    return module


def mount(folder: Path, name: str = "arc", tasks: object = TASKS) -> Path:
    place = folder / "input" / name
    place.mkdir(parents=True)
    return write(place / "arc-agi_test_challenges.json", tasks)


def run(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> list[str]:
    """The command that the script becomes."""
    with pytest.raises(Became) as caught:
        call(script, folder, monkeypatch, *arguments)
    return caught.value.command


def call(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> None:
    where = ("--input", folder / "input", "--working", folder, "--scratch", folder / "scratch")
    monkeypatch.setattr(sys, "argv", ["kaggle.py", *map(str, (*where, *arguments))])
    script.main()


def refusal(
    script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> str:
    """The one line with which the script ends; the blank submission is there."""
    with pytest.raises(SystemExit) as end:
        call(script, folder, monkeypatch, *arguments)
    assert (folder / "submission.json").is_file()
    assert not (folder / "scratch").exists(), "nothing was installed"
    line = str(end.value.code)
    assert "\n" not in line
    return line.removeprefix("kaggle.py: ")


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
    with pytest.raises(SystemExit) as end:
        call(script, tmp_path, monkeypatch)
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


def test_the_competition_is_found_with_and_without_competitions_in_its_path_and_counts_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = mount(tmp_path, "competitions/arc-prize-2026").parent
    (tmp_path / "input" / "arc-prize-2026").symlink_to(place)
    (tmp_path / "input" / "loop").symlink_to(tmp_path / "input")
    copy = mount(tmp_path, "a-copy")
    assert run(script, tmp_path, monkeypatch)[4] == str(copy), "the first of equal files"
    copy.unlink()
    linked = tmp_path / "input" / "arc-prize-2026" / "arc-agi_test_challenges.json"
    assert run(script, tmp_path, monkeypatch)[4] == str(linked)
    (tmp_path / "input" / "arc-prize-2026").unlink()
    assert run(script, tmp_path, monkeypatch)[4] == str(place / "arc-agi_test_challenges.json")


def test_the_output_holds_the_submission_alone_and_the_gpu_is_asked_for(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(tmp_path)
    command = run(script, tmp_path, monkeypatch, "--set", "train.steps=3", "--", "--seed", "7")
    options = dict(pairwise(command))
    assert options["--home"] == str(tmp_path / "scratch" / "arcd")
    assert (options["--device"], options["--set"]) == ("cuda", "train.steps=3")
    assert command[-2:] == ["--seed", "7"]
    assert {path.name for path in tmp_path.iterdir()} == {"input", "submission.json"}


def test_a_session_without_gpu_is_told_in_a_line_unless_a_cpu_will_do(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(tmp_path)
    monkeypatch.setattr(script, "no_gpu", lambda: "CUDA shows none (error 100)")
    said = refusal(script, tmp_path, monkeypatch)
    assert said.startswith("no GPU: CUDA shows none (error 100); choose an accelerator")
    assert "--device" in run(script, tmp_path, monkeypatch, "--device", "auto")


def test_a_base_that_is_not_there_is_told_with_those_that_are(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(tmp_path)
    (tmp_path / "input" / "qwen" / "1").mkdir(parents=True)
    base = write(tmp_path / "input" / "qwen" / "1" / "config.json", {}).parent
    said = refusal(script, tmp_path, monkeypatch, "--base", tmp_path / "input" / "qwen")
    assert said == f"no base model in {base.parent}; under the input folder: {base}"
    assert str(base) in run(script, tmp_path, monkeypatch, "--base", base)


PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"


def wheel(folder: Path, name: str, tags: str = "py3-none-any", *requires: str, **more: str) -> Path:
    """A wheel with these requirements and nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    project, version = name.rsplit("-", 1)
    lines = [f"Name: {project}", f"Version: {version}"]
    lines += [f"Requires-Dist: {each}" for each in requires]
    lines += [f"Requires-Python: {text}" for text in more.values()]
    path = folder / f"{name}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(f"{name}.dist-info/METADATA", "\n".join(lines))
    return path


ARCD = ("arcd-0.1.0", "py3-none-any", "some-core>=2", 'some-engine<0.33,>=0.25; extra == "kaggle"')


@pytest.mark.parametrize(
    ("wheels", "said"),
    [
        ([("some_core-2.0",), ("some_engine-0.26.0",)], None),
        ([("some_core-2.0",)], "no wheel of some-engine<0.33,>=0.25, and it is not installed"),
        (
            [("some_core-2.0",), ("some_engine-0.20.0",)],
            "some_engine-0.20.0-py3-none-any.whl is too old: some-engine<0.33,>=0.25 is needed",
        ),
        (
            [("some_core-2.0",), ("some_engine-0.40.0",)],
            "some_engine-0.40.0-py3-none-any.whl is too new: some-engine<0.33,>=0.25 is needed",
        ),
        ([("some_core-2.0",), ("some_engine-0.40.0",), ("some_engine-0.30.0",)], None),
        (
            [("some_core-2.0", "cp27-cp27m-manylinux_2_17_x86_64")],
            "some_core-2.0-cp27-cp27m-manylinux_2_17_x86_64.whl is for another Python than",
        ),
        (
            [("some_core-2.0", f"{PYTHON}-{PYTHON}-win_amd64")],
            f"some_core-2.0-{PYTHON}-{PYTHON}-win_amd64.whl is for another kind of machine",
        ),
        (
            [("some_core-2.0", "py3-none-any", "some-part==3.*"), ("some_engine-0.26.0",)],
            "no wheel of some-part==3.*, and it is not installed (required by some-core)",
        ),
        # Nobody needs it.
        ([("some_core-2.0",), ("some_engine-0.26.0",), ("x-1", "cp27-none-any")], None),
        # What is installed is used.
        ([("some_core-2.0", "py3-none-any", "pytest>=8"), ("some_engine-0.26.0",)], None),
    ],
)
def test_wheels_that_do_not_fit_are_told_in_one_line_before_anything_is_installed(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wheels: list[tuple[str, ...]],
    said: str | None,
) -> None:
    mount(tmp_path)
    folder = tmp_path / "input" / "wheels"
    for each in (ARCD, *wheels):
        wheel(folder, *each)
    monkeypatch.setattr(script, "find_spec", lambda name: name == "pip" or None)
    monkeypatch.setattr(script, "install", lambda wheels, extra, place: place / "python")
    not_arcd = without_arcd(script.metadata.metadata)
    monkeypatch.setattr(script.metadata, "metadata", not_arcd)
    if said is None:
        command = run(script, tmp_path, monkeypatch)
        assert command[0] == str(tmp_path / "scratch" / "arcd-python" / "python")
    else:
        found = refusal(script, tmp_path, monkeypatch)
        assert found.startswith(f"{folder} cannot be installed: {said}")


def without_arcd(metadata: Callable[[str], Any]) -> Callable[[str], Any]:
    """As the metadata of a Python in which arcd is not installed."""

    def found(name: str) -> Any:
        if name == "arcd":
            raise PackageNotFoundError(name)
        return metadata(name)

    return found


def test_a_wheel_for_a_newer_python_is_told(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wheels"
    wheel(folder, "some_core-2.0", requires_python=">=3.99")
    found = script.Wheels(folder).missing("some-core")
    assert found == (
        "some_core-2.0-py3-none-any.whl is for Python >=3.99, and this is Python "
        f"{sys.version_info.major}.{sys.version_info.minor}"
    )


def test_a_folder_without_pip_or_with_two_arcds_is_told(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(tmp_path)
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    wheel(tmp_path / "input" / "wheels", *ARCD)
    assert "has no pip" in refusal(script, tmp_path, monkeypatch)
    wheel(tmp_path / "input" / "older", "arcd-0.0.9")
    assert "name it with --wheels" in refusal(script, tmp_path, monkeypatch)


def test_what_the_script_installs_is_offered_and_is_for_the_torch_of_kaggles_image() -> None:
    project = tomllib.loads((SCRIPT.parents[1] / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["kaggle"]
    assert "torch==2.10.*" in wanted
    # The last that is built for torch 2.10.
    assert "vllm==0.19.1" in wanted
    assert '"--extra", default="kaggle"' in SCRIPT.read_text()
