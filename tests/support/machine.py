"""A machine on which one life of a daemon follows the other: its disk, its clock and its deaths.

A death can come at any durable act: before, in and after a transaction, while a file is written,
before and after a rename and a deletion. What is on the disk then is kept as it is; whatever the
life does afterwards is undone, as if it had not been done. The disk can be full. Knows nothing of
what the lives are for.
"""

import errno
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import anyio.lowlevel
import pytest
from anyio import to_thread

from arcd.daemon import server
from arcd.daemon.kept_rates import KeptRates
from arcd.jobs import database
from arcd.jobs.database import Database
from arcd.jobs.store import Store
from arcd.scheduling.scheduler import Scheduler
from arcd.system import files
from support.virtual import VirtualLoop

T = TypeVar("T")

BEGIN = 1_800_000_000.0
"""Seconds since 1970 when the first life begins."""

ROOM = 1 << 40
"""Free bytes of a disk that is not full."""


MOST_PAGES = 1 << 20
"""Pages of a store on a disk that is not full."""


class Killed(BaseException):
    """The process is dead: nothing that it does from here on has been done."""


class Exited(BaseException):
    """The process has called `os._exit`."""


class Server:
    """Stands for uvicorn: has an application, and lasts until it is told to end."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._ended = anyio.Event()

    @property
    def should_exit(self) -> bool:
        return self._ended.is_set()

    @should_exit.setter
    def should_exit(self, _: bool) -> None:
        self._ended.set()

    async def serve(self, sockets: list[socket.socket]) -> None:
        try:
            await self._ended.wait()
        finally:
            for each in sockets:
                each.close()


class Machine:
    """A disk under `path` and a clock that goes on from life to life."""

    def __init__(self, path: Path) -> None:
        self.disk = path / "disk"
        """All that outlives a process."""
        self._frozen = path / "frozen"
        self.disk.mkdir(parents=True)
        self.full = False
        self.dead = False
        self.servers: list[Server] = []
        """Those that the present life has started."""
        self._acts = 0
        self._pages = 0
        self._connections: list[sqlite3.Connection] = []
        self._passed = BEGIN
        self._loop: VirtualLoop | None = None

    # The clock.

    def now(self) -> float:
        """Seconds since 1970."""
        return self._passed + (self._loop.time() if self._loop else 0.0)

    def begin(self) -> VirtualLoop:
        """The event loop of a new life."""
        self.dead, self.servers = False, []
        self._loop = VirtualLoop()
        return self._loop

    def end(self) -> None:
        """The life is over, in order or not; after a death the disk is as it was then."""
        self._passed = self.now()
        self._loop = None
        self._acts = 0
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self.dead:
            _remove(self.disk)
            self._frozen.rename(self.disk)
            self.dead = False

    # Death.

    def arm(self, acts: int) -> None:
        """Have the process die at the durable act of this number from here; 0: at none."""
        self._acts = acts

    def reach(self) -> None:
        """A durable act; raises Killed if it is the last one."""
        lives = self._loop is not None and self._loop.is_running()
        if lives and self._acts > 0:
            self._acts -= 1
            if self._acts == 0:
                self.die()
                raise Killed

    def die(self) -> None:
        """From now on nothing reaches the disk."""
        if not self.dead:
            shutil.copytree(
                self.disk, self._frozen, symlinks=True, ignore=shutil.ignore_patterns("socket")
            )
            self.dead = True

    # Room.

    def fill(self, pages: int) -> None:
        """The disk is full; the store may grow by so many pages."""
        self.full, self._pages = True, pages
        self._limit_all()

    def make_room(self) -> None:
        """The disk is not full any more."""
        self.full = False
        self._limit_all()

    def check_room(self) -> None:
        """Raise the error of a full disk, if it is full."""
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _limit_all(self) -> None:
        for connection in self._connections:
            with suppress(sqlite3.ProgrammingError):  # it is closed
                self._limit(connection)

    def _limit(self, connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        most = pages + self._pages if self.full else MOST_PAGES
        connection.execute(f"PRAGMA max_page_count = {most}")

    # What of arcd is replaced.

    @contextmanager
    def installed(self) -> Iterator[None]:
        """All that happens in the block happens on this machine."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "_connect", self._connecting(database._connect))
            patch.setattr(Database, "transaction", self._transacting(Database.transaction))
            patch.setattr(files, "_write_durably", self._writing(files._write_durably))
            for owner, name in ((os, "replace"), (shutil, "rmtree")):
                patch.setattr(owner, name, self._around(getattr(owner, name)))
            patch.setattr(shutil, "disk_usage", self._disk_usage)
            patch.setattr(to_thread, "run_sync", _at_once)
            patch.setattr(server, "server_of", self._server_of)
            patch.setattr(os, "_exit", _exit)
            for kind, clock in ((Store, "clock"), (Scheduler, "wall"), (KeptRates, "clock")):
                patch.setitem(vars(kind)["__init__"].__kwdefaults__, clock, self.now)
            yield

    def _connecting(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., Any]:
        def tracked(path: Path, mode: database.Mode) -> sqlite3.Connection:
            connection = connect(path, mode)
            self._connections.append(connection)
            if mode == "write":
                # A death of the process loses nothing that the system has.
                connection.execute("PRAGMA synchronous = OFF")
                self._limit(connection)
            return connection

        return tracked

    def _transacting(self, transaction: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def surrounded(of: Database) -> Iterator[sqlite3.Connection]:
            self.reach()
            with transaction(of) as connection:
                yield connection
                self.reach()
            self.reach()

        return surrounded

    def _writing(self, write: Callable[..., None]) -> Callable[..., None]:
        def written(path: Path, text: str, *rest: object) -> None:
            self.reach()
            write(path, text[: len(text) // 2], *rest)
            self.check_room()
            self.reach()
            write(path, text, *rest)
            self.reach()

        return written

    def _around(self, act: Callable[..., T]) -> Callable[..., T]:
        def surrounded(*args: Any, **kwargs: Any) -> T:
            self.reach()
            done = act(*args, **kwargs)
            self.reach()
            return done

        return surrounded

    def _disk_usage(self, path: Path) -> Any:
        return SimpleNamespace(total=ROOM, used=0, free=0 if self.full else ROOM)

    def _server_of(self, app: Any) -> Server:
        self.servers.append(Server(app))
        return self.servers[-1]


async def _at_once(work: Callable[..., T], *args: Any, **_: Any) -> T:
    """What a thread would do, which the clock would not wait for."""
    await anyio.lowlevel.checkpoint()
    return work(*args)


def _exit(code: int) -> None:
    raise Exited(code)


def _remove(folder: Path) -> None:
    """Delete a folder, which is no durable act of a life."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        else:
            path.unlink()
    folder.rmdir()
