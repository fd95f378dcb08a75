"""`arcd run` on real tasks with the real trainer and the real engine, as a user calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arcd import submission
from arcd.runs import Run

pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).parent.parent / "examples" / "tasks"
SMALL = ["--set", "train.steps=4", "--set", "sample.samples=3"]


def arcd(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "arcd", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env={**os.environ, **env}
    )


def few_tasks(folder: Path) -> Path:
    """Two real tasks in the Kaggle format, without solutions, and one that is too long."""
    tasks = {}
    for name in ("6ea4a07e", "2072aba6"):
        value = json.loads((EXAMPLES / f"{name}.json").read_text())
        tasks[name] = {**value, "test": [{"input": t["input"]} for t in value["test"]]}
    full = [[7] * 30] * 30
    tasks["toolong"] = {
        "train": [{"input": full, "output": full}] * 2,
        "test": [{"input": full}],
    }
    path = folder / "tasks.json"
    path.write_text(json.dumps(tasks))
    return path


def run_once(folder: Path) -> tuple[dict[str, Any], Run, str]:
    tasks = few_tasks(folder)
    settings = [*SMALL, "--set", "train.max_seq_len=2000", "--set", "engine.max_model_len=2000"]
    out = folder / "submission.json"
    done = arcd("run", tasks, "--out", out, "--home", folder / "home", "--json", *settings)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    return document, Run.open(Path(document["run"])), done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], Run, str]]:
    return [run_once(tmp_path_factory.mktemp(name)) for name in ("first", "second")]


def test_every_task_and_test_is_in_the_submission(runs):
    document, run, _ = runs[0]
    read = submission.read(Path(document["submission"]))
    assert {name: len(tests) for name, tests in read.items()} == {
        task.id: len(task.tests) for task in run.tasks.tasks
    }
    assert read == submission.read(run.submission)


def test_every_sample_was_drawn_once_with_the_adapter_of_its_task(runs):
    _, run, _ = runs[0]
    found = [(c.task, c.test, c.sample, c.adapter) for c in run.candidates()]
    wanted = [("6ea4a07e", test, s, 0) for test in (0, 1) for s in range(3)]
    wanted += [("2072aba6", 0, s, 1) for s in range(3)]
    assert sorted(found) == sorted(wanted)


def test_a_task_that_fits_nowhere_is_blank_with_a_line_that_says_so(runs):
    _, run, progress = runs[0]
    assert submission.read(run.submission)["toolong"] == [[submission.BLANK] * 2]
    assert any("3727 tokens, 2000 are allowed" in note for note in run.notes("toolong"))
    assert "toolong  note: " in progress


def test_progress_is_one_line_for_each_transition_and_nothing_else(runs):
    _, _, progress = runs[0]
    lines = progress.splitlines()
    assert sum("trained 4 steps" in line for line in lines) == 2
    assert sum("answered" in line and "/3:" in line for line in lines) == 3
    others = [li for li in lines if li.split()[0] not in {"6ea4a07e", "2072aba6", "toolong"}]
    assert others == []


def test_the_same_seed_gives_the_same_lessons_and_questions(runs):
    def provenance(run: Run) -> object:
        return sorted(
            (c.task, c.test, c.sample, c.view.flip, c.view.turns, c.view.colours, c.shown)
            for c in run.candidates()
        )

    (_, first, _), (_, second, _) = runs
    assert provenance(first) == provenance(second)

    def trained(run: Run) -> list[Any]:
        records = (record.get("trained", {}) for record in run.records())
        return sorted((r["task"], r["tokens"], round(r["loss"], 2)) for r in records if r)

    assert trained(first) == trained(second)


def test_the_ledger_accounts_for_the_wall_time_of_each_lane(runs):
    _, run, _ = runs[0]
    ledger = json.loads((run.folder / "ledger.json").read_text())
    for lane in ledger["lanes"].values():
        spent = sum(seconds for kind, seconds in lane.items() if kind != "load")
        assert spent == pytest.approx(ledger["solving"], rel=0.02)
    assert ledger["lanes"]["trainer"]["step"] > 0
    assert ledger["lanes"]["engine"]["step"] > 0


def test_no_adapter_is_left_behind(runs):
    _, run, _ = runs[0]
    assert list((run.folder / "adapters").iterdir()) == []


def test_the_kaggle_notebook_runs_offline(tmp_path: Path):
    inputs = tmp_path / "input" / "competition"
    inputs.mkdir(parents=True)
    few_tasks(inputs).rename(inputs / "arc-agi_test_challenges.json")
    script = EXAMPLES.parent / "kaggle.py"
    command = [sys.executable, script, "--input", tmp_path / "input", "--working", tmp_path]
    settings = ["train.steps=2", "sample.samples=1", "train.max_seq_len=2000"]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"},
    )
    assert done.returncode == 0, done.stderr
    assert set(submission.read(tmp_path / "submission.json")) == {
        "6ea4a07e",
        "2072aba6",
        "toolong",
    }


def test_doctor_says_that_everything_works():
    done = arcd("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert all(finding["ok"] for finding in found.values())
    assert "trainer and engine ready after" in found["smoke"]["value"]
