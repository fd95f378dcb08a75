"""Daemons of fakes that are killed for real, at points where it could hurt and at random.

A supervisor, a daemon, a store and a client, all real. The gate kills at a dozen points; `--all`
has the whole matrix and more random rounds. All points without processes: see test_crash_points.
"""

import json
import os
import random
import signal
from pathlib import Path

import anyio
import pytest
from support.fakedaemon import POINTS, Plan
from support.kill_bench import TASKS, Bench, check

pytestmark = pytest.mark.anyio

GATE = {
    ("before DaemonStarted", 1),
    ("before DaemonReady", 1),
    ("after Submitted", 1),
    ("after serial", 1),
    ("before adapter", 3),
    ("after Training", 3),
    ("before Trained", 1),
    ("after Sampled", 3),
    ("before Answered", 1),
    ("before replace", 4),
    ("before DaemonStopped", 1),
}
"""Point, and the how manieth time it is reached: one of each step of a life."""

GATE_SEEDS = (0, 3, 7, 11)
SEEDS = range(24)

COUNTS = {
    **dict.fromkeys(("DaemonStarted", "DaemonReady", "Submitted", "DaemonStopped", "rates"), (1,)),
    # What is answered while a file is written goes into the next one: there are two at least, each
    # in two places.
    **dict.fromkeys(("write", "replace"), (1, 2, 3, 4)),
    "published": (1, 2),
}
"""The times at which a point is tried, where these are not the first and the third."""

MATRIX = [
    pytest.param(point, count, marks=() if (point, count) in GATE else pytest.mark.full)
    for point in POINTS
    for count in COUNTS.get(point.split()[-1], (1, 3))
]
assert {tuple(param.values) for param in MATRIX} >= GATE


@pytest.mark.parametrize(("point", "count"), MATRIX)
async def test_killed_at_a_point(tmp_path: Path, point: str, count: int) -> None:
    plan = Plan(str(tmp_path / "marker"), point, count)
    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish()
    check(bench.home, job)
    assert (tmp_path / "marker").exists(), "the point was never reached"
    assert len(bench.incidents) == 1


async def test_killed_right_after_the_last_answer_the_file_is_written_by_the_next_life(
    tmp_path: Path,
) -> None:
    plan = Plan(str(tmp_path / "marker"), "after Answered", len(TASKS))
    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish()
    assert (tmp_path / "marker").exists()
    check(bench.home, job)


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=() if s in GATE_SEEDS else pytest.mark.full) for s in SEEDS]
)
async def test_killed_at_random_again_and_again(tmp_path: Path, seed: int) -> None:
    plan = Plan(str(tmp_path / "marker"), seconds_per_step=0.02, seconds_per_token=0.002)
    rng = random.Random(seed)
    kills = rng.randint(1, 2)

    async def disturb(bench: Bench) -> None:
        # Two deaths at most: the third sets a task aside, which is another test.
        for _ in range(kills):
            await anyio.sleep(rng.uniform(0.5, 1.6))
            holders = json.loads((bench.home / "lock").read_text())
            if holders["daemon"]:
                try:
                    os.kill(holders["daemon"]["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    return

    bench = Bench(tmp_path / "home", plan)
    job = await bench.finish(disturb)
    check(bench.home, job)
