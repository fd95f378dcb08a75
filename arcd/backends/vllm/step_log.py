"""The step log: what engine steps did, told afterwards from the samples that finished.

An engine that says only when a sample is done has made one token of it in each of the steps
before. So once all that were open in a step have finished, it is known how many sequences ran in
it and how many prompt tokens were read by then. Pure; used by one thread.
"""

from arcd.backends.protocols import EngineUsage

FEWEST = 32
"""Steps that are told together, unless nothing is open."""


class StepLog:
    """Steps in their order, from the first that is not yet told."""

    def __init__(self) -> None:
        self._told = 0
        self._steps: list[_Step] = []
        self._open: dict[str, int] = {}
        """By request, the number of the first step that it may have been in."""

    def begin(self, request: str) -> None:
        """A request is open."""
        self._open[request] = self._told + len(self._steps)

    def step(self, seconds: float) -> None:
        """A step was made."""
        self._steps.append(_Step(seconds))

    def finish(self, request: str, prompt: int, generated: int) -> None:
        """A request was done in the last step; each since its prompt was read made one token."""
        begun = self._open.pop(request) - self._told
        first = max(begun, len(self._steps) - generated)
        for step in self._steps[first:]:
            step.generated += 1
        if first < len(self._steps):
            self._steps[first].prompt += prompt

    def abort(self, request: str) -> None:
        """A request was given up: nobody knows what the steps since it came did for it."""
        begun = self._open.pop(request) - self._told
        for step in self._steps[begun:]:
            step.known = False

    def take(self) -> list[EngineUsage]:
        """What the steps did that nothing open was in; each is told once.

        Reading prompts apart from mere generating, where that can be told: mixed, they teach less.
        """
        closed = min(self._open.values(), default=self._told + len(self._steps)) - self._told
        if closed < FEWEST and self._open:
            return []
        steps = [step for step in self._steps[:closed] if step.known]
        del self._steps[:closed]
        self._told += closed
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
