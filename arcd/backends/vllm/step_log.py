"""The step log: what engine steps did, worked out afterwards from the requests that finished.

vLLM reports a request only when it is finished; it generated one token of it in each step since its
prompt was read. So once all requests that were open in a step are finished, it is known how many
tokens the step generated and how many prompt tokens were read by then.

With asynchronous scheduling a step returns what the step before has computed, and waits for it. So
the step that returns a request's last token is also the one that took its time, as without it, and
tokens and seconds are right. Steps are one too many for each time the engine begins with nothing to
do: the first one only schedules. Two things are not counted: a token that was computed after an
answer's end, before that was known, and an aborted request's token in the step after. Pure; used by
one thread.
"""

from arcd.backends.protocols import EngineUsage

MIN_REPORT_STEPS = 32
"""Fewest steps that are reported together while a request is open."""


class StepLog:
    """Steps in their order, from the first that is not reported yet."""

    def __init__(self) -> None:
        self._reported = 0
        self._steps: list[_Step] = []
        self._open: dict[str, int] = {}
        """By open request the number of the first step that it may have been in."""

    def begin(self, request: str) -> None:
        """A request was added."""
        self._open[request] = self._reported + len(self._steps)

    def step(self, seconds: float) -> None:
        """A step was made."""
        self._steps.append(_Step(seconds))

    def finish(self, request: str, prompt: int, generated: int) -> None:
        """A request finished in the last step, after steps that made one token of it each."""
        begun = self._open.pop(request) - self._reported
        first = max(begun, len(self._steps) - generated)
        for step in self._steps[first:]:
            step.generated += 1
        if first < len(self._steps):
            self._steps[first].prompt += prompt

    def abort(self, request: str) -> None:
        """A request was aborted: what the steps since `begin` did for it is not known."""
        begun = self._open.pop(request) - self._reported
        for step in self._steps[begun:]:
            step.known = False

    def take(self) -> list[EngineUsage]:
        """What those steps did in which no open request was; each step is reported once.

        The steps up to the last one that read a prompt are reported apart from those that only
        generated: an estimator learns the two rates better from them than from their sum.
        """
        made = self._reported + len(self._steps)
        closed = min(self._open.values(), default=made) - self._reported
        if closed < MIN_REPORT_STEPS and self._open:
            return []
        steps = [step for step in self._steps[:closed] if step.known]
        del self._steps[:closed]
        self._reported += closed
        reading = max((i + 1 for i, step in enumerate(steps) if step.prompt), default=0)
        return [_together(part) for part in (steps[:reading], steps[reading:]) if part]


class _Step:
    __slots__ = ("generated", "known", "prompt", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.prompt = 0
        self.generated = 0
        self.known = True


def _together(steps: list[_Step]) -> EngineUsage:
    return EngineUsage(
        len(steps),
        sum(step.prompt for step in steps),
        sum(step.generated for step in steps),
        sum(step.seconds for step in steps),
    )
