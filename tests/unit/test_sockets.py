"""The sockets and the token: for their owner alone, named where they cannot be had."""

import os
import stat
from pathlib import Path

import pytest

from arcd.daemon import sockets
from arcd.daemon.client import Client
from arcd.daemon.options import address
from arcd.errors import ArcdError, NoDaemon
from arcd.system.home import Home


def test_the_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.socket.touch()
    with sockets.listen_on_unix(home):
        assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600


def test_a_home_whose_path_is_too_long_for_a_socket_has_one_elsewhere(tmp_path: Path) -> None:
    home = Home(tmp_path / ("x" * 120))
    home.path.mkdir()
    with sockets.listen_on_unix(home):
        assert stat.S_IMODE(home.socket.parent.stat().st_mode) == 0o700
    home.socket.parent.chmod(0o755)
    with pytest.raises(ArcdError, match="not a folder of this user alone"):
        sockets.listen_on_unix(home)
    home.socket.unlink()
    home.socket.parent.rmdir()


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    token = sockets.token_in(Home(tmp_path))
    assert len(token) >= 32
    assert sockets.token_in(Home(tmp_path)) == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_a_token_file_without_a_token_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    token = sockets.token_in(Home(tmp_path))
    assert (tmp_path / "token").read_text() == f"{token}\n"


def test_a_token_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            sockets.token_in(Home(tmp_path))
    assert not (tmp_path / "token").exists()
    assert len(sockets.token_in(Home(tmp_path))) >= 32
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_client_does_not_talk_to_a_socket_that_could_be_anothers(tmp_path: Path) -> None:
    home = Home(tmp_path / ("x" * 120))
    folder = home.socket.parent
    with Client(home.path) as client:
        with pytest.raises(NoDaemon):
            client.health()
        folder.mkdir(mode=0o700)
        with pytest.raises(NoDaemon):
            client.health()
        folder.chmod(0o770)
        with pytest.raises(ArcdError, match="not a folder of this user alone"):
            client.health()
        folder.rmdir()
        folder.symlink_to(tmp_path)
        with pytest.raises(ArcdError, match="not a folder of this user alone"):
            client.health()
        folder.unlink()


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert address("::1", 8710) == "[::1]:8710"
    assert address("127.0.0.1", 1) == "127.0.0.1:1"
    with pytest.raises(ArcdError, match=r"^\[::ffff:1\.2\.3\.4\]:1: "):
        sockets.listen_on_tcp("::ffff:1.2.3.4", 1)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with sockets.listen_on_tcp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ArcdError, match=f"127.0.0.1:{port}"):
            sockets.listen_on_tcp("127.0.0.1", port)
