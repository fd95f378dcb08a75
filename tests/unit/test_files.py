"""Texts that are written whole: what is replaced, what is written into, what is refused.

No test writes to /dev/null or the like: root would replace it where there is a mistake. A terminal
is a device, too, and no file can be made in the folder that it is in.
"""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from arcd.errors import ArcdError
from arcd.system import files

Write = Callable[[Path, str], None]

both = pytest.mark.parametrize("write", [files.replace_text, files.write_text])


@pytest.fixture
def device() -> Iterator[tuple[Path, int]]:
    """A terminal, and the descriptor from which can be read what is written to it."""
    reading, terminal = os.openpty()
    yield Path(os.ttyname(terminal)), reading
    os.close(reading)
    os.close(terminal)


def refusal(write: Write, path: Path) -> str:
    with pytest.raises(ArcdError) as caught:
        write(path, "new")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"{files.shown(path)}: not written: ")
    return line


# What is replaced.


@both
def test_a_symbolic_link_is_followed_and_stays(tmp_path: Path, write: Write) -> None:
    target, link, second = tmp_path / "deep" / "target", tmp_path / "link", tmp_path / "second"
    target.parent.mkdir()
    link.symlink_to(Path("deep") / "target")
    second.symlink_to(link)
    for text in ("made", "replaced"):
        write(second, text)
        assert target.read_text() == text
    assert link.is_symlink()
    assert second.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "link", "second"]
    assert [p.name for p in target.parent.iterdir()] == ["target"]


@both
def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual_one(
    tmp_path: Path, write: Write
) -> None:
    old, new, usual = tmp_path / "old", tmp_path / "new", tmp_path / "usual"
    old.touch()
    old.chmod(0o640)
    usual.touch()
    write(old, "text")
    write(new, "text")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert new.stat().st_mode == usual.stat().st_mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.touch()
    os.chown(path, 4321, 4321)
    files.replace_text(path, "text")
    assert (path.stat().st_uid, path.stat().st_gid) == (4321, 4321)


@both
def test_the_longest_name_that_there_can_be_is_written(tmp_path: Path, write: Write) -> None:
    path = tmp_path / ("ü" * 127)
    write(path, "text")
    assert path.read_text() == "text"
    assert files.obstacle(path) is None


# What is written into.


def test_a_device_gets_the_text_and_stays_a_device(
    tmp_path: Path, device: tuple[Path, int]
) -> None:
    path, reading = device
    link = tmp_path / "link"
    link.symlink_to(path)
    for name in (path, link):
        files.write_text(name, "text")
        assert os.read(reading, 100) == b"text"
    assert stat.S_ISCHR(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [link]


def test_who_reads_a_pipe_gets_the_text(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reading = Thread(target=lambda: read.append(pipe.read_text()))
    reading.start()
    files.write_text(pipe, "text")
    reading.join()
    assert read == ["text"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_open_file_gets_the_text_where_it_is_written_next(tmp_path: Path, name: str) -> None:
    """As /dev/stdout does, where the shell has sent the output to a file."""
    path = tmp_path / "output"
    with path.open("w") as output:
        output.write("before ")
        output.flush()
        given = Path(name.format(output.fileno()))
        assert files.is_stream(given)
        files.write_text(given, "text")
        output.write(" after")
    assert path.read_text() == "before text after"


def test_what_is_written_into_can_be_told_before(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    streams = [tmp_path / "pipe", Path("/dev/null"), Path("/dev/stdout"), Path("/dev/stderr")]
    others = [tmp_path / "file", tmp_path, tmp_path / "new", tmp_path / "a\0b"]
    assert all(map(files.is_stream, streams))
    assert not any(map(files.is_stream, others))


# What is refused.


def test_where_only_a_file_will_do_a_device_is_refused(
    tmp_path: Path, device: tuple[Path, int]
) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/fd/1")
    for path in (device[0], Path("/dev/fd/1"), link):
        refusal(files.replace_text, path)
        assert files.obstacle(path)
    assert stat.S_ISCHR(device[0].stat().st_mode)
    assert link.is_symlink()


def test_a_pipe_without_a_reader_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "it is not a regular file" in refusal(files.replace_text, pipe)
    assert pipe.is_fifo()


@both
def test_a_folder_is_refused(tmp_path: Path, write: Write) -> None:
    assert "Is a directory" in refusal(write, tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert "Is a directory" in refusal(write, link)


@both
def test_a_socket_is_refused(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        refusal(write, tmp_path / "socket")
    assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)


UNUSABLE = ["a\0b", "a\ud800b", "x" * 256, "gone/file", "file/file", "round"]


@both
@pytest.mark.parametrize("name", UNUSABLE)
def test_a_path_that_cannot_be_is_refused_and_nothing_is_left(
    tmp_path: Path, write: Write, name: str
) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "round").symlink_to("trip")
    (tmp_path / "trip").symlink_to("round")
    refusal(write, tmp_path / name)
    assert files.obstacle(tmp_path / name)
    assert not files.holds(tmp_path / name, "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "round", "trip"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_file_that_cannot_be_replaced_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    assert refusal(files.replace_text, path).endswith("No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# What can be told without writing.


def test_a_path_without_an_obstacle_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("new")
    assert [files.obstacle(tmp_path / n) for n in ("file", "link", "other")] == [None] * 3
    assert files.obstacle(tmp_path / "gone" / "file") == "its folder is not there"


def test_a_file_holds_its_own_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("tëxt".encode())
    assert files.holds(path, "tëxt")
    path.write_bytes(b"\xff" * 5)
    for other in (path, tmp_path / "none", tmp_path, Path("/dev/null")):
        assert not files.holds(other, "tëxt")


def test_a_path_is_shown_in_one_line_whatever_is_in_its_name() -> None:
    assert files.shown(Path("/ü/a\nb\0\ud800")) == r"/ü/a\nb\x00\ud800"
