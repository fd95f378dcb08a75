"""The database: one open SQLite file, its transactions, and its errors in arcd's words.

What is written in a transaction is on the disk when the transaction is over. One process writes,
any number read. Knows nothing of events or jobs.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from arcd.errors import StoreFailed
from arcd.jobs import schema

Mode = Literal["write", "read"]


class Database:
    """An open file. Raises StoreFailed, naming the file, for every error of SQLite or system."""

    def __init__(self, path: Path, mode: Mode) -> None:
        """Open the file; for writing it is made, or migrated, if need be."""
        self.path = path
        if mode == "read" and not path.is_file():
            raise StoreFailed(f"{path.parent}: no jobs here")
        with self._explained():
            self.connection = _connect(path, mode)
            self._check_version(mode)

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        with self._explained():
            self.connection.close()

    def read(self, query: str, values: Any = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one by one."""
        with self._explained():
            yield from self.connection.execute(query, values)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on the disk when the block is over."""
        with self._explained():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                self.connection.rollback()
                raise

    def execute(self, statement: str) -> None:
        """Run a statement that is no part of a transaction and whose rows do not matter."""
        with self._explained():
            self.connection.execute(statement).fetchall()

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """In the block all that is read is of the moment of the first reading."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            self.execute("ROLLBACK")

    @contextmanager
    def without_foreign_keys(self) -> Iterator[None]:
        """In the block nothing looks after rows that refer to others."""
        self.execute("PRAGMA foreign_keys = OFF")
        try:
            yield
        finally:
            self.execute("PRAGMA foreign_keys = ON")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreFailed(f"{self.path}: {error}") from error
        except OSError as error:
            raise StoreFailed(f"{self.path}: {error.strerror or error}") from error

    def _check_version(self, mode: Mode) -> None:
        found = schema.version(self.connection)
        if found is None and mode == "write":
            schema.create(self.connection)
            return
        if found is None:
            # Another process is making it now.
            self.connection.close()
            raise StoreFailed(f"{self.path.parent}: no jobs here")
        if mode == "write":
            found = schema.migrate(self.connection, found)
        if found != schema.VERSION and not (mode == "read" and found in schema.READABLE):
            self.connection.close()
            raise StoreFailed(
                f"{self.path}: a store of version {found}, this arcd reads version "
                f"{schema.VERSION}: use the arcd that made it, or another --home"
            )


def _connect(path: Path, mode: Mode) -> sqlite3.Connection:
    if mode == "read":
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    # Nobody else's: made before SQLite would make it with the user's umask.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    new = path.stat().st_size == 0
    connection = sqlite3.connect(path, isolation_level=None)
    if new:
        # An older store has to be written anew for it: see `forgetting`.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut, too
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
