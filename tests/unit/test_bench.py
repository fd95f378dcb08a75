"""What a bench says follows from what it measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from support.small import task, task_set

from arcd.cli import bench
from arcd.cli.baseline import Part
from arcd.cli.bench_figures import (
    Cold,
    Comparison,
    LessonSpeed,
    Resident,
    Round,
    Speeds,
    medians,
)
from arcd.cli.tables import bench_table
from arcd.config import Config, resolve
from arcd.daemon.options import Options
from arcd.errors import ArcdError
from arcd.jobs.events import Times
from arcd.system.ledger import Account, Kind, Resource


def run(
    wall: float, loading: float, train: float, infer: float, times: dict[str, Times]
) -> Resident:
    seconds: dict[Resource, dict[Kind, float]] = {
        "trainer": {"step": train, "hand-over": 0.5},
        "engine": {"step": infer, "hand-over": 0.1},
        "host": {"load": loading},
    }
    return Resident(wall, loading + 3, Account(wall, seconds, wall - loading - 1), times)


TIMES = {"a": Times(10, 4), "b": Times(6, 8), "c": Times(8, 2)}
"""In Johnson's order b, a, c: trained after 6, 16, 24 s; sampled after 14, 20, 26 s."""

SPEEDS = Speeds(
    1,
    (
        LessonSpeed("a", 400.0, {"peft": 100.0, "peft_labelled": 200.0, "eager": 400.0}),
        LessonSpeed("b", 900.0, {"peft": 100.0, "peft_labelled": 100.0, "eager": 100.0}),
    ),
)

FOUND = Round(
    cold=Cold(wall=200.0, train=110.0, sample=90.0, first=60.0, steps=Times(50.0, 30.0)),
    resident=run(48.0, 10.0, 24.0, 14.0, TIMES),
    arcd=run(40.0, 10.0, 27.0, 16.8, {}),
    speeds=SPEEDS,
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


def test_hand_over_is_a_share_of_the_time_after_start_up() -> None:
    found = FOUND.to_json()
    assert found["arcd"]["hand_over"] == pytest.approx(0.6)
    assert found["hand_over_share"] == {
        "resident": pytest.approx(0.6 / 38),
        "arcd": pytest.approx(0.6 / 30),
    }


def test_the_trainer_over_peft_is_the_geometric_mean_over_the_lengths() -> None:
    found = FOUND.to_json()
    assert found["trainer_over_peft"] == {"eager": pytest.approx(2)}
    assert found["trainer_over_peft_labelled"] == {"eager": pytest.approx(2**0.5)}
    assert [each["over_peft"] for each in found["speeds"]["lengths"]] == [
        {"eager": 4.0},
        {"eager": 1.0},
    ]


def test_every_mode_of_the_trainer_has_its_ratio() -> None:
    rates = {"peft": 100.0, "peft_labelled": 200.0, "eager": 300.0, "compiled": 400.0}
    speeds = Speeds(1, (LessonSpeed("a", 400.0, rates),))
    assert speeds.over("peft") == {"compiled": pytest.approx(4), "eager": pytest.approx(3)}


def test_a_ratio_is_of_one_round_and_its_median_over_the_rounds() -> None:
    rounds = tuple(
        replace(
            FOUND,
            cold=replace(FOUND.cold, wall=cold),
            arcd=run(wall, 10.0, 27.0, 16.8, {}),
        )
        for cold, wall in ((200.0, 40.0), (300.0, 50.0), (400.0, 200.0))
    )
    found = Comparison(3, 2, rounds).to_json()
    assert found["cold_over_arcd"] == 5  # of 5, 6 and 2
    assert found["cold"]["wall"] == 300
    assert found["arcd"]["wall"] == 50
    assert found["rounds"] == [
        {"cold": 200.0, "resident": 48.0, "arcd": 40.0},
        {"cold": 300.0, "resident": 48.0, "arcd": 50.0},
        {"cold": 400.0, "resident": 48.0, "arcd": 200.0},
    ]
    assert (found["tasks"], found["cores"]) == (3, 2)


def test_medians_keep_the_shape_and_what_is_no_measurement() -> None:
    values = [
        {"a": [1.0, {"b": 9.0}], "c": None, "d": "x", "e": 2},
        {"a": [3.0, {"b": 7.0}], "c": None, "d": "x", "e": 2},
    ]
    assert medians(values) == {"a": [2.0, {"b": 8.0}], "c": None, "d": "x", "e": 2}


def test_the_figures_are_json_and_hold_all_keys_of_0_1_0() -> None:
    found = json.loads(json.dumps(Comparison(3, 2, (FOUND,)).to_json()))
    assert {
        "cold_over_arcd",
        "resident_over_arcd",
        "overlap_efficiency",
        "overlap_uncorrected",
        "outside_compute_share",
        "contention",
        "idle",
        "bound",
        "tasks",
        "cores",
        "cold",
        "resident",
        "arcd",
    } <= found.keys()
    assert {"wall", "train", "sample", "first"} <= found["cold"].keys()
    assert {"wall", "first", "loading", "solving", "steps"} <= found["arcd"].keys()


def test_the_table_shows_the_three_ways_and_training_alone() -> None:
    console = Console(width=80, record=True)
    console.print(bench_table(Comparison(3, 2, (FOUND,)).to_json()))
    text = console.export_text()
    rows = [line.split() for line in text.splitlines()]
    assert ["separate", "processes", "200.0", "60.0", "50.0", "30.0", "5.00"] in rows
    assert ["arcd", "40.0", "13.0", "27.0", "16.8", "1.00"] in rows
    assert ["400", "100", "200", "400"] in rows
    assert "times as fast: eager 2.00" in text
    assert "120.0 s are their starts and ends" in text


def test_what_a_process_is_told_survives_its_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[str, Part]] = []

    def done(what: str, module: str, verb: str, given: str) -> str:
        part = Part.model_validate_json(given)
        part.steps_file(verb).write_text("0.5")
        parts.append((verb, part))
        return ""

    monkeypatch.setattr(bench, "_process", done)
    config = resolve(settings=["train.steps=3"])
    options = Options(home=tmp_path, base=tmp_path / "base", device="cpu", config=config)
    cold = bench._cold(task_set(task("a"), task("b")), "some tasks", options)
    assert [(verb, part.task) for verb, part in parts] == [
        ("train", "a"),
        ("sample", "a"),
        ("train", "b"),
        ("sample", "b"),
    ]
    assert {part.config for _, part in parts} == {config}
    assert {part.tasks for _, part in parts} == {"some tasks"}
    # Both processes of a task share a folder that no other task sees.
    folders = [part.folder for _, part in parts]
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert cold.steps == Times(1.0, 1.0)
    assert 0 < cold.first <= cold.wall


def test_a_process_that_fails_is_told_with_its_last_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ArcdError, match=r"bench: cold train of task a: .*unheard_of"):
        bench._process("cold train of task a", "unheard_of")


def test_lessons_are_those_of_the_tasks_unless_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def speeds(source: str, options: Options) -> Speeds:
        asked.append(source)
        return SPEEDS

    monkeypatch.setattr(bench, "_speeds", speeds)
    monkeypatch.setattr(bench, "_cold", lambda *_: FOUND.cold)
    monkeypatch.setattr(bench, "_resident", lambda *_, overlap: FOUND.arcd)
    options = Options(home=tmp_path, base=tmp_path, device="cpu", config=Config())
    told: list[str] = []
    for lessons_of in (None, "others"):
        found = bench.compare(
            task_set(task("a")),
            "these",
            options,
            repeat=2,
            report=told.append,
            lessons_of=lessons_of,
        )
        assert len(found.rounds) == 2
    assert asked == ["these"] * 2 + ["others"] * 2
    assert "trainer   eager 2.00 x peft" in told
