"""What `arcd run` does after its daemon is gone, and until when; the rest is tested end to end."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from support import virtual

from arcd.arc.selection import verdict
from arcd.arc.tasks import load
from arcd.config import BudgetConfig, Config
from arcd.daemon import foreground
from arcd.daemon.foreground import LAST_PART, Backstop, publish_rest, serve
from arcd.daemon.options import Options
from arcd.daemon.watchdog import Limits
from arcd.errors import ArcdError
from arcd.jobs import events
from arcd.jobs.job_table import Published
from arcd.jobs.journal import new_job
from arcd.jobs.store import Store
from arcd.model.base_model import bundled
from arcd.system.home import Home

TASKS = load("arc1-train:2")

done = pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


# What is written when the daemon is gone.


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """With a job of two tasks, one of them answered by the daemon's last record."""
    with closing(Store(tmp_path)) as store:
        store.journal.submit(new_job("j", 10, TASKS, Config()))
        name = TASKS.tasks[0].id
        store.journal.append(1, events.Answered(name, verdict(name, 1, [], None)))
    return Home(tmp_path)


@pytest.fixture
def out(home: Home) -> Path:
    return home.path / "out.json"


def text(home: Home) -> str:
    with closing(Store(home.path, "read")) as store:
        return store.jobs.submission(1)


def published(home: Home) -> Published:
    with closing(Store(home.path, "read")) as store:
        return store.jobs.published()[1]


@done
@pytest.mark.parametrize("before", [None, "{}"], ids=["missing", "of an earlier answer"])
def test_a_submission_that_the_daemon_could_not_write_is_written(
    home: Home, out: Path, before: str | None, done: bool
) -> None:
    if before is not None:
        out.write_text(before)
    publish_rest(home, [out], 1, done=done)
    assert out.read_text() == home.submission(1).read_text() == text(home)
    assert published(home) == Published(2, 2)


def test_one_that_is_as_it_should_be_is_left_alone(home: Home, out: Path) -> None:
    publish_rest(home, [out], 1, done=True)
    before = out.stat()
    publish_rest(home, [out], 1, done=True)
    assert out.stat().st_ino == before.st_ino


def test_a_run_that_has_answered_nothing_leaves_what_was_made_of_its_file(
    home: Home, out: Path
) -> None:
    publish_rest(home, [out], 1, done=False)
    out.write_text("merged by hand")
    publish_rest(home, [out], 1, done=False)
    assert out.read_text() == "merged by hand"


@pytest.mark.parametrize("before", [None, "another job's"])
def test_a_run_that_ends_well_leaves_its_submission_whatever_was_there(
    home: Home, out: Path, before: str | None
) -> None:
    publish_rest(home, [out], 1, done=True)
    out.unlink()
    if before is not None:
        out.write_text(before)
    publish_rest(home, [out], 1, done=True)
    assert out.read_text() == text(home)


def test_one_that_cannot_be_written_is_an_error_that_names_it_when_all_others_are_written(
    home: Home, out: Path
) -> None:
    gone = home.path / "gone" / "out.json"
    for done in (True, False):
        with pytest.raises(ArcdError, match=r"gone/out\.json: not written"):
            publish_rest(home, [gone, out], 1, done=done)
        assert out.read_text() == home.submission(1).read_text() == text(home)
        assert published(home) == Published()


def test_every_daemon_of_a_command_knows_where_the_command_began(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int | None] = []

    class Ended:
        def __init__(self, command: Sequence[str], *_: object, **__: object) -> None:
            began.append(Options.model_validate_json(command[-1]).began)

        async def run(self) -> int:
            return 0

    monkeypatch.setattr(foreground, "Supervisor", Ended)
    for folder in (home.path, tmp_path / "new"):
        options = Options(home=folder, base=bundled())
        serve(options, limits=Limits(), report=lambda _: None, progress=lambda *_: None)
    assert began == [2, 0]


# Until when.

BUDGET = BudgetConfig(seconds=20.0, reserve=5.0)
ALLOWED = 20.0 - LAST_PART * 5.0


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("submitted", "accepted", "expected"),
    [
        pytest.param(None, 0.0, ALLOWED, id="no daemon ever answers"),
        pytest.param(2.0, 2.0, ALLOWED, id="a new job"),
        pytest.param(-12.0, 2.0, ALLOWED - 12.0, id="a job that goes on"),
        pytest.param(-ALLOWED, 2.0, ALLOWED, id="one whose time was up before"),
        pytest.param(-1e6, 2.0, ALLOWED, id="one of long ago"),
        pytest.param(5.0, 2.0, ALLOWED, id="a clock that was set back"),
    ],
)
async def test_a_budget_counts_from_the_submission_of_the_job(
    submitted: float | None, accepted: float, expected: float
) -> None:
    ended: list[float] = []
    begun = anyio.current_time()

    async def wait(backstop: Backstop) -> None:
        await backstop.wait()
        ended.append(anyio.current_time() - begun)

    async with anyio.create_task_group() as waiting:
        backstop = Backstop(BUDGET, wall=lambda: anyio.current_time() - begun)
        waiting.start_soon(wait, backstop)
        await anyio.sleep(accepted)
        if submitted is not None:
            backstop.accepted(submitted)
    assert ended == [pytest.approx(expected)]


@pytest.mark.anyio
async def test_without_a_budget_there_is_no_end() -> None:
    backstop = Backstop(BudgetConfig())
    with anyio.move_on_after(1e6) as scope:
        backstop.accepted(0.0)
        await backstop.wait()
    assert scope.cancelled_caught
