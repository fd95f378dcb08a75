"""A GPU that is lost, or an engine that stops, while tasks are in flight: said, then a death."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import lives
from support.lives import Life
from support.machine import Machine

from arcd.arc.tasks import load
from arcd.config import resolve
from arcd.daemon import schema
from arcd.daemon.options import Options
from arcd.errors import DeviceLost, EngineFailed, StoreFailed
from arcd.jobs import events
from arcd.jobs.messages import Level, message
from arcd.jobs.service import JobService
from arcd.jobs.state import State
from arcd.jobs.store import Store
from arcd.model.base_model import bundled

TASKS = load("arc1-train:2")

STICKY = RuntimeError("CUDA error: an illegal memory access was encountered")


def engine_failed() -> EngineFailed:
    failed = EngineFailed(f"RuntimeError: {STICKY}")
    failed.__cause__ = STICKY
    return failed


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    with machine.installed():
        yield machine


def live(machine: Machine, *, predecessor_died: bool) -> Life:
    home = machine.disk / "home"
    home.mkdir(exist_ok=True)
    options = Options(home=home, base=bundled(), config=resolve(settings=["lookahead=0"]))
    life = Life(machine, options, TASKS.solutions, predecessor_died=predecessor_died)
    assert life.until(lambda: life.ready)
    return life


def records(machine: Machine) -> list[events.Record]:
    return list(Store(machine.disk / "home", "read").journal.records())


@pytest.mark.parametrize(
    ("error", "line", "at_once"),
    [
        (DeviceLost("the GPU fell off the bus"), "the GPU fell off the bus", True),
        (STICKY, f"RuntimeError: {STICKY}", True),
        (engine_failed(), f"RuntimeError: {STICKY}", True),
        (EngineFailed("vLLM lost 2 requests"), "vLLM lost 2 requests", False),
    ],
)
def test_what_it_dies_of_is_in_the_events_and_the_task_is_charged_one_death(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    line: str,
    at_once: bool,
) -> None:
    async def train(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(lives.Trainer, "train", train)
        life = live(machine, predecessor_died=False)
        document = schema.order(TASKS).model_dump(mode="json")
        life.ask("POST", "/jobs", document)
        assert life.until(lambda: life.over)
        assert (life.error is None) == at_once, "an orderly end would call CUDA"
        life.close()
    last = records(machine)[-1].event
    assert last == events.DaemonDied(line)
    again = live(machine, predecessor_died=True)
    again.close()
    found = [each.event for each in records(machine)]
    charged = [each.task for each in found if isinstance(each, events.Interrupted)]
    begun = {each.task for each in found if isinstance(each, events.Started)}
    assert (len(charged), set(charged)) == (1, begun)


def test_a_lost_gpu_ends_the_process_at_once_though_the_store_cannot_be_written(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def train(*_: object) -> None:
        raise DeviceLost("the GPU fell off the bus")

    emit = JobService.emit

    def full(service: JobService, job: int | None, event: events.Event) -> None:
        if isinstance(event, events.DaemonDied):
            raise StoreFailed("no room")
        emit(service, job, event)

    with monkeypatch.context() as patch:
        patch.setattr(lives.Trainer, "train", train)
        patch.setattr(JobService, "emit", full)
        life = live(machine, predecessor_died=False)
        life.ask("POST", "/jobs", schema.order(TASKS).model_dump(mode="json"))
        assert life.until(lambda: life.over)
        assert life.error is None
        life.close()
    assert caplog.messages[-1] == "the GPU fell off the bus"


def test_a_death_is_told_as_a_warning() -> None:
    record = events.Record(1, 0.0, None, events.DaemonDied("the GPU fell off the bus"))
    state = State()
    state.apply(record)
    told = message(record, state, {})
    assert told is not None
    assert (told.level, told.text) == (
        Level.warning,
        "note: the daemon ends: the GPU fell off the bus",
    )
