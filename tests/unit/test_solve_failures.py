"""The solver when training or sampling fails: it tries less, and says so in notes."""

from dataclasses import dataclass, replace

import pytest
from support.small import solutions, task
from support.solving import Bench, Recorded, RefusesAll, Unending, lessons_of
from support.works import Progress

from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Adapter, EngineUsage, Trained, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.config import resolve
from arcd.errors import DeviceLost, DiskFull, EngineFailed, OutOfMemory
from arcd.model.encoding import CellEncoding
from arcd.solver.assignment import Assignment
from arcd.solver.solve import solve
from arcd.system.ledger import Ledger

pytestmark = pytest.mark.anyio


async def test_a_broken_training_is_marked_and_answered_by_the_base() -> None:
    bench = Bench(task(), trainer=Recorded(broken=frozenset({"t"})))
    verdict = await bench.solve()
    assert verdict.adapter is None
    assert verdict.notes == ("answered by the base: The adapter could not be trained.",)
    assert verdict.samples == 16
    assert "Noted" in bench.kinds


@dataclass
class Cramped(Recorded):
    """Has no room for an adapter the first few times."""

    refusals: int = 3

    async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        if len(self.asked) < self.refusals:
            self.asked.append(wanted)
            raise DiskFull("adapters: no room")
        return await super().train(wanted, progress)


async def test_a_full_disk_is_waited_for_and_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("arcd.solver.training.ROOM_POLL_S", 0.001)
    bench = Bench(trainer=Cramped())
    verdict = await bench.solve()
    assert verdict.adapter == bench.trainer.asked[-1].serial
    assert verdict.notes == ("had to wait for room on the disk: adapters: no room",)
    assert bench.kinds.count("Noted") == 1
    assert bench.kinds.index("Noted") < bench.kinds.index("Trained")


async def test_where_room_can_be_made_nothing_is_waited_for() -> None:
    bench = Bench(trainer=Cramped(refusals=2))
    there = [True, True]
    verdict = await bench.solve(make_room=there.pop)
    assert (verdict.notes, there) == ((), [])
    assert verdict.adapter == bench.trainer.asked[-1].serial


def longest(bench: Bench, limit: int = 4096) -> int:
    lessons = lessons_of([bench.task], bench.config, limit)
    return max(len(lesson.tokens) for lesson in lessons)


async def test_out_of_memory_first_recomputes_activations() -> None:
    bench = Bench(task(pairs=6))
    bench.trainer.memory = longest(bench) - 1
    verdict = await bench.solve()
    assert verdict.notes == ("out of memory in training, tried again with activations recomputed",)
    plan, frugal = bench.trainer.asked
    assert (plan.frugal, frugal.frugal) == (False, True)
    assert plan.lessons == frugal.lessons
    assert verdict.adapter == frugal.serial


async def test_out_of_memory_then_shortens_the_lessons_twice_and_then_gives_up_the_adapter() -> (
    None
):
    bench = Bench(task(pairs=16))
    half = longest(bench) // 2
    bench.trainer.memory = half // 2
    verdict = await bench.solve()
    assert verdict.notes[1:] == (
        f"out of memory in training, tried again with lessons of at most {half} tokens",
    )
    assert [request.frugal for request in bench.trainer.asked] == [False, True, True]
    assert verdict.adapter == bench.trainer.asked[-1].serial

    shorter = longest(bench, half)
    bench.trainer.memory = shorter // 4
    verdict = await bench.solve()
    assert verdict.notes[2:] == (
        f"out of memory in training, tried again with lessons of at most {shorter // 2} tokens",
    )
    assert verdict.adapter == bench.trainer.asked[-1].serial

    bench.trainer.memory = 1
    verdict = await bench.solve()
    assert verdict.notes[-1] == "answered by the base: out of memory in training"
    assert verdict.adapter is None
    assert verdict.samples == 16


@dataclass
class Foreseeing(Recorded):
    """Recomputes by itself where that is needed, and refuses what cannot fit before it begins."""

    async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        needed = max(len(lesson.tokens) for lesson in wanted.lessons)
        if needed > 2 * self.memory:
            self.asked.append(wanted)
            raise OutOfMemory(f"{needed} tokens, {2 * self.memory} fit", fits=2 * self.memory)
        return await super().train(replace(wanted, frugal=needed > self.memory), progress)


async def test_where_the_trainer_knows_what_would_fit_the_lessons_get_that_length_at_once() -> None:
    bench = Bench(task(pairs=8), trainer=Foreseeing())
    bench.trainer.memory = longest(bench) // 3
    fits = 2 * bench.trainer.memory
    verdict = await bench.solve()
    assert verdict.notes == (
        f"out of memory in training, tried again with lessons of at most {fits} tokens",
    )
    _, trained = bench.trainer.asked
    assert longest(bench) // 2 < max(len(lesson.tokens) for lesson in trained.lessons) <= fits
    assert verdict.adapter == trained.serial


@pytest.mark.parametrize("memory", [0, 4])
async def test_where_no_lesson_would_fit_nothing_else_is_tried(memory: int) -> None:
    bench = Bench(trainer=Foreseeing(memory=memory))
    verdict = await bench.solve()
    needed = longest(bench)
    assert verdict.notes == (
        f"answered by the base: out of memory in training: {needed} tokens, {2 * memory} fit",
    )
    assert len(bench.trainer.asked) == 1
    assert verdict.samples == 16


class Lost(Recorded):
    async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        raise DeviceLost


async def test_a_lost_device_is_nothing_that_the_base_can_answer_without() -> None:
    bench = Bench(trainer=Lost())
    with pytest.raises(DeviceLost):
        await bench.solve()
    assert bench.kinds == ["Started"]


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


async def test_sampling_that_takes_too_long_is_ended_and_what_is_there_is_voted_on() -> None:
    bench = Bench(engine=Unending)
    verdict = await bench.solve(sampling_timeout_s=lambda: 0.05)
    assert verdict.samples == 15
    assert verdict.ranked[0][0].grid == solutions([bench.task])["t"][0]
    assert verdict.notes == ("sampling took more than 0 s and was ended",)
    assert bench.kinds[-2:] == ["Noted", "Answered"]


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


async def test_where_it_refuses_the_base_too_there_is_a_verdict_without_samples() -> None:
    verdict = await Bench(engine=RefusesAll).solve()
    assert verdict.notes == ("answered by the base: no", "not sampled: no")
    assert verdict.samples == 0
