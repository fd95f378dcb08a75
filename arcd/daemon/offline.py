"""The offline client: answers from the store of a home in which no daemon runs.

It has the methods of `Client` that only read. Knows nothing of HTTP.
"""

import json
from typing import Any

from arcd.errors import NoJob
from arcd.jobs.fold import Fold
from arcd.jobs.snapshots import Snapshots
from arcd.jobs.state import Job
from arcd.jobs.store import Store
from arcd.system.home import Home


class OfflineClient:
    """The reading half of a `Client`; raises StoreFailed where a home has no store."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store = Store(home.path, "read")
        self._jobs: dict[int, Job] = {}

    def health(self) -> dict[str, Any]:
        """The state `stopped`, the home, how many jobs."""
        jobs = self._store.jobs.count()
        return {"state": "stopped", "home": str(self._home.path), "jobs": jobs}

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs, oldest first."""
        return [job.to_json() for job in self._fold().all().jobs.values()]

    def job(self, number: int) -> dict[str, Any]:
        """One job; raises NoJob."""
        return self._job(number).to_json()

    def forecast(self, number: int) -> dict[str, Any]:
        """How good predictions were; `seconds` is None, because no daemon works on the job."""
        accuracy = self._job(number).accuracy()
        return {"job": number, "seconds": None, "tasks": {}, "accuracy": accuracy}

    def result(self, number: int) -> dict[str, Any]:
        """The submission, in Kaggle's format."""
        return dict(json.loads(self.result_text(number)))

    def result_text(self, number: int) -> str:
        """The same, as the JSON text that it is kept as."""
        self._check(number)
        return self._store.jobs.submission(number)

    def _fold(self) -> Fold:
        return Fold(self._store.database, Snapshots(self._home.snapshot))

    def _job(self, number: int) -> Job:
        self._check(number)
        if number not in self._jobs:
            fold = self._fold()
            fold.job(number)
            self._jobs[number] = fold.state.jobs[number]
        return self._jobs[number]

    def _check(self, number: int) -> None:
        if not self._store.jobs.has(number):
            raise NoJob(f"job {number}: there is no such job")
