"""What a bench says follows from what it measured."""

from dataclasses import replace

import pytest

from arcd.cli.bench import Cold, Comparison, Resident
from arcd.jobs.events import Times
from arcd.system.ledger import Account, Kind, Resource


def run(
    wall: float, loading: float, train: float, infer: float, times: dict[str, Times]
) -> Resident:
    seconds: dict[Resource, dict[Kind, float]] = {
        "trainer": {"step": train},
        "engine": {"step": infer},
        "host": {"load": loading},
    }
    return Resident(wall, loading + 3, Account(wall, seconds, wall - loading - 1), times)


TIMES = {"a": Times(10, 4), "b": Times(6, 8), "c": Times(8, 2)}
"""In Johnson's order b, a, c: trained after 6, 16, 24 s; sampled after 14, 20, 26 s."""

FOUND = Comparison(
    tasks=3,
    cores=2,
    cold=Cold(wall=200.0, train=110.0, sample=90.0, first=60.0),
    resident=run(48.0, 10.0, 24.0, 14.0, TIMES),
    arcd=run(40.0, 10.0, 27.0, 16.8, {}),
)


def test_the_bound_is_that_of_a_trainer_and_an_engine_that_never_wait() -> None:
    assert FOUND.bound == 26


def test_overlap_is_measured_against_the_resident_run_so_that_residency_is_not_counted() -> None:
    assert FOUND.overlap_uncorrected == pytest.approx((38 - 30) / (38 - 26))


def test_one_task_has_nothing_to_overlap_with() -> None:
    alone = replace(FOUND, resident=run(48.0, 10.0, 24.0, 14.0, {"a": TIMES["a"]}))
    assert alone.overlap_efficiency is None
    assert alone.to_json()["overlap_uncorrected"] is None


def test_contention_is_taken_out_of_the_overlap_and_told_beside_it() -> None:
    """Steps take 1.125 and 1.2 times as long: 11.25/4.8, 6.75/9.6, 9/2.4; b, a, c: 27 + 2.4 s."""
    serial = 27 + 16.8
    bound = max(6.75 + 9.6, 18.0) + 4.8
    bound = max(bound, 27.0) + 2.4
    assert FOUND.overlap_efficiency == pytest.approx((serial - 30) / (serial - bound))


def test_ratios_are_of_whole_commands_and_contention_of_steps() -> None:
    found = FOUND.to_json()
    assert found["cold_over_arcd"] == 5
    assert found["resident_over_arcd"] == 1.2
    assert found["outside_compute_share"] == pytest.approx(1 / 30)
    assert found["contention"] == {
        "trainer": pytest.approx(27 / 24),
        "engine": pytest.approx(16.8 / 14),
    }
