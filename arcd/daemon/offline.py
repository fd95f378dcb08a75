"""The offline client: answers from the store of a home in which no daemon runs.

It has the methods of `Client` that only read. Knows nothing of HTTP.
"""

import json
from typing import Any

from arcd.errors import NoJob
from arcd.jobs.store import Store
from arcd.system.home import Home


class OfflineClient:
    """The reading half of a `Client`; raises StoreFailed where a home has no store."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store = Store(home.path, "read")
        self._state = self._store.journal.state()

    def health(self) -> dict[str, Any]:
        """The state `stopped`, the home, how many jobs."""
        return {"state": "stopped", "home": str(self._home.path), "jobs": len(self._state.jobs)}

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, oldest first."""
        return [job.to_json() for job in self._state.jobs.values()]

    def job(self, number: int) -> dict[str, Any]:
        """One job; raises NoJob."""
        if number not in self._state.jobs:
            raise NoJob(f"job {number}: there is no such job")
        return self._state.jobs[number].to_json()

    def forecast(self, number: int) -> dict[str, Any]:
        """How good predictions were; `seconds` is None, because no daemon works on the job."""
        self.job(number)
        accuracy = self._state.jobs[number].accuracy()
        return {"job": number, "seconds": None, "tasks": {}, "accuracy": accuracy}

    def result(self, number: int) -> dict[str, Any]:
        """The submission, in Kaggle's format."""
        self.job(number)
        return dict(json.loads(self._store.jobs.submission(number)))
