"""The budget: whole jobs on a virtual clock that keep to their time."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from support import virtual
from support.small import candidate, task, task_set
from support.works import Progress, Trainer, Works

from arcd.arc.grids import Grid
from arcd.arc.selection import Candidate, verdict
from arcd.arc.tasks import Task
from arcd.backends.fake import FakeEngine
from arcd.backends.protocols import Trained, TrainRequest
from arcd.config import resolve
from arcd.errors import BadConfig
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.state import JobState
from arcd.model.prompts import Question
from arcd.scheduling.budget import LEAST_ALLOTMENT
from arcd.scheduling.forecast import COLD, times, work
from arcd.scheduling.rounds import MOST_ROUNDS, TIME_IS_UP


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


@dataclass(kw_only=True)
class Moody(Trainer):
    """Its pace drifts, and now and then a step takes many times as long."""

    rng: random.Random
    drift: float = 1.0

    async def _train(self, wanted: TrainRequest, progress: Progress) -> Trained:
        self.drift *= self.rng.uniform(0.9, 1.12)
        straggler = 10 if self.rng.random() < 0.05 else 1
        tokens = sum(len(lesson.tokens) for lesson in wanted.lessons)
        per_step = tokens / 2000 / len(wanted.lessons)
        self.seconds_per_step = per_step * self.drift * straggler
        return await super()._train(wanted, progress)


class Disagreeing(FakeEngine):
    """No two of its answers are alike, so that every task stays doubtful."""

    def _solution(self, question: Question) -> list[int]:
        rng = random.Random(f"{question.view}")
        grid = tuple(tuple(rng.randrange(10) for _ in range(3)) for _ in range(3))
        return self.encoding.answer(grid)


SETTINGS = ["train.steps=20", "train.batch_size=1", "sample.samples=4"]


def job(works: Works, budget: float, *settings: str, reserve: float = 10) -> int:
    limits = [f"budget.seconds={budget}", f"budget.reserve={reserve}"]
    return works.submit(settings=[*SETTINGS, *limits, *settings])


@pytest.fixture
def made(tmp_path: Path) -> Iterator[list[Works]]:
    works: list[Works] = []
    yield works
    for each in works:
        each.store.close()


def tasks(count: int, rng: random.Random) -> list[Task]:
    return [
        task(f"t{i}", pairs=rng.randint(2, 5), side=rng.choice([2, 3, 8, 20])) for i in range(count)
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(20))
async def test_whatever_the_machine_does_a_job_ends_in_time_with_an_answer_for_all(
    tmp_path: Path, made: list[Works], seed: int
) -> None:
    rng = random.Random(seed)
    chosen = tasks(rng.randint(3, 30), rng)
    engine = rng.choice([FakeEngine, Disagreeing])
    works = Works(
        tmp_path,
        task_set(*chosen),
        trainer=Moody(rng=rng),
        engine=engine,
        seconds_per_token=rng.choice([0.001, 0.02, 0.1]),
        trainings=rng.choice([1, 2]),
    )
    made.append(works)
    budget = rng.choice([30.0, 200.0, 1000.0])
    number = job(works, budget)
    took = await works.finish()
    found = works.service.state.jobs[number]
    assert took <= budget - 10 + 1e-6
    assert found.all_answered
    assert works.service.state.in_flight() == []
    doubtful = [n for n in found.retriable() if found.tasks[n].round < MOST_ROUNDS]
    assert not doubtful or took >= 0.97 * (budget - 10), "time was left and not used"
    # Nothing happens after the end.
    assert isinstance(works.records()[-1].event, events.Finished)


@pytest.mark.anyio
@pytest.mark.parametrize("trainings", [1, 2])
@pytest.mark.parametrize("times_as_fast", [0.1, 1.0, 10.0])
async def test_on_a_machine_of_any_speed_no_task_pays_for_what_was_not_known(
    tmp_path: Path, made: list[Works], times_as_fast: float, trainings: int
) -> None:
    """The first life on a machine that is much slower, or faster, than the prior says."""
    chosen = task_set(*(task(f"t{i}", side=8) for i in range(24)))
    seconds_per_step = times(work(chosen.tasks[0], resolve(settings=SETTINGS))).train / 20
    works = Works(
        tmp_path,
        chosen,
        trainer=Trainer(seconds_per_step=seconds_per_step / times_as_fast),
        seconds_per_token=COLD.round / times_as_fast,
        trainings=trainings,
    )
    made.append(works)
    # Six tenths of what all tasks take in full.
    in_full = 24 * 20 * seconds_per_step / times_as_fast / trainings
    number = job(works, 10 + 0.6 * in_full)
    took = await works.finish()
    found = works.service.state.jobs[number]
    assert took <= 0.6 * in_full + 1e-6
    assert found.all_answered
    trained = works.of_kind(events.Trained)
    # Of two that train at the end one may find the time up, also where all is known.
    assert len(found.tasks.keys() - {e.task for e in trained}) < trainings
    assert min(e.steps for e in trained) >= 20 * LEAST_ALLOTMENT


@pytest.mark.anyio
async def test_with_time_to_spare_all_are_answered_cheaply_then_in_full_and_no_more(
    tmp_path: Path, made: list[Works]
) -> None:
    works = Works(tmp_path, task_set(*(task(f"t{i}") for i in range(6))), seconds_per_token=0.01)
    made.append(works)
    number = job(works, 10_000)
    took = await works.finish()
    assert took < 1000
    rounds = [t.round for t in works.service.state.jobs[number].tasks.values()]
    assert rounds == [1] * 6
    first = works.of_kind(events.Answered)[:6]
    assert all(e.verdict.adapter is None for e in first), "a cheap answer for all comes first"
    assert all(len(v.ranked[0]) == 1 for v in works.store.jobs.verdicts(number))


@pytest.mark.anyio
async def test_a_later_round_goes_on_from_the_adapter_and_none_is_left_at_the_end(
    tmp_path: Path, made: list[Works]
) -> None:
    asked: list[TrainRequest] = []

    class Noting(Trainer):
        async def _train(self, wanted: TrainRequest, progress: Progress) -> Trained:
            asked.append(wanted)
            assert wanted.start is None or wanted.start.is_dir()
            return await super()._train(wanted, progress)

    works = Works(
        tmp_path,
        task_set(task("a"), task("b")),
        trainer=Noting(seconds_per_step=1.0),
        engine=Disagreeing,
    )
    made.append(works)
    job(works, 400)
    await works.finish()
    of_a = [wanted for wanted in asked if wanted.lessons[0].task == "a"]
    assert len(of_a) > 3
    assert of_a[0].start is None
    for before, after in pairwise(of_a):
        assert after.start == tmp_path / "adapters" / f"adapter-{before.serial}"
    assert list((tmp_path / "adapters").iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("engine", "room"),
    [(FakeEngine, 0), (Disagreeing, 1 << 60)],
    ids=["nobody doubts the answer", "the disk is almost full"],
)
async def test_an_adapter_that_is_not_gone_on_with_is_not_kept(
    tmp_path: Path,
    made: list[Works],
    monkeypatch: pytest.MonkeyPatch,
    engine: type[FakeEngine],
    room: int,
) -> None:
    left: list[int] = []

    class Counting(Trainer):
        async def _train(self, wanted: TrainRequest, progress: Progress) -> Trained:
            left.append(len(list((tmp_path / "adapters").glob("*"))))
            return await super()._train(wanted, progress)

    monkeypatch.setattr("arcd.scheduling.adapter_folder.LEAST_FREE_BYTES", room)
    works = Works(
        tmp_path,
        task_set(*(task(f"t{i}") for i in range(5))),
        trainer=Counting(seconds_per_step=1.0),
        engine=engine,
        seconds_per_token=0.001,
    )
    made.append(works)
    job(works, 300)
    await works.finish()
    assert len(left) >= 5
    assert max(left) <= 1


@pytest.mark.anyio
async def test_when_time_is_short_each_task_gets_less_before_any_gets_nothing(
    tmp_path: Path, made: list[Works]
) -> None:
    works = Works(
        tmp_path,
        task_set(*(task(f"t{i}") for i in range(10))),
        trainer=Trainer(seconds_per_step=1.0),
        seconds_per_token=0.001,
    )
    made.append(works)
    # In full 10 tasks take 200 s.
    job(works, 130)
    await works.finish()
    trained = works.of_kind(events.Trained)
    assert {e.task for e in trained} == {f"t{i}" for i in range(10)}
    assert all(5 <= e.steps < 20 for e in trained[3:10])


@pytest.mark.anyio
async def test_what_is_in_hand_when_the_time_is_up_is_answered_from_the_samples_it_has(
    tmp_path: Path, made: list[Works]
) -> None:
    works = Works(
        tmp_path,
        task_set(task("a"), task("b")),
        trainer=Trainer(seconds_per_step=1.0),
        seconds_per_token=5.0,
    )
    made.append(works)
    number = job(works, 150)
    took = await works.finish()
    assert took == pytest.approx(140, abs=0.1)
    verdicts = {v.task: v for v in works.store.jobs.verdicts(number)}
    assert verdicts["a"].samples == len(list(works.store.jobs.candidates(number, "a")))
    assert any(TIME_IS_UP in v.notes for v in verdicts.values())


@pytest.mark.anyio
async def test_what_was_judged_in_an_earlier_round_still_counts_when_the_time_is_up(
    tmp_path: Path, made: list[Works]
) -> None:
    works = Works(
        tmp_path,
        task_set(task("a"), task("b")),
        trainer=Trainer(seconds_per_step=1.0),
        engine=Disagreeing,
    )
    made.append(works)
    number = job(works, 205, "sample.judging_views=4")
    await works.finish()
    assert cut_off(works, number)
    assert all(verdict.likelihoods for verdict in works.store.jobs.verdicts(number))


def cut_off(works: Works, number: int) -> set[str]:
    """The tasks whose last round was not done when the time was up."""
    (end,) = works.records(events.Finished, number)
    last = [
        record.event for record in works.records(events.Answered, number) if record.at == end.at
    ]
    return {event.task for event in last if isinstance(event, events.Answered)}


@pytest.mark.anyio
@pytest.mark.parametrize("budget", range(240, 420, 35))
async def test_an_extra_round_that_is_cut_off_leaves_the_answer_its_adapter_and_no_note(
    tmp_path: Path, made: list[Works], budget: float
) -> None:
    works = Works(
        tmp_path,
        task_set(*(task(f"t{i}") for i in range(4))),
        trainer=Trainer(seconds_per_step=1.0),
        engine=Disagreeing,
    )
    made.append(works)
    works.store.database.connection.execute("PRAGMA synchronous = OFF")
    number = job(works, budget)
    found: dict[str, int | None] = {}

    def look(record: Record) -> None:
        if isinstance(record.event, events.Retried):
            found.update((n, t.answered_by) for n, t in current.tasks.items())

    works.service.subscribe(look)
    current = works.service.state.jobs[number]
    await works.finish()
    assert min(t.round for t in current.tasks.values()) > 1, "the budget is for extra rounds"
    assert cut_off(works, number)
    assert None not in found.values()
    for name, each in current.tasks.items():
        assert each.answered_by is not None
        if name in cut_off(works, number):
            assert each.answered_by == found[name]
        assert TIME_IS_UP not in each.notes
        assert each.answer is not None
        assert each.answer.samples == len(list(works.store.jobs.candidates(number, name)))


@pytest.mark.anyio
async def test_a_task_that_was_not_begun_when_the_time_was_up_has_taken_no_time(
    tmp_path: Path, made: list[Works]
) -> None:
    works = Works(tmp_path, task_set(*(task(f"t{i}") for i in range(50))), seconds_per_token=5.0)
    made.append(works)
    number = job(works, 100)
    await anyio.sleep(1e6)
    await works.finish()
    tasks = works.service.state.jobs[number].tasks.values()
    assert {t.seconds for t in tasks if not t.wanted} == {0.0}
    assert all(TIME_IS_UP in t.notes for t in tasks)


@pytest.mark.anyio
async def test_a_deadline_outlives_the_daemon(tmp_path: Path, made: list[Works]) -> None:
    chosen = task_set(*(task(f"t{i}") for i in range(20)))
    first = Works(tmp_path, chosen, trainer=Trainer(seconds_per_step=1.0), engine=Disagreeing)
    made.append(first)
    number = job(first, 500)
    async with first.running(grace=0):
        await anyio.sleep(200)
    first.store.close()
    second = Works(tmp_path, chosen, trainer=Trainer(seconds_per_step=1.0), engine=Disagreeing)
    made.append(second)
    took = await second.finish()
    assert took == pytest.approx(290, abs=1)
    assert second.service.state.jobs[number].state is JobState.done


@pytest.mark.anyio
async def test_a_retry_after_the_end_is_not_bound_by_the_budget(
    tmp_path: Path, made: list[Works]
) -> None:
    works = Works(tmp_path, task_set(task("a"), task("b")), engine=Disagreeing)
    made.append(works)
    number = job(works, 30)
    await works.finish()
    before = len(works.records(events.Answered))
    works.service.retry(number)
    await works.finish()
    assert len(works.records(events.Answered)) == before + 2


def test_a_reserve_that_takes_the_whole_budget_is_refused() -> None:
    with pytest.raises(BadConfig, match="the reserve takes the whole budget"):
        resolve(settings=["budget.seconds=5", "budget.reserve=5"])


def test_the_bases_own_votes_do_not_count_where_an_adapter_answered() -> None:
    def of(sample: int, adapter: int | None, grid: Grid | None) -> Candidate:
        return candidate(task(), sample=sample, adapter=adapter, grid=grid)

    base, taught = ((1,),), ((2,),)
    found = [of(0, None, base), of(1, None, base), of(2, 7, taught)]
    assert verdict("t", 1, found, 7).attempts == ((taught,),)
    invalid = [of(0, None, base), of(1, None, base), of(2, 7, None)]
    assert verdict("t", 1, invalid, 7).attempts == ((base,),)
