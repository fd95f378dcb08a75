"""A daemon that freezes is noticed within the stall limit, replaced, and its job completes.

Limits of seconds stand for the minutes of real life.
"""

from pathlib import Path

import anyio
import pytest
from support.fakedaemon import POISONED, Plan
from support.kill_bench import Bench, check

from arcd.daemon.watchdog import Limits

pytestmark = pytest.mark.anyio

LIMITS = Limits(floor=4.0, ceiling=10.0)
"""Long enough for a busy machine: a daemon of fakes that lives beats twice a second, and is loaded
after one second."""

SOON_S = LIMITS.ceiling + 15.0
"""From the start to the end of a job whose daemon froze once, on an idle machine."""


@pytest.mark.parametrize(
    ("harm", "point", "reason", "limit"),
    [
        ("stop", "after Sampled", "no sign of life", "limit 4.0 s"),
        ("gil", "after Training", "no sign of life", "limit 4.0 s"),
        ("hang", "", "no engine step", "limit 10 s"),
    ],
)
async def test_a_frozen_daemon_is_replaced_and_the_job_completes(
    tmp_path: Path, harm: str, point: str, reason: str, limit: str
) -> None:
    plan = Plan(str(tmp_path / "marker"), point, harm=harm)
    bench = Bench(tmp_path / "home", plan, LIMITS)
    job = await bench.finish()
    (incident,) = bench.incidents
    assert incident.kind == "stall"
    assert reason in incident.text
    assert limit in incident.text
    check(bench.home, job)
    if harm != "stop":
        # A stopped process cannot dump; the others can, even where the GIL is held.
        assert "Current thread" in (bench.home / "stacks.log").read_text()


@pytest.mark.timing
async def test_a_job_is_done_soon_though_its_daemon_froze(tmp_path: Path) -> None:
    plan = Plan(str(tmp_path / "marker"), harm="hang")
    bench = Bench(tmp_path / "home", plan, LIMITS)
    begun = anyio.current_time()
    await bench.finish()
    assert anyio.current_time() - begun < SOON_S
    assert len(bench.incidents) == 1


async def test_a_task_that_kills_the_daemon_every_time_is_set_aside_and_the_others_are_done(
    tmp_path: Path,
) -> None:
    plan = Plan(str(tmp_path / "marker"), "poison", always=True)
    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish()
    assert len(bench.incidents) == 3
    verdicts = {v.task: v for v in bench.store().jobs.verdicts(job)}
    poisoned = verdicts.pop(POISONED)
    assert "set aside: the daemon died 3 times with this task in flight" in poisoned.notes
    assert all(not v.notes and v.samples for v in verdicts.values())
