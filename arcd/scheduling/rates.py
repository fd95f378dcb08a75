"""Rates are estimated from what was measured of the trainer and of the engine.

Each is a linear model of seconds, fitted again to its last 64 measurements after each new one.
Pure; knows nothing of clocks or stores.
"""

from typing import Any

from arcd.backends.protocols import EngineUsage
from arcd.scheduling.forecast import COLD, Rates
from arcd.system.linear_fit import LinearFit

TRAINER = (COLD.task, COLD.step, COLD.token)
ENGINE = (COLD.round, COLD.prompt, COLD.row)
"""The rates of each before it was measured."""


class RateEstimator:
    """Estimates the rates of one machine with one base.

    Until a training is done, what those under way have taken counts. As long as only trainer or
    engine was measured, the other is taken to be as much slower than the prior, but not faster: a
    budget must not be promised twice.
    """

    def __init__(self) -> None:
        self._trainer = LinearFit(TRAINER)
        self._underway = LinearFit(TRAINER)
        self._engine = LinearFit(ENGINE)

    @property
    def rates(self) -> Rates:
        """The rates as they are estimated now."""
        trainer, engine = self._trainer if len(self._trainer) else self._underway, self._engine
        slower = max(1.0, trainer.scale, engine.scale)
        return Rates(
            *(trainer.coefficients if len(trainer) else (slower * rate for rate in TRAINER)),
            *(engine.coefficients if len(engine) else (slower * rate for rate in ENGINE)),
        )

    @property
    def known(self) -> bool:
        """Whether trainer and engine were both measured."""
        return bool(len(self._trainer) and len(self._engine))

    def training(self, steps: int, tokens: float, seconds: float) -> None:
        """A training that goes on has taken so many seconds for these steps and tokens."""
        if not len(self._trainer):
            self._underway.add((1.0, steps, tokens), seconds)

    def trained(self, steps: int, tokens: int, seconds: float) -> None:
        """A training of these steps and tokens took so many seconds."""
        self._trainer.add((1.0, steps, tokens), seconds)

    def stepped(self, *usage: EngineUsage) -> None:
        """The engine was used like this."""
        for did in usage:
            self._engine.add((did.steps, did.prompt, did.generated), did.seconds)

    def to_json(self) -> dict[str, Any]:
        """The measurements, for `from_json`."""
        return {"trainer": self._trainer.seen, "engine": self._engine.seen}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "RateEstimator":
        """The estimator whose measurements `to_json` gave."""
        found = cls()
        for fit, seen in ((found._trainer, value["trainer"]), (found._engine, value["engine"])):
            for amounts, seconds in seen:
                fit.add(tuple(amounts), seconds)
        return found
