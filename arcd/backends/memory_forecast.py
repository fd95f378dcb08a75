"""What a training step will take, and what is chosen so that it fits: before any step is made.

Bytes are a linear function of the tokens that go through the model together, one for plain steps
and one for steps whose activations are computed again. Both begin with arithmetic and are fitted to
what the steps took. Knows nothing of torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from arcd.backends.memory import Memory
from arcd.decoder.footprint import Footprint
from arcd.errors import OutOfMemory
from arcd.system.linear_fit import LinearFit

MARGIN = 1.1
"""A step is taken to need this many times its forecast: memory is given in blocks of 2 MiB and
larger, with gaps between them, and the fit is not exact."""

AFTER_FAILURE = 1.25, 2.0
"""Where a step did not fit that was forecast to, the margin grows until it would not be made again:
at least and at most this many times, for it may have been others that took the memory."""

UNIT = 64
"""Lessons are padded to a multiple of at most this many tokens."""

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Plan:
    """How the steps of a training are made."""

    recompute: bool
    """Whether activations are computed again."""
    at_once: int
    """Most tokens that go through the model together; a longer lesson goes alone."""


class MemoryForecast:
    """Bytes that the steps on some tensors take."""

    def __init__(self, footprint: Footprint) -> None:
        """Begin with what arithmetic says."""
        self.footprint = footprint
        priors = {recompute: footprint.of(recompute=recompute) for recompute in (False, True)}
        self._fits = {key: LinearFit((prior.fixed, prior.token)) for key, prior in priors.items()}
        self._margin = dict.fromkeys(priors, MARGIN)

    def needed(self, tokens: int, *, recompute: bool) -> float:
        """Bytes that a training takes if so many tokens at most go through the model together."""
        fixed, token = self._fits[recompute].coefficients
        step = self._margin[recompute] * (fixed + token * tokens)
        return self.footprint.lasting + step

    def fitting(self, allowed: float, *, recompute: bool) -> int:
        """Most tokens together for which so many bytes are enough; 0 if none are."""
        fixed, token = self._fits[recompute].coefficients
        step = (allowed - self.footprint.lasting) / self._margin[recompute]
        return max(0, int((step - fixed) / token))

    def measured(self, tokens: int, peak: int, *, recompute: bool) -> None:
        """A step took so many bytes at its peak, beyond those before it."""
        self._fits[recompute].add((1.0, tokens), peak)

    def failed(self, tokens: int, allowed: float, *, recompute: bool) -> None:
        """A step of so many tokens did not fit, though so many bytes were allowed for it."""
        step = self.needed(tokens, recompute=recompute) - self.footprint.lasting
        least, most = AFTER_FAILURE
        enough = least * (allowed - self.footprint.lasting) / step
        self._margin[recompute] *= min(most, max(least, enough))


class StepMemory:
    """The forecast for some tensors beside the memory that they may use."""

    def __init__(self, memory: Memory, footprint: Footprint, most_at_once: int | None) -> None:
        """`most_at_once` tokens together are enough even where more would fit; None: any number."""
        self.memory, self._forecast = memory, MemoryForecast(footprint)
        self._most = most_at_once

    def plan(
        self, lengths: Sequence[int], padded: Callable[[Sequence[int]], int], *, frugal: bool
    ) -> Plan:
        """How to train on lessons of these lengths; `frugal` asks to recompute in any case.

        `padded` tells the tokens that lessons of some lengths are together. Raises OutOfMemory with
        the tokens that would fit, if the longest lesson does not fit in any way.
        """
        allowed = self._allowed()
        most = self._most or padded(lengths)
        if allowed is None:
            return Plan(frugal, most)
        longest = padded([max(lengths)])
        fits = 0
        for recompute in (True,) if frugal else (False, True):
            fits = self._forecast.fitting(allowed, recompute=recompute)
            if longest <= fits:
                return Plan(recompute, min(most, fits))
        needed = self._forecast.needed(longest, recompute=True)
        raise OutOfMemory(
            f"a lesson of {max(lengths)} tokens needs {needed / GIB:.1f} GiB in training, "
            f"{allowed / GIB:.1f} GiB are there",
            fits=fits // UNIT * UNIT,
        )

    def measured(self, tokens: int, *, recompute: bool) -> None:
        """The step since `memory.start` had so many tokens together at most, and has succeeded."""
        peak = self.memory.peak()
        if peak is not None:
            self._forecast.measured(tokens, peak, recompute=recompute)

    def failed(self, tokens: int, *, recompute: bool) -> None:
        """A step of so many tokens together ran out of memory; the memory is free again."""
        allowed = self._allowed()
        if allowed is not None:
            self._forecast.failed(tokens, allowed, recompute=recompute)

    def _allowed(self) -> int | None:
        return self.memory.allowance(self._forecast.footprint.kept)
