"""The SQL of the store: its tables, its version, and what makes an old store a new one.

Knows nothing of what is read or written.
"""

import sqlite3

VERSION = 3
"""Version of the schema, stored in SQLite's user_version."""

_RATES = """\
CREATE TABLE rates (
    platform TEXT PRIMARY KEY,      -- device, base and what else decides how fast it is
    measured TEXT NOT NULL
) STRICT;
"""

_SKIPPED = """\
CREATE TABLE skipped (              -- tasks of a job's file that cannot be used
    job INTEGER NOT NULL REFERENCES jobs,
    task TEXT NOT NULL,
    tests INTEGER NOT NULL,         -- as many blanks it has in the submission
    PRIMARY KEY (job, task)
) STRICT, WITHOUT ROWID;
"""
"""Added by version 3."""

SCHEMA = f"""
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,               -- seconds since 1970; order is that of seq
    job INTEGER,                    -- NULL: of the daemon
    kind TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_job ON events (job, seq);
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    config TEXT NOT NULL,
    outs TEXT NOT NULL,
    digest TEXT NOT NULL,           -- of what is asked for, without its name and priority
    base TEXT NOT NULL DEFAULT '',  -- the base model it was given to, if that is known
    -- The last answered event in jobs/N/submission.json, and that which all outs have; 0: none yet,
    -- -1: not written.
    kept INTEGER NOT NULL DEFAULT -1,
    published INTEGER NOT NULL DEFAULT -1
) STRICT;
CREATE TABLE tasks (
    job INTEGER NOT NULL REFERENCES jobs,
    position INTEGER NOT NULL,
    task TEXT NOT NULL,
    body TEXT NOT NULL,             -- as in a challenges file
    solution TEXT,                  -- as in a solutions file
    attempts TEXT NOT NULL,         -- as in a submission; blank until there is an answer
    answered INTEGER REFERENCES events,
    PRIMARY KEY (job, task)
) STRICT;
CREATE TABLE candidates (
    job INTEGER NOT NULL,
    task TEXT NOT NULL,
    test INTEGER NOT NULL,
    sample INTEGER NOT NULL,        -- counted through all retries
    seq INTEGER NOT NULL REFERENCES events,
    PRIMARY KEY (job, task, test, sample)
) STRICT, WITHOUT ROWID;
CREATE TABLE serials (next INTEGER NOT NULL) STRICT;
INSERT INTO serials VALUES (0);
{_RATES}{_SKIPPED}"""

_PUBLISHED = """\
ALTER TABLE jobs ADD COLUMN kept INTEGER NOT NULL DEFAULT -1;
ALTER TABLE jobs ADD COLUMN published INTEGER NOT NULL DEFAULT -1;
-- Nobody knows, and what is there may be the user's by now: it counts as written.
UPDATE jobs SET published =
    (SELECT coalesce(max(answered), 0) FROM tasks WHERE tasks.job = jobs.id);
"""

MIGRATIONS = {
    1: f"ALTER TABLE jobs ADD COLUMN base TEXT NOT NULL DEFAULT '';\n{_RATES}",
    2: f"{_PUBLISHED}{_SKIPPED}",
}
"""SQL that makes a store the next version, by the version it starts from."""

READABLE = range(1, VERSION + 1)
"""Versions that can be read without a migration: what reads also does without later additions."""


def create(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file."""
    connection.executescript(f"BEGIN;\n{SCHEMA}\nPRAGMA user_version = {VERSION};\nCOMMIT;")


def migrate(connection: sqlite3.Connection, found: int) -> int:
    """Take a store of version `found` as far as there are migrations; returns where it is then."""
    while found in MIGRATIONS:
        step = f"BEGIN;\n{MIGRATIONS[found]}\nPRAGMA user_version = {found + 1};\nCOMMIT;"
        connection.executescript(step)
        found += 1
    return found


def version(connection: sqlite3.Connection) -> int | None:
    """The version of an open store; None if it is empty."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return int(found) if found or tables else None
