"""A daemon that freezes is noticed within the stall limit, replaced, and its job completes.

See test_kills for the bench. A limit of three seconds stands for the minute of real life.
"""

from pathlib import Path

import anyio
import pytest
from support.fakedaemon import POISONED, Plan
from test_kills import Bench, check

from arcd.daemon.watchdog import Limits

pytestmark = pytest.mark.anyio

FLOOR = 3.0


@pytest.mark.parametrize(
    ("harm", "point", "reason"),
    [
        ("stop", "after Sampled", "no sign of life"),
        ("gil", "after Training", "no sign of life"),
        ("hang", "", "no engine step"),
    ],
)
async def test_a_frozen_daemon_is_replaced_and_the_job_completes(
    tmp_path: Path, harm: str, point: str, reason: str
):
    plan = Plan(str(tmp_path / "marker"), point, harm=harm)
    bench = Bench(tmp_path / "home", plan, Limits(floor=FLOOR, ceiling=FLOOR))
    begun = anyio.current_time()
    job = await bench.finish()
    (incident,) = bench.incidents
    assert incident.kind == "stall"
    assert reason in incident.text
    assert anyio.current_time() - begun < 4 * FLOOR + 5
    check(bench.home, job)
    if harm != "stop":
        # A stopped process cannot dump; the others can, even where the GIL is held.
        assert "Current thread" in (bench.home / "stacks.log").read_text()


async def test_a_task_that_kills_the_daemon_every_time_is_set_aside_and_the_others_are_done(
    tmp_path: Path,
):
    plan = Plan(str(tmp_path / "marker"), "poison", always=True)
    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish()
    assert len(bench.incidents) == 3
    verdicts = {v.task: v for v in bench.store().verdicts(job)}
    poisoned = verdicts.pop(POISONED)
    assert "set aside: the daemon died 3 times with this task in flight" in poisoned.notes
    assert all(not v.notes and v.samples for v in verdicts.values())
