"""The measured rates of a platform, kept in the store from one daemon to the next.

They may be a few seconds old after a death: they are soon measured again. Knows nothing of how
rates are measured.
"""

import json
import math
import time
from collections.abc import Callable

from arcd.config import Config
from arcd.daemon.phases import Platform
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.store import Store
from arcd.scheduling.rates import RateEstimator

WRITE_INTERVAL_S = 10.0
"""Seconds between two writings."""


class KeptRates:
    """The rates of one platform with one configuration."""

    def __init__(
        self,
        store: Store,
        platform: Platform,
        config: Config,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._clock = store, clock
        self._key = _key(platform, config)
        self._written = -math.inf

    def find(self) -> RateEstimator | None:
        """What an earlier daemon has measured, if it has measured trainer and engine."""
        kept = self._store.facts.measured(self._key)
        if kept is not None and (found := RateEstimator.from_json(kept)).known:
            return found
        return None

    def write(self, estimator: RateEstimator) -> None:
        """Keep what is measured by now."""
        self._store.facts.keep_measured(self._key, estimator.to_json())
        self._written = self._clock()

    def subscriber(self, estimator: RateEstimator) -> Callable[[Record], None]:
        """Writes when a task was answered, at most once in WRITE_INTERVAL_S."""

        def hear(record: Record) -> None:
            due = self._written + WRITE_INTERVAL_S < self._clock()
            if isinstance(record.event, events.Answered) and due:
                self.write(estimator)

        return hear


def _key(platform: Platform, config: Config) -> str:
    """What decides how fast it is: machine, base, engine, and the shape of an adapter."""
    device = platform.device
    return json.dumps(
        {
            "device": [device.kind, device.name, device.dtype],
            "base": platform.fingerprint,
            "engine": config.engine.model_dump(mode="json"),
            "trainings": config.trainings,
            "rank": config.train.rank,
            "target_modules": config.train.target_modules,
        }
    )
