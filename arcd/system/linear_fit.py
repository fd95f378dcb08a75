"""A linear model of one quantity, fitted again to its last 64 measurements after each new one.

Seconds of work, bytes of a step: a sum of non-negative coefficients times amounts. Pure; knows
nothing of clocks, devices or stores.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median

WINDOW = 64
"""Measurements that count: older ones say little about the machine now."""

RIDGE = 0.001
"""Weight of the last estimate, against 1 for each measurement. Tasks that are all alike cannot
separate the time of tokens from that of steps; then the proportion stays as it was."""

ITERATIONS = 6
"""Iterations of the fit; the weights hardly change after the third."""

LEAST_PART = 0.01
"""Part of its prior that a coefficient has at least as a unit: so it can grow again after a 0."""

LEAST = 1e-9
"""What one unit of any amount takes at least."""

HUBER = 1.345
"""Residuals of more than this many standard deviations count less. The value has 95 % of the
efficiency of least squares where errors are normal (P. J. Huber, Robust Statistics, 1981)."""

LEAST_SPREAD = 0.03
"""Relative error below which a measurement counts in full."""

Row = tuple[float, ...]


class LinearFit:
    """A quantity as a sum of non-negative coefficients times amounts, robust against stragglers."""

    def __init__(self, prior: Sequence[float], seen: Iterable[tuple[Row, float]] = ()) -> None:
        """`prior` are coefficients in the right proportion; their scale is measured."""
        self._prior = tuple(prior)
        self._seen: deque[tuple[Row, float]] = deque(seen, maxlen=WINDOW)
        self._found: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def seen(self) -> list[tuple[Row, float]]:
        """The measurements that count: (amounts, quantity)."""
        return list(self._seen)

    def add(self, amounts: Row, quantity: float) -> None:
        """These amounts took so much of the quantity; what cannot be is left out."""
        if quantity > 0 and any(amounts) and all(map(math.isfinite, (*amounts, quantity))):
            self._seen.append((amounts, quantity))
            self._found = None

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The quantity for one unit of each amount."""
        if self._found is None:
            self._found = self._fit() if self._seen else self._prior
        return self._found

    @property
    def scale(self) -> float:
        """How many times as much as by the prior it takes; 1 before anything is measured."""
        if not self._seen:
            return 1.0
        return median(found / _dot(amounts, self._prior) for amounts, found in self._seen)

    def _fit(self) -> tuple[float, ...]:
        """Least squares of relative errors, iteratively reweighted (Huber)."""
        scale = self.scale
        least = [LEAST_PART * scale * p for p in self._prior]
        found = [scale * p for p in self._prior]
        weights = [1.0] * len(self._seen)
        for _ in range(ITERATIONS):
            # In units of the last iteration: each unknown is about 1, each measurement is 1.
            units = [max(f, low) for f, low in zip(found, least, strict=True)]
            rows = [[a * u / y for a, u in zip(x, units, strict=True)] for x, y in self._seen]
            parts = _solve(rows, weights)
            errors = [abs(_dot(row, parts) - 1) for row in rows]
            limit = HUBER * max(1.4826 * median(errors), LEAST_SPREAD)
            weights = [min(1.0, limit / error) if error else 1.0 for error in errors]
            found = [part * unit for part, unit in zip(parts, units, strict=True)]
        # Rates are divided by, so none is 0.
        return tuple(max(f, low, LEAST) for f, low in zip(found, least, strict=True))


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _solve(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """x >= 0 that makes each weighted row times x come near 1, and x itself near 1."""
    import numpy as np  # only where something was measured

    size = len(rows[0])
    # The last rows pull each unknown to 1, so that the system has one solution.
    scales = np.sqrt([*weights, *[RIDGE] * size])
    matrix = np.vstack([rows, np.eye(size)]) * scales[:, None]
    free = list(range(size))
    while True:
        part = np.linalg.lstsq(matrix[:, free], scales, rcond=None)[0]
        least = int(np.argmin(part))
        if part[least] >= 0:
            found = dict(zip(free, part.tolist(), strict=True))
            return [found.get(i, 0.0) for i in range(size)]
        # A coefficient that would be negative is 0; one at a time, the most negative first.
        del free[least]
