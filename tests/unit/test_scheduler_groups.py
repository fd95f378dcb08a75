"""The scheduler on a virtual clock: tasks that share an adapter."""

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import virtual
from support.works import FEW, Build, Progress, Trainer, Works, same

from arcd.backends.protocols import Trained, TrainRequest
from arcd.config import resolve
from arcd.errors import TrainerFailed
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.state import Phase

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


SHARED = [*FEW, "train.share=3"]


def answered_by(works: Works, job: int = 1) -> dict[str, int | None]:
    return {name: t.answered_by for name, t in works.service.state.jobs[job].tasks.items()}


async def test_neighbours_share_an_adapter_that_is_there_until_the_last_is_answered(
    build: Build,
) -> None:
    works = build(same(8), config=resolve(settings=SHARED))
    works.submit(settings=SHARED)
    there: list[set[int]] = []

    def look(record: Record) -> None:
        if isinstance(record.event, events.Sampled):
            folders = (works.home / "adapters").iterdir()
            there.append({int(folder.name.removeprefix("adapter-")) for folder in folders})
            assert record.event.candidate.adapter in there[-1]

    works.service.subscribe(look)
    await works.finish()
    found = list(answered_by(works).values())
    assert [len(set(found[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
    assert len(set(found)) == 3 == len(works.records(events.Trained))
    assert None not in found
    assert there
    assert not list((works.home / "adapters").iterdir())
    # As many steps for each task as if it had an adapter of its own; the shortest training first.
    assert [event.steps for event in works.of_kind(events.Trained)] == [8, 12, 12]


async def test_where_the_first_cannot_be_trained_another_one_trains_for_all(build: Build) -> None:
    class Fussy(Trainer):
        async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
            if len(self.asked) == 0:
                self.asked.append("refused")
                raise TrainerFailed("not this one")
            return await super().train(wanted, progress)

    works = build(same(3), trainer=Fussy(seconds_per_step=2.0))
    works.submit(settings=SHARED)
    await works.finish()
    found = answered_by(works)
    assert sum(serial is None for serial in found.values()) == 1
    assert len(works.records(events.Trained)) == 1


async def test_a_new_life_trains_no_group_again_that_has_its_adapter(build: Build) -> None:
    first = build(same(6))
    first.submit(settings=SHARED)
    async with first.running(grace=0):
        await first.until(lambda state: state.jobs[1].counts[Phase.answered] >= 1)
    trained = len(first.records(events.Trained))
    first.store.close()
    second = build(same(6))
    second.trainer.trained = first.trainer.trained
    await second.finish()
    assert len(second.records(events.Trained)) == 2 >= trained >= 1
    assert len(set(answered_by(second).values())) == 2


async def test_a_task_that_is_retried_does_not_take_the_adapter_from_the_others(
    build: Build,
) -> None:
    works = build(same(3), config=resolve(settings=["lookahead=0"]))
    works.submit(settings=SHARED)
    async with works.running():
        await works.until(lambda state: state.jobs[1].counts[Phase.answered] == 1)
        works.service.emit(1, events.Retried(tuple(works.names(events.Answered)[:1])))
        works.service.wake()
        await works.until(lambda state: state.jobs[1].finished)
    again, *others = works.names(events.Answered)[:3]
    found = answered_by(works)
    assert found[again] != found[others[0]] == found[others[1]]


async def test_a_task_that_is_retried_while_others_of_its_group_are_answered_is_begun_once(
    build: Build,
) -> None:
    works = build(same(8), config=resolve(settings=["lookahead=0"]))
    works.submit(settings=[*FEW, "train.share=4"])
    async with works.running():
        await works.until(lambda state: state.jobs[1].counts[Phase.answered] == 1)
        again = works.names(events.Answered)[0]
        works.service.emit(1, events.Retried((again,)))
        await works.until(lambda state: state.jobs[1].finished)
        # Nothing waits that would be begun now.
        await anyio.sleep(1000)
    assert works.names(events.Started).count(again) == 2
    assert len(works.names(events.Answered)) == 8 + 1


@given(
    share=st.integers(1, 5), count=st.integers(1, 9), lookahead=st.integers(0, 3), deaths=st.data()
)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_every_task_is_answered_once_with_its_groups_adapter(
    tmp_path_factory: pytest.TempPathFactory,
    share: int,
    count: int,
    lookahead: int,
    deaths: st.DataObject,
) -> None:
    home = tmp_path_factory.mktemp("home")
    asked = [*FEW, f"train.share={share}"]
    trained: dict[int, str] = {}
    for life in range(3):
        works = Works(home, same(count), config=resolve(settings=[f"lookahead={lookahead}"]))
        works.trainer.trained = trained
        if not life:
            works.submit(settings=asked)
        if life < 2:
            async with works.running(grace=0):
                with anyio.move_on_after(deaths.draw(st.floats(0, 60))):
                    await works.until(lambda state: state.jobs[1].finished)
        else:
            await works.finish()
            found = list(answered_by(works).values())
            assert sorted(works.names(events.Answered)) == sorted(t.id for t in same(count).tasks)
            for i in range(0, count, share):
                assert len(set(found[i : i + share])) == 1
            assert len(works.records(events.Trained)) == -(-count // share)
            assert not list((home / "adapters").iterdir())
        works.store.close()
