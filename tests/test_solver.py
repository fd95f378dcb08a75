"""The solver and the scheduler with the fake backends: notes, fallbacks, overlap, bounds."""

from dataclasses import dataclass, field

import anyio
import pytest

from arcd import events
from arcd.backends import Adapter, Trained
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.config import Config, resolve
from arcd.encoding import CellEncoding
from arcd.errors import EngineFailed
from arcd.grids import Grid
from arcd.ledger import Ledger
from arcd.prompts import TooLong
from arcd.scheduler import solve_all
from arcd.solver import Rig, build_lessons, build_questions, build_requests, solve
from arcd.tasks import Pair, Task

pytestmark = pytest.mark.anyio


def grid(rows: int, columns: int, colour: int = 1) -> Grid:
    return tuple(tuple((colour + r + c) % 10 for c in range(columns)) for r in range(rows))


def task(name: str = "t", side: int = 3, pairs: int = 3, tests: int = 1) -> Task:
    shown = tuple(Pair(grid(side, side, i), grid(side, side, i + 1)) for i in range(pairs))
    return Task(name, shown, tuple(grid(side, side, 7 + i) for i in range(tests)))


@dataclass
class Bench:
    """A rig of fakes with the events it emitted."""

    tasks: list[Task]
    config: Config = field(default_factory=lambda: resolve(settings=["train.steps=4"]))
    trainer: FakeTrainer = field(default_factory=FakeTrainer)
    seen: list[events.Event] = field(default_factory=list)

    @property
    def solutions(self) -> dict[str, tuple[Grid, ...]]:
        return {t.id: tuple(grid(4, 2, i) for i in range(len(t.tests))) for t in self.tasks}

    def rig(self) -> Rig:
        engine = FakeEngine(CellEncoding(), self.solutions, self.trainer.trained)
        return Rig(self.trainer, engine, CellEncoding(), self.config, Ledger())

    def kinds(self, of: str) -> list[str]:
        return [type(event).__name__ for event in self.seen if event.task == of]


async def test_a_task_is_trained_sampled_and_answered_in_that_order():
    bench = Bench([task(tests=2)])
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert [ranked[0].grid for ranked in verdict.ranked] == list(bench.solutions["t"])
    assert [ranked[0].count for ranked in verdict.ranked] == [16, 16]
    kinds = bench.kinds("t")
    assert kinds[0] == "Started"
    assert kinds[-1] == "Answered"
    assert kinds.index("Trained") < kinds.index("Sampled")
    assert kinds.count("Sampled") == verdict.samples == 32
    assert verdict.notes == ()


async def test_candidates_carry_the_provenance_of_their_question():
    bench = Bench([task(tests=2)])
    await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    found = [e.candidate for e in bench.seen if isinstance(e, events.Sampled)]
    asked = list(build_questions(bench.tasks[0], bench.config, CellEncoding()))
    assert {(c.test, c.view, c.shown) for c in found} == {(q.test, q.view, q.shown) for q in asked}
    assert sorted((c.test, c.sample) for c in found) == [(t, s) for t in (0, 1) for s in range(16)]
    assert {c.adapter for c in found} == {0}


async def test_a_broken_training_is_marked_and_answered_by_the_base():
    bench = Bench([task()], trainer=FakeTrainer(broken=frozenset({"t"})))
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert verdict.adapter is None
    assert verdict.notes == ("answered by the base: The adapter could not be trained.",)
    assert verdict.samples == 16
    assert "Noted" in bench.kinds("t")


def longest(bench: Bench, limit: int = 4096) -> int:
    lessons = build_lessons(bench.tasks[0], bench.config, CellEncoding(), limit)
    assert not isinstance(lessons, TooLong)
    return max(len(lesson.tokens) for lesson in lessons)


async def test_out_of_memory_first_shortens_the_lessons():
    bench = Bench([task(pairs=6)])
    bench.trainer.memory = longest(bench) // 2
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    half = longest(bench) // 2
    assert verdict.notes == (
        f"out of memory in training, tried again with lessons of at most {half} tokens",
    )
    assert verdict.adapter == 0


async def test_out_of_memory_then_recomputes_activations_and_then_gives_up_the_adapter():
    bench = Bench([task(pairs=6)])
    shorter = longest(bench, longest(bench) // 2)
    bench.trainer.memory = shorter // 2 + 1
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert verdict.notes[-1] == "out of memory in training, tried again with activations recomputed"
    assert verdict.adapter == 0

    bench.trainer.memory = 1
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert verdict.notes[-1] == "answered by the base: out of memory in training"
    assert verdict.adapter is None
    assert verdict.samples == 16


async def test_a_task_too_long_to_train_is_still_asked():
    bench = Bench([task()], resolve(settings=["train.steps=4", "train.max_seq_len=40"]))
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert verdict.samples == 16
    assert verdict.notes == (
        "answered by the base: t: the smallest lesson takes 55 tokens, 40 are allowed",
    )


async def test_a_task_too_long_to_ask_is_blank_and_says_so():
    settings = ["train.steps=4", "train.max_seq_len=40", "engine.max_model_len=40"]
    bench = Bench([task()], resolve(settings=settings))
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert verdict.attempts == ((),)
    assert verdict.samples == 0
    assert any("the smallest question takes 55 tokens, 40 are allowed" in n for n in verdict.notes)
    assert bench.trainer.trained == {}


async def test_a_single_pair_is_trained_on_without_pairs_shown():
    bench = Bench([task(pairs=1)])
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert verdict.adapter == 0
    assert verdict.notes[0].startswith("one demonstration pair")


async def test_without_steps_the_base_answers_and_that_is_no_failure():
    bench = Bench([task()], resolve(settings=["train.steps=0"]))
    verdict = await solve(bench.tasks[0], bench.rig(), bench.seen.append)
    assert (verdict.adapter, verdict.notes) == (None, ())


def test_the_same_seed_gives_the_same_lessons_questions_and_requests():
    def built(seed: int) -> object:
        config = resolve(settings=["train.steps=4", "sample.temperature=1"], seed=seed)
        questions = list(build_questions(task(tests=2), config, CellEncoding()))
        lessons = build_lessons(task(tests=2), config, CellEncoding(), 4096)
        return lessons, questions, build_requests(task(tests=2), questions, config)

    assert built(3) == built(3)
    assert built(3) != built(4)


@pytest.mark.parametrize(("samples", "views"), [(3, 2), (7, 7), (64, 8), (5, 1)])
def test_any_number_of_samples_is_dealt_out_evenly_to_the_views(samples: int, views: int):
    settings = [f"sample.samples={samples}", f"sample.views={views}", "sample.temperature=1"]
    config = resolve(settings=settings)
    questions = list(build_questions(task(tests=2), config, CellEncoding()))
    requests = build_requests(task(tests=2), questions, config)
    for test in (0, 1):
        counts = [sum(r.question == q for r in requests) for q in questions if q.test == test]
        assert sum(counts) == samples
        assert max(counts) - min(counts) <= 1
    assert len({request.seed for request in requests}) == len(requests)


@dataclass
class OneAtATime(FakeTrainer):
    """Counts how many trainings and how many trained, unanswered adapters there are at once."""

    training: int = 0
    most_training: int = 0

    async def train(self, *args, **kwargs) -> Trained:
        self.training += 1
        self.most_training = max(self.most_training, self.training)
        await anyio.lowlevel.checkpoint()
        try:
            return await super().train(*args, **kwargs)
        finally:
            self.training -= 1


async def test_tasks_overlap_but_only_one_trains_and_few_are_in_hand():
    tasks = [task(f"t{i}") for i in range(12)]
    bench = Bench(tasks, trainer=OneAtATime())
    in_hand = set()
    most = 0

    def listen(event: events.Event) -> None:
        nonlocal most
        bench.seen.append(event)
        if isinstance(event, events.Started):
            in_hand.add(event.task)
        if isinstance(event, events.Answered):
            in_hand.remove(event.task)
        most = max(most, len(in_hand))

    verdicts = await solve_all(tasks, bench.rig(), listen)
    assert list(verdicts) == [t.id for t in tasks]
    assert bench.trainer.most_training == 1
    assert 2 <= most <= 1 + bench.config.lookahead


class DeadEngine:
    """An engine that stops at the first request."""

    async def sample(self, requests: object, adapter: Adapter | None, deliver: object) -> None:
        raise EngineFailed


async def test_a_dead_engine_ends_the_run_with_its_error():
    bench = Bench([task("a"), task("b")])
    rig = Rig(bench.trainer, DeadEngine(), CellEncoding(), bench.config, Ledger())
    with pytest.RaisesGroup(EngineFailed, flatten_subgroups=True):
        await solve_all(bench.tasks, rig, bench.seen.append)
