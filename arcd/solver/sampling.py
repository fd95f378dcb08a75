"""The sampling stage: from requests to candidates, by the adapter or else by the base.

Knows nothing of training or votes.
"""

import math
from collections.abc import Callable

from arcd.arc.selection import Candidate
from arcd.backends.protocols import Adapter, Completion, Request
from arcd.backends.runtime import Runtime
from arcd.errors import SampleRefused
from arcd.jobs import events
from arcd.jobs.events import Emit
from arcd.model.encoding import Encoding
from arcd.solver.assignment import open_requests


async def sample(
    requests: list[Request],
    adapter: Adapter | None,
    candidates: list[Candidate],
    runtime: Runtime,
    emit: Emit,
    note: Callable[[str], None],
) -> Adapter | None:
    """Append a candidate for each request when it is done; a cancellation leaves those there are.

    Returns the adapter, or None if the engine refused it and the base drew what was left. If the
    engine refuses the base too, candidates are missing and a note says so.
    """

    def deliver(completion: Completion) -> None:
        with runtime.ledger.span("host", "parse"):
            candidate = to_candidate(completion, adapter, runtime.encoding)
        candidates.append(candidate)
        emit(events.Sampled(candidate.task, candidate))

    try:
        await runtime.engine.sample(requests, adapter, deliver)
    except SampleRefused as error:
        if adapter is None:
            note(f"not sampled: {error}")
            return None
        note(f"answered by the base: {error}")
        remaining = open_requests(requests, candidates)
        return await sample(remaining, None, candidates, runtime, emit, note)
    return adapter


def to_candidate(completion: Completion, adapter: Adapter | None, encoding: Encoding) -> Candidate:
    """The completion parsed and carried back from its view.

    Without a grid if it is cut short, or if the model gave no numbers: its tokens mean nothing.
    """
    question = completion.request.question
    logprob = sum(completion.logprobs)
    whole = completion.finish == "stop" and math.isfinite(logprob)
    grid = encoding.parse(completion.tokens) if whole else None
    return Candidate(
        task=question.task,
        test=question.test,
        view=question.view,
        shown=question.shown,
        sample=completion.request.sample,
        adapter=adapter.serial if adapter else None,
        grid=None if grid is None else question.view.undo(grid),
        logprob=logprob,
        length=len(completion.tokens),
    )
