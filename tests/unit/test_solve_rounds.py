"""The solver with what earlier attempts have left: adapters, candidates, notes, rounds."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.small import solutions, task
from support.solving import Asked, Bench, Recorded

from arcd.backends.protocols import Adapter
from arcd.backends.runtime import Runtime
from arcd.config import resolve
from arcd.jobs import events
from arcd.model.encoding import CellEncoding
from arcd.solver.assignment import Assignment
from arcd.solver.solve import solve
from arcd.system.ledger import Ledger

pytestmark = pytest.mark.anyio


async def test_an_adapter_that_is_there_is_not_trained_again() -> None:
    bench = Bench()
    adapter = Adapter(7, Path("adapter-7"))
    bench.trainer.trained[7] = "t"
    verdict = await bench.solve(adapter=adapter)
    assert bench.trainer.asked == []
    assert "Trained" not in bench.kinds
    assert verdict.adapter == 7
    assert {candidate.adapter for candidate in bench.candidates} == {7}
    assert verdict.ranked[0][0].count == 16


async def test_a_finished_sample_is_not_asked_for_again_but_has_its_vote() -> None:
    first = Bench(task(tests=2))
    await first.solve()
    left = tuple(c for c in first.candidates if (c.test, c.sample) not in {(0, 3), (1, 0)})
    bench = Bench(task(tests=2))
    engine = Asked(CellEncoding(), solutions([bench.task]), bench.trainer.trained)
    runtime = Runtime(bench.trainer, engine, CellEncoding(), Ledger(), serial=lambda: 1)
    assignment = Assignment(bench.task, bench.config, candidates=left)
    verdict = await solve(assignment, runtime, bench.seen.append)
    assert [(r.question.test, r.sample) for r in engine.requests] == [(0, 3), (1, 0)]
    assert bench.seen[0] == events.Started("t", 8, 2)
    assert bench.kinds.count("Sampled") == 2
    assert verdict.samples == 32
    assert [test[0].count for test in verdict.ranked] == [16, 16]


async def test_when_all_samples_are_there_only_the_vote_is_left() -> None:
    first = Bench()
    before = await first.solve()
    bench = Bench()
    verdict = await bench.solve(candidates=first.candidates)
    assert bench.kinds == ["Started", "Answered"]
    assert bench.seen[0] == events.Started("t", 8, 0)
    assert bench.trainer.asked == []
    assert verdict.ranked == before.ranked


async def test_a_later_round_asks_other_questions_after_other_lessons_under_new_numbers() -> None:
    first, second = Bench(task(tests=2)), Bench(task(tests=2))
    await first.solve()
    await second.solve(round=1, first_sample=16, candidates=first.candidates)
    (before,), (after,) = first.trainer.asked, second.trainer.asked
    assert len(after.lessons) == len(before.lessons)
    assert after.lessons != before.lessons
    assert after.seed != before.seed
    for test in (0, 1):
        views = [{c.view for c in b.candidates if c.test == test} for b in (first, second)]
        assert views[0].isdisjoint(views[1])
    numbers = sorted((c.test, c.sample) for c in second.candidates)
    assert numbers == [(test, 16 + i) for test in (0, 1) for i in range(16)]


@pytest.mark.parametrize("round", [0, 1, 2])
async def test_a_round_is_the_same_each_time(round: int) -> None:
    config = resolve(settings=["train.steps=4", "sample.temperature=1"])
    first, second = Bench(config=config), Bench(config=config)
    await first.solve(round=round)
    await second.solve(round=round)
    assert first.seen == second.seen
    assert first.trainer.asked == second.trainer.asked


async def test_the_candidates_of_all_rounds_vote() -> None:
    first = Bench()
    await first.solve()
    bench = Bench()
    verdict = await bench.solve(round=1, first_sample=16, candidates=first.candidates)
    assert verdict.samples == 32
    assert verdict.ranked[0][0].grid == solutions([bench.task])["t"][0]
    assert verdict.ranked[0][0].count == 32


async def test_what_is_known_is_not_told_twice() -> None:
    first = Bench(task(pairs=1))
    told = (await first.solve()).notes
    assert first.kinds.count("Noted") == len(told) == 1
    again = Bench(task(pairs=1))
    verdict = await again.solve(notes=("something else", *told))
    assert verdict.notes == ("something else", *told)
    assert "Noted" not in again.kinds


async def test_training_goes_on_from_the_adapter_of_an_earlier_round() -> None:
    bench = Bench()
    await bench.solve(round=2, start=Path("adapter-7"))
    assert [asked.start for asked in bench.trainer.asked] == [Path("adapter-7")]


async def test_a_later_round_without_an_adapter_leaves_the_answer_to_that_of_the_earlier_one() -> (
    None
):
    first = Bench(serials=iter([7]))
    before = await first.solve()
    assert before.adapter == 7
    bench = Bench(trainer=Recorded(broken=frozenset({"t"})))
    later = await bench.solve(round=1, first_sample=16, candidates=first.candidates, answered_by=7)
    # What the base has drawn does not count.
    assert (later.adapter, later.ranked[0][0].count) == (7, 16)
    # Where no adapter has answered validly, the base has.
    invalid = tuple(replace(candidate, grid=None) for candidate in first.candidates)
    bench = Bench(trainer=Recorded(broken=frozenset({"t"})))
    later = await bench.solve(round=1, first_sample=16, candidates=invalid, answered_by=7)
    assert later.adapter is None
