"""The solver where answers differ: the contenders are rescored, or votes decide."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import pytest
from support.small import candidate, grid, solutions, task
from support.solving import Asked, Bench, Left, RefusesAll, Unending, questions_of

from arcd.arc.selection import CONTENDERS, Verdict
from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Adapter, Request
from arcd.config import Config, resolve
from arcd.model.encoding import CellEncoding

pytestmark = pytest.mark.anyio


@dataclass
class Divided(Bench):
    """Its samples were drawn by adapter 7; of eleven grids the right one has the fewest votes."""

    engine: type[FakeEngine] = Asked
    config: Config = field(default_factory=lambda: resolve(settings=["sample.judging_views=8"]))

    def __post_init__(self) -> None:
        self.task = task(tests=2)
        self.trainer.trained[7] = "t"
        self.right = solutions([self.task])["t"][1]
        wrong = [grid(side, side, colour) for side in (2, 3) for colour in range(5)]
        second = [*wrong[:3], *wrong[:2], *wrong]
        # Likelier than the other grids with one vote, it is a contender.
        found = replace(candidate(self.task, 1, 15, self.right, 7), logprob=-0.1)
        self.drawn = (
            *(candidate(self.task, 0, i, grid(3, 3), 7) for i in range(16)),
            *(candidate(self.task, 1, i, g, 7) for i, g in enumerate(second)),
            found,
        )

    async def rescore(self, **left: Unpack[Left]) -> Verdict:
        left |= {"adapter": Adapter(7, Path("adapter-7")), "candidates": self.drawn}
        return await self.solve(**left)

    @property
    def asked(self) -> list[Request]:
        engine = self.engines[-1]
        assert isinstance(engine, Asked)
        return engine.requests


async def test_where_answers_differ_the_likeliest_wins() -> None:
    bench = Divided()
    verdict = await bench.rescore()
    sure, divided = verdict.ranked
    assert [vote.likelihood for vote in sure] == [None], "there is nothing to choose from"
    tokens = len(CellEncoding().answer(bench.right))
    assert (divided[0].grid, divided[0].count) == (bench.right, 1)
    assert divided[0].likelihood == pytest.approx(-0.1 * tokens)
    assert verdict.notes == ()
    assert "Sampled" not in bench.kinds


async def test_all_contenders_are_rescored_in_the_same_views() -> None:
    bench = Divided()
    verdict = await bench.rescore()
    asked = [q for q in questions_of(bench.task, bench.config) if q.test == 1]
    views = asked[: bench.config.sample.judging_views]
    rescored = [vote.grid for vote in verdict.ranked[1] if vote.likelihood is not None]
    wanted = {(q, tuple(CellEncoding().answer(q.view.apply(g)))) for q in views for g in rescored}
    assert len(rescored) == CONTENDERS
    assert {(request.question, request.answer) for request in bench.asked} == wanted
    assert len(bench.asked) == len(wanted)


async def test_a_view_in_which_an_answer_does_not_fit_rescores_none() -> None:
    longest = 1 + max(
        len(q.tokens) + len(CellEncoding().answer(Divided().right))
        for q in questions_of(task(tests=2), Config())
    )
    for limit, views in ((longest, 8), (longest - 1, 0)):
        settings = [f"engine.max_model_len={limit}", "sample.judging_views=8"]
        bench = Divided(config=resolve(settings=settings))
        verdict = await bench.rescore()
        assert len(bench.asked) == views * CONTENDERS
        assert bool(verdict.likelihoods) == bool(views)


async def test_without_judging_views_votes_decide() -> None:
    bench = Divided(config=Config())
    verdict = await bench.rescore()
    assert bench.asked == []
    assert [vote.count for vote in verdict.ranked[1]] == [3, 3, 2] + [1] * 8


async def test_the_base_does_not_rescore_what_an_adapter_drew() -> None:
    bench = Divided()
    verdict = await bench.solve(candidates=bench.drawn)
    assert bench.asked == []
    assert verdict.likelihoods == {}


async def test_where_the_engine_does_not_rescore_votes_decide_and_a_note_says_so() -> None:
    bench = Divided(engine=RefusesAll)
    verdict = await bench.rescore()
    assert verdict.ranked[1][0].count == 3
    assert verdict.notes == ("votes alone decided: no",)


async def test_rescoring_that_takes_too_long_is_ended_and_votes_decide() -> None:
    bench = Divided(engine=Unending)
    bench.drawn = bench.drawn[1:]  # one is left to sample
    verdict = await bench.rescore(sampling_timeout_s=lambda: 0.05)
    assert verdict.ranked[1][0].count == 3
    assert verdict.likelihoods == {}
    assert verdict.notes == ("sampling took more than 0 s and was ended",)
