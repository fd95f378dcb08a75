"""Which requests are in vLLM at once: all of them, until memory has run out; then fewer.

Half of those that were in the batch, and one more whenever GROW_AFTER have finished, until the
batch is full again: a trainer that needs much memory for one task needs less for the next. Where
memory stays short, a number that grew with each finished request would reach its double with each
batch of requests, and half of the work would be lost; a slower one loses an eighth. Pure.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from arcd.backends.protocols import Request
from arcd.backends.vllm.calls import Call

Entry = tuple[Call, Request]

GROW_AFTER = 4
"""Requests that finish before one more may be in the batch."""

PAUSES_S = (0.5, 1.0, 2.0)
"""Seconds before a request for which memory ran out, though it was alone, is tried again: a step of
a trainer needs most of its memory for a fraction of a second."""


class Admission:
    """The requests that wait, and how many may be in vLLM."""

    def __init__(self, sequences: int) -> None:
        """`sequences` is the most that vLLM has in one batch; what is beyond, it lets wait."""
        self._sequences = sequences
        self._limit: int | None = None
        self._waiting: deque[Entry] = deque()
        self._finished = 0
        self._lonely_failures = 0

    @property
    def limit(self) -> int | None:
        """Requests that may be in vLLM at once; None: any number."""
        return self._limit

    def add(self, entries: Iterable[Entry]) -> None:
        """Let requests wait, behind the others."""
        self._waiting.extend(entries)

    def next(self, running: int) -> Entry | None:
        """The request that comes next to `running` others, if there is one and room for it."""
        if self._waiting and (self._limit is None or running < self._limit):
            return self._waiting.popleft()
        return None

    def drop(self, call: Call) -> None:
        """Forget what waits of a call."""
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not call)

    def finish(self) -> None:
        """A request has finished."""
        self._lonely_failures = 0
        if self._limit is None:
            return
        self._finished += 1
        if self._finished == GROW_AFTER:
            self._finished = 0
            self._limit = self._limit + 1 if self._limit < self._sequences else None

    def fall_back(self, entries: Sequence[Entry]) -> float | None:
        """Memory ran out with these in vLLM: they wait before all others, fewer may be in it.

        Returns the seconds until then. None: the only one was tried often enough, and is dropped.
        """
        self._finished = 0
        self._limit = max(1, min(len(entries), self._sequences) // 2)
        pause = 0.0
        if len(entries) == 1:
            if self._lonely_failures == len(PAUSES_S):
                self._lonely_failures = 0
                return None
            pause = PAUSES_S[self._lonely_failures]
            self._lonely_failures += 1
        self._waiting.extendleft(reversed(entries))
        return pause
