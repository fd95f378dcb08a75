"""The fakes that a user can start: what they answer, at which pace, and that it is told apart."""

from pathlib import Path

import anyio
import pytest
from support.small import grid, task, task_set

from arcd.arc.tasks import Pair, Task, TaskSet
from arcd.backends.protocols import TrainingStep, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.config import Config, resolve
from arcd.daemon import fake_runtime
from arcd.daemon.fake_runtime import REPORTED_STEPS, StoredAnswers, guess
from arcd.daemon.options import Options
from arcd.jobs.journal import new_job
from arcd.jobs.store import Store
from arcd.model.lessons import build_lessons
from arcd.model.prompts import TooLong
from arcd.system.ledger import Ledger

WIDE = grid(1, 3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def submit(store: Store, tasks: TaskSet, base: str = "fake") -> None:
    store.journal.submit(new_job("a job", 10, tasks, resolve(), base=base))


def test_the_solutions_of_a_job_are_known_as_soon_as_it_is_submitted(store: Store) -> None:
    answers = StoredAnswers(store, "fake")
    assert "t" not in answers
    tasks = task_set(task())
    submit(store, tasks)
    assert dict(answers) == dict(tasks.solutions)
    assert len(answers) == 1


def test_a_task_of_several_jobs_is_answered_as_in_the_last(store: Store) -> None:
    first, last = task_set(task(side=3)), task_set(task(side=2))
    submit(store, first)
    answers = StoredAnswers(store, "fake")
    assert answers["t"] == first.solutions["t"]
    submit(store, last)
    assert answers["t"] == last.solutions["t"]


def test_jobs_of_a_model_are_left_alone(store: Store) -> None:
    submit(store, task_set(task()), base="/a/base")
    assert dict(StoredAnswers(store, "fake")) == {}


def test_without_solutions_the_answer_has_a_likely_shape(store: Store) -> None:
    same = task(tests=2)
    submit(store, TaskSet("same", (same,), {}))
    assert StoredAnswers(store, "fake")["t"] == same.tests
    other = Task("other", (Pair(grid(2, 2), WIDE),), (grid(4, 4), grid(3, 3)))
    assert guess(other) == (WIDE, WIDE)


def options(home: Path) -> Options:
    return Options(home=home, base=Path("/a/base"), backend="fake")


def test_jobs_of_fakes_are_not_taken_for_those_of_a_model(tmp_path: Path) -> None:
    fake = options(tmp_path)
    real = fake.model_copy(update={"backend": "real"})
    assert (fake.base_name, real.base_name) == ("fake", "/a/base")


def test_a_command_without_a_backend_is_one_for_the_real_ones() -> None:
    """Commands of before the option stay valid."""
    assert Options.model_validate_json('{"home": "/h", "base": "/b"}').backend == "real"


@pytest.mark.anyio
async def test_a_step_is_a_batch_and_some_of_them_are_reported(tmp_path: Path) -> None:
    tasks = task_set(task())
    Store(tmp_path).close()
    config = resolve(settings=["train.steps=25", "train.batch_size=2"])
    ledger = Ledger()
    async with fake_runtime.open_runtime(
        options(tmp_path),
        fake_runtime.find_platform(options(tmp_path)),
        rank=16,
        ledger=ledger,
        serial=lambda: 0,
    ) as runtime:
        reported = await trained(runtime, tasks.tasks[0], config)
    assert [now.step for now in reported] == [REPORTED_STEPS, 2 * REPORTED_STEPS, 25]
    assert {now.steps for now in reported} == {25}
    assert ledger.account().seconds["trainer"]["step"] > 0


async def trained(runtime: Runtime, of: Task, config: Config) -> list[TrainingStep]:
    lessons = build_lessons([of], config, runtime.encoding, config.train.max_seq_len)
    assert not isinstance(lessons, TooLong)
    reported: list[TrainingStep] = []
    with anyio.fail_after(10):
        await runtime.trainer.train(TrainRequest(lessons, config.train, 0, 0), reported.append)
    return reported
