"""Rescoring: how likely the leading answers to a task are, each in several views.

A sample was likely in the one view in which it was drawn; a right answer is likely in all views.
Knows nothing of how a verdict uses likelihoods.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from arcd.arc.grids import Grid
from arcd.arc.selection import Candidate, Likelihoods, contenders
from arcd.backends.protocols import Adapter, Completion, Engine, Request
from arcd.config import Config
from arcd.model.encoding import Encoding
from arcd.model.prompts import Question, TooLong


async def rescore(
    questions: Iterable[Question | TooLong],
    candidates: Sequence[Candidate],
    adapter: Adapter | None,
    engine: Engine,
    encoding: Encoding,
    config: Config,
) -> Likelihoods:
    """The log-likelihood of each contender, its mean over the first views of its test, in nats.

    A contender for which the model gives no number has none.
    All contenders of a test are rescored in the same views, at most `sample.judging_views`; a view
    in which one of them does not fit the context is left out. Raises as `Engine.sample` does.
    """
    grids = _requests(questions, candidates, encoding, config)
    logprobs: dict[tuple[int, Grid], list[float]] = defaultdict(list)

    def deliver(completion: Completion) -> None:
        logprobs[grids[completion.request]].append(sum(completion.logprobs))

    if grids:
        await engine.sample(list(grids), adapter, deliver)
    # Sorted before summing: a mean must not depend on the order of its terms.
    means = {key: fmean(sorted(found)) for key, found in logprobs.items()}
    return {key: mean for key, mean in means.items() if math.isfinite(mean)}


def _requests(
    questions: Iterable[Question | TooLong],
    candidates: Sequence[Candidate],
    encoding: Encoding,
    config: Config,
) -> dict[Request, tuple[int, Grid]]:
    """For each contender in each view a request with its answer given; by request (test, grid)."""
    found: dict[Request, tuple[int, Grid]] = {}
    views = min(config.sample.samples, config.sample.judging_views)
    asked = [question for question in questions if isinstance(question, Question)]
    for test in sorted({question.test for question in asked}):
        grids = contenders(candidates, test)
        for question in [question for question in asked if question.test == test][:views]:
            answers = [tuple(encoding.answer(question.view.apply(grid))) for grid in grids]
            longest = max((len(answer) for answer in answers), default=0)
            # The engine generates one token after the answer.
            if len(question.tokens) + longest >= config.engine.max_model_len:
                continue
            for place, (grid, answer) in enumerate(zip(grids, answers, strict=True)):
                found[Request(question, place, seed=0, answer=answer)] = test, grid
    return found
