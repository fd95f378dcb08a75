"""What a daemon's death leaves at each point of its life, and the life after it.

One life runs in this process. At each point the home is copied, as a kill at this point would leave
it; a second life on the copy must bring the job to its end. Killed for real: see test_kills.
"""

from pathlib import Path

import anyio
import pytest
from support.fakedaemon import POINTS, Points
from support.kill_bench import Snapshots, check, live

pytestmark = pytest.mark.xdist_group("crash points")

TIMES = 6
"""A point that is reached more often is tried at so many of these times, evenly spread."""


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    """A whole life with a copy of the home at each of its points."""
    folder = tmp_path_factory.mktemp("life")
    home = folder / "home"
    home.mkdir()
    snapshots = Snapshots(home, folder)
    check(home, anyio.run(live, home, snapshots))
    return snapshots


def spread(homes: list[Path]) -> list[Path]:
    """The first, the last and some between them."""
    last, most = len(homes) - 1, min(TIMES, len(homes))
    return [homes[i * last // max(1, most - 1)] for i in range(most)]


@pytest.mark.parametrize("point", POINTS)
def test_the_life_after_a_crash_brings_the_job_to_its_end(crashes: Snapshots, point: str) -> None:
    for home in spread(crashes.of(point)):
        check(home, anyio.run(live, home, Points()))


def test_each_point_is_reached_and_no_other(crashes: Snapshots) -> None:
    assert crashes.reached - {"poison"} == set(POINTS)
