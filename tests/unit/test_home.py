"""Which folders become a home, and what is deleted in one: only what arcd has made."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.backends.protocols import WRITING
from arcd.errors import ArcdError, HomeInUse
from arcd.scheduling.adapter_folder import AdapterFolder
from arcd.system.home_lock import NOBODYS, HomeLock

HELD = json.dumps({"supervisor": {"pid": 1, "started": 1}, "daemon": None}) + "\n"
"""A lock file as every version of arcd leaves it."""


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Modes and texts of all that is in a folder, and its own mode."""
    found = {".": (stat.S_IMODE(folder.stat().st_mode), "")}
    for path in folder.rglob("*"):
        text = path.read_text() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (stat.S_IMODE(path.lstat().st_mode), text)
    return found


def refusal(folder: Path) -> str:
    """The one line with which a folder is refused; nothing in it has changed."""
    before = contents(folder)
    with pytest.raises(ArcdError) as caught:
        HomeLock.take(folder)
    assert contents(folder) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "folder"
    found.mkdir(mode=0o755)
    return found


@pytest.mark.parametrize(
    "names",
    [
        ["thesis.tex"],
        ["adapters/mine"],
        ["adapters/adapter-3", ".gitkeep"],
        ["lock", "Cargo.toml"],
        [".hidden"],
    ],
)
def test_a_folder_of_other_files_is_refused_and_stays_as_it_is(
    folder: Path, names: list[str]
) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert refusal(folder) == f"{folder}: other files are in it; name a new or empty folder"


@pytest.mark.parametrize("text", ["pid 7", "[]", '{"supervised": 1}', '{"supervisor"'])
def test_a_lock_file_of_another_program_is_no_mark(folder: Path, text: str) -> None:
    (folder / "lock").write_text(text)
    assert "other files" in refusal(folder)


def test_a_lock_that_leads_elsewhere_is_no_mark(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (folder / "lock").symlink_to(tmp_path / "precious")
    assert "other files" in refusal(folder)
    assert (tmp_path / "precious").read_text() == ""


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".gitkeep": ""},
        {"lock": ""},
        {"lock": HELD},
        {"lock": HELD[:30], "daemon.log": "", "jobs": ""},
        {"arcd.db": ""},
        {"arcd.db": "", "lock": "", "notes": ""},
    ],
    ids=["empty", "git", "begun", "locked", "torn", "copied", "all"],
)
def test_what_is_empty_or_was_a_home_becomes_one(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    HomeLock.take(folder).close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_root_of_a_file_system_is_empty_to_its_owner(folder: Path) -> None:
    (folder / "lost+found").mkdir()
    HomeLock.take(folder).close()


@given(st.sets(st.sampled_from([*NOBODYS, "lock", "arcd.db", "jobs", "adapters", "mine"])))
def test_a_folder_is_taken_if_nothing_in_it_is_anothers_or_a_mark_is(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("home")
    for name in names:
        (folder / name).touch()
    others = names - NOBODYS - {"lock"}
    if "arcd.db" in names or not others:
        HomeLock.take(folder).close()
    else:
        refusal(folder)


def test_a_folder_of_another_user_is_refused_to_root_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert refusal(folder) == f"{folder}: another user's folder; name one of your own"


def test_of_many_that_start_in_a_new_folder_one_gets_it_and_the_others_hear_so(
    tmp_path: Path,
) -> None:
    home, together = tmp_path / "new" / "home", threading.Barrier(8)
    locks: list[HomeLock] = []
    errors: list[ArcdError] = []

    def take() -> None:
        together.wait()
        try:
            locks.append(HomeLock.take(home))
        except ArcdError as error:
            errors.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(locks) == 1
    assert [type(error) for error in errors] == [HomeInUse] * 7
    locks[0].close()


def test_only_adapters_and_what_was_to_become_one_are_deleted(tmp_path: Path) -> None:
    mine = ["adapter-x", "adapter-", "adapter-7-best", "my adapters", ".writing"]
    for name in [*mine, "adapter-3", "adapter-12", "adapter-00", f"{WRITING}k3x"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").touch()
    (tmp_path / "adapter-8").touch()
    AdapterFolder(tmp_path).keep_only({12})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*mine, "adapter-12", "adapter-8"}
