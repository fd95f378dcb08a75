"""The store that cannot be opened: it says why in one line, and leaves what is there alone."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.stores import JOB, ROOT, opened

from arcd.errors import StoreFailed
from arcd.jobs.database import Mode
from arcd.jobs.schema import VERSION
from arcd.jobs.store import Store, path_in


def refusal(home: Path, mode: Mode = "write") -> str:
    with pytest.raises(StoreFailed) as caught:
        Store(home, mode)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_a_home_that_is_a_file_or_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert refusal(file) == f"{file}/arcd.db: Not a directory"
    assert refusal(tmp_path / "none") == f"{tmp_path}/none/arcd.db: No such file or directory"


def test_a_folder_in_the_place_of_the_store_is_named(tmp_path: Path) -> None:
    path_in(tmp_path).mkdir()
    assert refusal(tmp_path) == f"{tmp_path}/arcd.db: Is a directory"


READ_ONLY = """
import os, sys
from pathlib import Path
from arcd.errors import StoreFailed
from arcd.jobs.store import Store
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    Store(Path(sys.argv[1]))
except StoreFailed as error:
    print(error)
"""


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_a_home_in_which_this_user_may_not_write_is_named(there: bool) -> None:
    # Not under tmp_path, in which nobody else may look; root drops its rights in the child.
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if there:
            with opened(home) as store:
                store.journal.submit(JOB)
            path_in(home).chmod(0o444)
        home.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, folder],
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        home.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}/arcd.db: Permission denied\n"


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path, mode: Mode) -> None:
    path_in(tmp_path).write_bytes(b"something else\n" * 500)
    assert refusal(tmp_path, mode) == f"{tmp_path}/arcd.db: file is not a database"
    assert path_in(tmp_path).read_bytes() == b"something else\n" * 500


@pytest.mark.parametrize("mode", ["write", "read"])
@pytest.mark.parametrize("version", [VERSION + 1, VERSION + 100, -1])
def test_a_store_of_another_version_is_refused_and_left_alone(
    tmp_path: Path, mode: Mode, version: int
) -> None:
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
    with sqlite3.connect(path_in(tmp_path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    assert refusal(tmp_path, mode) == (
        f"{tmp_path}/arcd.db: a store of version {version}, this arcd reads version {VERSION}: "
        "use the arcd that made it, or another --home"
    )
    connection = sqlite3.connect(path_in(tmp_path))
    assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize("mode", ["write", "read"])
def test_a_database_of_somebody_else_is_refused_and_left_alone(tmp_path: Path, mode: Mode) -> None:
    with sqlite3.connect(path_in(tmp_path)) as connection:
        connection.execute("CREATE TABLE events (mine)")
    connection.close()
    assert refusal(tmp_path, mode).startswith(f"{tmp_path}/arcd.db: a store of version 0, ")
    connection = sqlite3.connect(path_in(tmp_path))
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("events",)]
    connection.close()


@pytest.mark.parametrize("size", [0, 1, 50, 99, 100, 1000, 4096, 6000])
def test_a_store_cut_short_is_refused_or_made_anew_but_never_half_read(
    tmp_path: Path, size: int
) -> None:
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
    os.truncate(path_in(tmp_path), size)
    if size <= 1:  # Nothing, to SQLite.
        with opened(tmp_path) as store:
            assert list(store.journal.records()) == []
    else:
        with pytest.raises(StoreFailed, match=f"^{tmp_path}/arcd.db: "), opened(tmp_path) as store:
            list(store.journal.records())


def test_a_home_whose_name_means_something_in_an_address_can_be_read(tmp_path: Path) -> None:
    home = tmp_path / "a?b#c%20d"
    home.mkdir()
    with opened(home) as store:
        store.journal.submit(JOB)
    with opened(home, mode="read") as store:
        assert len(list(store.journal.records())) == 1
