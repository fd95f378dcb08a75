"""What daemons keep from one life to the next: the last adapter's number, the measured rates.

Knows nothing of what the rates mean.
"""

import json
from typing import Any

from arcd.jobs.database import Database


class DaemonFacts:
    """The facts in a store that belong to no job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def serial(self) -> int:
        """A number for an adapter; none is given out twice, whatever dies in between."""
        with self._database.transaction() as connection:
            row = connection.execute("UPDATE serials SET next = next + 1 RETURNING next")
            return int(row.fetchone()[0]) - 1

    def measured(self, platform: str) -> Any:
        """What was measured of a platform, as a JSON value; None if nothing was."""
        rows = self._database.read("SELECT measured FROM rates WHERE platform = ?", (platform,))
        return next((json.loads(text) for (text,) in rows), None)

    def keep_measured(self, platform: str, measured: Any) -> None:
        """Remember what was measured of a platform, a JSON value."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO rates (platform, measured) VALUES (?, ?)",
                (platform, json.dumps(measured)),
            )
