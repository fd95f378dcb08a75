"""What `arcd run` does after its daemon is gone; the rest is tested end to end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arcd.arc import submission
from arcd.arc.selection import verdict
from arcd.arc.tasks import load
from arcd.config import Config
from arcd.daemon import schema
from arcd.daemon.foreground import _write_where_the_daemon_could_not as write
from arcd.errors import ArcdError
from arcd.jobs import events
from arcd.jobs.journal import new_job
from arcd.jobs.store import Store
from arcd.system.home import Home

TASKS = load("arc1-train:2")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """With a job of two tasks, one of them answered."""
    store = Store(tmp_path)
    store.journal.submit(new_job("j", 10, TASKS, Config()))
    store.journal.append(
        1, events.Answered(TASKS.tasks[0].id, verdict(TASKS.tasks[0].id, 1, [], None))
    )
    yield Home(tmp_path)
    store.close()


@pytest.mark.parametrize("before", [None, "{}"], ids=["missing", "of an earlier answer"])
def test_a_submission_that_the_daemon_could_not_write_is_written(
    home: Home, before: str | None
) -> None:
    out = home.path / "out.json"
    if before is not None:
        out.write_text(before)
    write(home, schema.order(TASKS, outs=(out,)), 1)
    assert submission.read(out).keys() == {task.id for task in TASKS.tasks}


def test_one_that_is_as_it_should_be_is_left_alone(home: Home) -> None:
    out = home.path / "out.json"
    write(home, schema.order(TASKS, outs=(out,)), 1)
    before = out.stat()
    write(home, schema.order(TASKS, outs=(out,)), 1)
    assert out.stat().st_ino == before.st_ino


def test_one_that_cannot_be_written_is_an_error_that_names_it(home: Home) -> None:
    out = home.path / "gone" / "out.json"
    with pytest.raises(ArcdError, match=r"gone/out\.json: not written"):
        write(home, schema.order(TASKS, outs=(out,)), 1)
