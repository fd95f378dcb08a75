"""The solver with the fake backends: notes, fallbacks, what an earlier attempt has left."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TypedDict, Unpack

import anyio
import pytest
from support.small import candidate, grid, solutions, task
from support.works import Deliver, Progress

from arcd.arc.selection import CONTENDERS, Candidate, Verdict
from arcd.arc.tasks import Task
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.protocols import Adapter, EngineUsage, Request, Trained, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.config import Config, resolve
from arcd.errors import EngineFailed, SampleRefused
from arcd.jobs import events
from arcd.model.encoding import CellEncoding
from arcd.model.prompts import Lesson, Question, TooLong, build_lessons, build_questions
from arcd.solver.assignment import Assignment, build_requests
from arcd.solver.solve import solve
from arcd.system.ledger import Ledger

pytestmark = pytest.mark.anyio


@dataclass
class Recorded(FakeTrainer):
    """Remembers what it was asked for."""

    asked: list[TrainRequest] = field(default_factory=list)

    async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        self.asked.append(wanted)
        return await super().train(wanted, progress)


class Left(TypedDict, total=False):
    """What earlier attempts have left: fields of an assignment."""

    round: int
    first_sample: int
    adapter: Adapter
    start: Path
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    sampling_timeout_s: Callable[[], float]


@dataclass
class Bench:
    """A task on a runtime of fakes, with the events that were emitted."""

    task: Task = field(default_factory=task)
    config: Config = field(default_factory=lambda: resolve(settings=["train.steps=4"]))
    trainer: Recorded = field(default_factory=Recorded)
    engine: type[FakeEngine] = FakeEngine
    seen: list[events.Event] = field(default_factory=list)
    serials: Iterator[int] = field(default_factory=count)
    engines: list[FakeEngine] = field(default_factory=list)
    """Those that were made."""

    async def solve(self, **left: Unpack[Left]) -> Verdict:
        """The verdict, with what earlier attempts have left."""
        assignment = Assignment(self.task, self.config, **left)
        return await solve(assignment, self.runtime(), self.seen.append)

    def runtime(self) -> Runtime:
        engine = self.engine(CellEncoding(), solutions([self.task]), self.trainer.trained)
        self.engines.append(engine)
        return Runtime(
            self.trainer, engine, CellEncoding(), Ledger(), serial=lambda: next(self.serials)
        )

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(e.candidate for e in self.seen if isinstance(e, events.Sampled))


def lessons_of(tasks: list[Task], config: Config, limit: int = 4096) -> list[Lesson]:
    lessons = build_lessons(tasks, config, CellEncoding(), limit)
    assert not isinstance(lessons, TooLong)
    return lessons


def questions_of(asked: Task, config: Config) -> list[Question]:
    """They all fit."""
    questions = list(build_questions(asked, config, CellEncoding()))
    fitting = [each for each in questions if isinstance(each, Question)]
    assert len(fitting) == len(questions)
    return fitting


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


async def test_a_broken_training_is_marked_and_answered_by_the_base() -> None:
    bench = Bench(task(), trainer=Recorded(broken=frozenset({"t"})))
    verdict = await bench.solve()
    assert verdict.adapter is None
    assert verdict.notes == ("answered by the base: The adapter could not be trained.",)
    assert verdict.samples == 16
    assert "Noted" in bench.kinds


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


def longest(bench: Bench, limit: int = 4096) -> int:
    lessons = lessons_of([bench.task], bench.config, limit)
    return max(len(lesson.tokens) for lesson in lessons)


async def test_out_of_memory_first_shortens_the_lessons() -> None:
    bench = Bench(task(pairs=6))
    bench.trainer.memory = longest(bench) // 2
    verdict = await bench.solve()
    half = longest(bench) // 2
    assert verdict.notes == (
        f"out of memory in training, tried again with lessons of at most {half} tokens",
    )
    assert [request.frugal for request in bench.trainer.asked] == [False, False]
    assert verdict.adapter == bench.trainer.asked[-1].serial


async def test_out_of_memory_then_recomputes_activations_and_then_gives_up_the_adapter() -> None:
    bench = Bench(task(pairs=6))
    shorter = longest(bench, longest(bench) // 2)
    bench.trainer.memory = shorter // 2 + 1
    verdict = await bench.solve()
    assert verdict.notes[-1] == "out of memory in training, tried again with activations recomputed"
    assert [request.frugal for request in bench.trainer.asked] == [False, False, True]
    assert verdict.adapter == bench.trainer.asked[-1].serial

    bench.trainer.memory = 1
    verdict = await bench.solve()
    assert verdict.notes[-1] == "answered by the base: out of memory in training"
    assert verdict.adapter is None
    assert verdict.samples == 16


async def test_a_task_too_long_to_train_is_still_asked() -> None:
    bench = Bench(task(), resolve(settings=["train.steps=4", "train.max_seq_len=40"]))
    verdict = await bench.solve()
    assert verdict.samples == 16
    assert verdict.notes == (
        "answered by the base: t: the smallest lesson takes 55 tokens, 40 are allowed",
    )


async def test_a_task_too_long_to_ask_is_blank_and_says_so() -> None:
    settings = ["train.steps=4", "train.max_seq_len=40", "engine.max_model_len=40"]
    bench = Bench(task(), resolve(settings=settings))
    verdict = await bench.solve()
    assert verdict.attempts == ((),)
    assert verdict.samples == 0
    assert any("the smallest question takes 55 tokens, 40 are allowed" in n for n in verdict.notes)
    assert bench.trainer.trained == {}


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


@dataclass
class Asked(FakeEngine):
    """Remembers what it was asked for."""

    requests: list[Request] = field(default_factory=list)

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        self.requests += requests
        await super().sample(requests, adapter, deliver)


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


class Unending(FakeEngine):
    """Answers all but the last request, and that one never."""

    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        await super().sample(requests[:-1], adapter, deliver)
        await anyio.sleep_forever()


async def test_sampling_that_takes_too_long_is_ended_and_what_is_there_is_voted_on() -> None:
    bench = Bench(engine=Unending)
    verdict = await bench.solve(sampling_timeout_s=lambda: 0.05)
    assert verdict.samples == 15
    assert verdict.ranked[0][0].grid == solutions([bench.task])["t"][0]
    assert verdict.notes == ("sampling took more than 0 s and was ended",)
    assert bench.kinds[-2:] == ["Noted", "Answered"]


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


async def test_a_training_that_reached_its_end_is_told_with_what_it_took() -> None:
    bench = Bench()
    await bench.solve()
    steps = [event for event in bench.seen if isinstance(event, events.Training)]
    assert [(e.step, e.steps) for e in steps] == [(i, 8) for i in range(1, 9)]
    (trained,) = (event for event in bench.seen if isinstance(event, events.Trained))
    (asked,) = bench.trainer.asked
    assert trained.tokens == sum(len(lesson.tokens) for lesson in asked.lessons)
    assert (trained.adapter, asked.serial, asked.config) == (0, 0, bench.config.train)


async def test_the_temperature_of_the_job_is_that_of_its_requests() -> None:
    config = resolve(settings=["sample.temperature=0.5"])
    questions = questions_of(task(), config)
    assert {r.temperature for r in build_requests(task(), questions, config)} == {0.5}


class DeadEngine:
    """An engine that stops at the first request."""

    steps = 0
    busy = False

    async def sample(self, requests: object, adapter: Adapter | None, deliver: object) -> None:
        raise EngineFailed

    def usage(self) -> list[EngineUsage]:
        return []


async def test_a_dead_engine_is_nothing_that_a_task_can_be_answered_without() -> None:
    bench = Bench()
    runtime = Runtime(bench.trainer, DeadEngine(), CellEncoding(), Ledger(), serial=lambda: 0)
    with pytest.raises(EngineFailed):
        await solve(Assignment(bench.task, bench.config), runtime, bench.seen.append)
    assert bench.kinds[-1] == "Trained"


async def test_where_the_engine_refuses_the_adapter_the_base_answers_and_a_note_says_so() -> None:
    @dataclass
    class Refusing(FakeEngine):
        broken: frozenset[str] = frozenset({"t"})

    bench = Bench(engine=Refusing)
    verdict = await bench.solve()
    assert verdict.notes == ("answered by the base: The engine refused to sample this.",)
    assert verdict.samples == 16
    assert verdict.adapter is None
    assert {c.adapter for c in bench.candidates} == {None}


class RefusesAll(FakeEngine):
    async def sample(
        self, requests: Sequence[Request], adapter: Adapter | None, deliver: Deliver
    ) -> None:
        raise SampleRefused("no")


async def test_where_it_refuses_the_base_too_there_is_a_verdict_without_samples() -> None:
    verdict = await Bench(engine=RefusesAll).solve()
    assert verdict.notes == ("answered by the base: no", "not sampled: no")
    assert verdict.samples == 0


async def test_training_goes_on_from_the_adapter_of_an_earlier_round() -> None:
    bench = Bench()
    await bench.solve(round=2, start=Path("adapter-7"))
    assert [asked.start for asked in bench.trainer.asked] == [Path("adapter-7")]


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
