"""The solver with the fake backends: what a task is trained on and asked, and what is told."""

import threading
from collections import Counter
from dataclasses import replace
from itertools import repeat
from typing import NoReturn

import anyio
import pytest
from support.small import solutions, task
from support.solving import Bench, Recorded, lessons_of, questions_of

from arcd.config import resolve
from arcd.jobs import events
from arcd.model.encoding import CellEncoding
from arcd.model.lessons import build_lessons
from arcd.model.prompts import TooLong
from arcd.solver import assignment as assignments
from arcd.solver.assignment import Assignment, build_requests
from arcd.solver.solve import solve

pytestmark = pytest.mark.anyio


async def test_a_task_is_trained_sampled_and_answered_in_that_order() -> None:
    bench = Bench(task(tests=2))
    verdict = await bench.solve()
    assert [ranked[0].grid for ranked in verdict.ranked] == list(solutions([bench.task])["t"])
    assert [ranked[0].count for ranked in verdict.ranked] == [16, 16]
    kinds = bench.kinds
    assert kinds[0] == "Started"
    assert kinds[-1] == "Answered"
    assert kinds.index("Trained") < kinds.index("Sampled")
    assert kinds.count("Sampled") == verdict.samples == 32
    assert verdict.notes == ()


async def test_candidates_carry_the_provenance_of_their_question() -> None:
    bench = Bench(task(tests=2))
    await bench.solve()
    found = [e.candidate for e in bench.seen if isinstance(e, events.Sampled)]
    asked = questions_of(bench.task, bench.config)
    assert {(c.test, c.view, c.shown) for c in found} == {(q.test, q.view, q.shown) for q in asked}
    assert sorted((c.test, c.sample) for c in found) == [(t, s) for t in (0, 1) for s in range(16)]
    assert {c.adapter for c in found} == {0}


def test_tasks_that_share_an_adapter_are_learnt_in_turn() -> None:
    tasks = [task(name, pairs=2 + i) for i, name in enumerate("abc")]
    config = resolve(settings=["train.steps=10", "train.batch_size=2"])
    lessons = lessons_of(tasks, config)
    assert Counter(lesson.task for lesson in lessons) == {"a": 20, "b": 20, "c": 20}
    # One after the other would be forgotten.
    assert len({lesson.task for lesson in lessons[:10]}) == 3
    assert lessons == lessons_of(tasks, config)
    alone = lessons_of(tasks[:1], config)
    assert Counter(alone) == Counter(each for each in lessons if each.task == "a")


def test_of_tasks_that_share_an_adapter_those_are_learnt_that_fit() -> None:
    config = resolve(settings=["train.steps=10", "train.batch_size=1"])
    small, large = task("small"), task("large", side=20)
    lessons = lessons_of([small, large], config, 200)
    assert [lesson.task for lesson in lessons] == ["small"] * 10
    assert isinstance(build_lessons([large], config, CellEncoding(), 200), TooLong)
    none = resolve(settings=["train.steps=0"])
    assert lessons_of([small, large], none, 200) == []


async def test_a_single_pair_is_trained_on_without_pairs_shown() -> None:
    bench = Bench(task(pairs=1))
    verdict = await bench.solve()
    assert verdict.adapter == 0
    assert verdict.notes[0].startswith("one demonstration pair")


async def test_without_steps_the_base_answers_and_that_is_no_failure() -> None:
    bench = Bench(task(), resolve(settings=["train.steps=0"]))
    verdict = await bench.solve()
    assert (verdict.adapter, verdict.notes) == (None, ())


def test_the_same_seed_gives_the_same_lessons_questions_and_requests() -> None:
    def built(seed: int) -> object:
        config = resolve(settings=["train.steps=4", "sample.temperature=1"], seed=seed)
        questions = questions_of(task(tests=2), config)
        lessons = lessons_of([task(tests=2)], config)
        return lessons, questions, build_requests(task(tests=2), questions, config)

    assert built(3) == built(3)
    assert built(3) != built(4)


@pytest.mark.parametrize(("samples", "views"), [(3, 2), (7, 7), (64, 8), (5, 1)])
def test_any_number_of_samples_is_dealt_out_evenly_to_the_views(samples: int, views: int) -> None:
    settings = [f"sample.samples={samples}", f"sample.views={views}", "sample.temperature=1"]
    config = resolve(settings=settings)
    questions = questions_of(task(tests=2), config)
    requests = build_requests(task(tests=2), questions, config)
    for test in (0, 1):
        counts = [sum(r.question == q for r in requests) for q in questions if q.test == test]
        assert sum(counts) == samples
        assert max(counts) - min(counts) <= 1
    assert len({request.seed for request in requests}) == len(requests)


async def test_a_training_that_reached_its_end_is_told_with_what_it_took() -> None:
    bench = Bench()
    await bench.solve()
    steps = [event for event in bench.seen if isinstance(event, events.Training)]
    assert [(e.step, e.steps) for e in steps] == [(i, 8) for i in range(1, 9)]
    (trained,) = (event for event in bench.seen if isinstance(event, events.Trained))
    (asked,) = bench.trainer.asked
    assert trained.tokens == sum(len(lesson.tokens) for lesson in asked.lessons)
    assert (trained.adapter, asked.serial, asked.config) == (0, 0, bench.config.train)


async def test_a_task_is_begun_before_anything_is_built_for_it() -> None:
    bench = Bench()
    seen: list[list[str]] = []

    async def dies(work: object) -> NoReturn:
        seen.append(list(bench.kinds))
        raise MemoryError

    runtime = replace(bench.runtime(), background=dies)
    with pytest.raises(MemoryError):
        await solve(Assignment(bench.task, bench.config), runtime, bench.seen.append)
    assert seen == [["Started"]]


async def test_a_task_is_begun_with_what_is_still_to_be_done() -> None:
    bench = Bench(task(tests=2))
    await bench.solve()
    (started,) = (event for event in bench.seen if isinstance(event, events.Started))
    assert (started.lessons, started.samples) == (8, 32)
    again = Bench(task(tests=2))
    left = tuple(c for c in bench.candidates if c.sample < 5)
    await again.solve(candidates=left, first_sample=3)
    (started,) = (event for event in again.seen if isinstance(event, events.Started))
    assert started.samples == 32 - 4, "samples 3 and 4 of each test are there"


async def test_prompts_are_built_outside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = threading.get_ident()
    built: list[bool] = []

    def watched(name: str) -> None:
        build = getattr(assignments, name)

        def noted(*arguments: object) -> object:
            built.append(threading.get_ident() != mine)
            return build(*arguments)

        monkeypatch.setattr(assignments, name, noted)

    watched("build_lessons")
    watched("build_questions")
    await Bench(trainer=Recorded(memory=1)).solve()
    assert built == [True] * 3, "the questions, the lessons, shorter ones"


async def test_a_task_can_be_ended_while_prompts_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = TooLong("t", "question", 2, 1)
    monkeypatch.setattr(assignments, "build_questions", lambda *_: repeat(refused))
    bench = Bench()
    with anyio.move_on_after(0.01) as scope:
        await bench.solve()
    assert scope.cancelled_caught
    assert bench.kinds == ["Started"]


async def test_the_temperature_of_the_job_is_that_of_its_requests() -> None:
    config = resolve(settings=["sample.temperature=0.5"])
    questions = questions_of(task(), config)
    assert {r.temperature for r in build_requests(task(), questions, config)} == {0.5}


async def test_the_timeout_is_asked_for_when_sampling_begins_and_only_then() -> None:
    asked: list[list[str]] = []
    bench = Bench()

    def timeout() -> float:
        asked.append(list(bench.kinds))
        return 1e9

    verdict = await bench.solve(sampling_timeout_s=timeout)
    assert [kinds[-1] for kinds in asked] == ["Trained"]
    await Bench().solve(sampling_timeout_s=timeout, candidates=tuple(bench.candidates))
    assert len(asked) == 1, "nothing was left to sample"
    assert verdict.samples == 16
