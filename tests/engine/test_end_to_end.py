"""`arcd run` on real tasks with the real trainer and the real engine, as a user calls it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from arcd.arc import submission
from arcd.daemon.client import Client
from arcd.errors import StoreFailed
from arcd.jobs import events
from arcd.jobs.store import Store

pytestmark = pytest.mark.engine

E = TypeVar("E", bound=events.Event)

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
SMALL = ["--set", "train.steps=4", "--set", "sample.samples=3"]


def arcd(*arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "arcd", *map(str, arguments)]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, env={**os.environ, **env}
    )


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "arcd", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(home: Path, kind: str) -> events.Record:
    """The first record of a kind after those that are there already."""
    after = Store(home, "read").journal.state().seq if (home / "arcd.db").is_file() else 0
    for _ in range(1200):
        time.sleep(0.1)
        with suppress(StoreFailed):
            found = Store(home, "read").journal.records(after)
            if record := next((r for r in found if events.kind(r.event) == kind), None):
                return record
    raise TimeoutError(kind)


def kill_daemon_at(home: Path, kind: str) -> None:
    wait_for(home, kind)
    holders = json.loads((home / "lock").read_text())
    os.kill(holders["daemon"]["pid"], signal.SIGKILL)


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


SHORT = ["--set", "train.max_seq_len=2000", "--set", "engine.max_model_len=2000"]


class Done:
    """A finished `arcd run`: what it printed, and the store it left."""

    def __init__(self, folder: Path, document: dict[str, Any], progress: str) -> None:
        self.document, self.progress = document, progress
        self.home = folder / "home"
        self.store = Store(self.home, "read")
        self.job = int(document["job"])

    def records(self, kind: type[E]) -> list[E]:
        found = (record.event for record in self.store.journal.records(job=self.job))
        return [event for event in found if isinstance(event, kind)]


def run_once(folder: Path) -> Done:
    out = folder / "submission.json"
    tasks = few_tasks(folder)
    done = arcd("run", tasks, "--out", out, "--home", folder / "home", "--json", *SMALL, *SHORT)
    assert done.returncode == 0, done.stderr
    return Done(folder, json.loads(done.stdout), done.stderr)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Done]:
    return [run_once(tmp_path_factory.mktemp(name)) for name in ("first", "second")]


def test_every_task_and_test_is_in_the_submission(runs: list[Done]) -> None:
    run = runs[0]
    read = submission.read(Path(run.document["submission"]))
    assert {name: len(tests) for name, tests in read.items()} == {
        task.id: len(task.tests) for task in run.store.jobs.tasks(run.job).tasks
    }
    assert read == submission.parse("stored", json.loads(run.store.jobs.submission(run.job)))


def test_every_sample_was_drawn_once_with_the_adapter_of_its_task(runs: list[Done]) -> None:
    run = runs[0]
    adapters = {event.task: event.adapter for event in run.records(events.Trained)}
    assert len(set(adapters.values())) == 2
    found = [(c.task, c.test, c.sample, c.adapter) for c in run.store.jobs.candidates(run.job)]
    wanted = [("6ea4a07e", test, s, adapters["6ea4a07e"]) for test in (0, 1) for s in range(3)]
    wanted += [("2072aba6", 0, s, adapters["2072aba6"]) for s in range(3)]
    assert sorted(found) == sorted(wanted)


def test_a_task_that_fits_nowhere_is_blank_with_a_line_that_says_so(runs: list[Done]) -> None:
    run = runs[0]
    attempts = submission.read(Path(run.document["submission"]))
    assert attempts["toolong"] == [[submission.BLANK] * 2]
    notes = {verdict.task: verdict.notes for verdict in run.store.jobs.verdicts(run.job)}
    assert any("3727 tokens, 2000 are allowed" in note for note in notes["toolong"])
    assert "toolong  note: " in run.progress


def test_progress_is_one_line_for_each_transition_and_nothing_else(runs: list[Done]) -> None:
    lines = runs[0].progress.splitlines()
    assert sum("trained 4 steps" in line for line in lines) == 2
    assert sum("answered" in line and "/3:" in line for line in lines) == 3
    first = {"6ea4a07e", "2072aba6", "toolong"}
    others = [line for line in lines if line.split()[0] not in first]
    assert [line for line in others if not line.startswith("models loaded in ")] == []


def test_the_same_seed_gives_the_same_lessons_and_questions(runs: list[Done]) -> None:
    def provenance(run: Done) -> object:
        return sorted(
            (c.task, c.test, c.sample, c.view.flip, c.view.turns, c.view.colours, c.shown)
            for c in run.store.jobs.candidates(run.job)
        )

    first, second = runs
    assert provenance(first) == provenance(second)

    def trained(run: Done) -> list[Any]:
        return sorted(run.records(events.Trained), key=lambda event: event.task)

    for one, two in zip(trained(first), trained(second), strict=True):
        assert (one.task, one.tokens) == (two.task, two.tokens)
        # Its last digits depend on how many threads there were.
        assert one.loss == pytest.approx(two.loss, abs=0.01)


def test_the_ledger_accounts_for_the_wall_time_of_each_lane(runs: list[Done]) -> None:
    ledger = runs[0].document["ledger"]
    for lane in ledger["lanes"].values():
        spent = sum(seconds for kind, seconds in lane.items() if kind != "load")
        assert spent == pytest.approx(ledger["solving"], rel=0.02)
    assert ledger["lanes"]["trainer"]["step"] > 0
    assert ledger["lanes"]["engine"]["step"] > 0


def test_no_adapter_is_left_behind(runs: list[Done]) -> None:
    assert list((runs[0].home / "adapters").iterdir()) == []


def test_a_daemon_killed_in_training_and_in_sampling_loses_nothing(tmp_path: Path) -> None:
    tasks, home = few_tasks(tmp_path), tmp_path / "home"
    command = ["run", tasks, "--home", home, "--json", *SMALL, *SHORT]
    with start(*command) as running:
        for kind in ("Training", "Sampled"):
            kill_daemon_at(home, kind)
        stdout, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    assert stderr.count("note: death: died of signal 9") == 2
    done = Done(tmp_path, json.loads(stdout), stderr)
    assert len(done.records(events.DaemonReady)) == 3
    assert sorted(event.task for event in done.records(events.Answered)) == sorted(
        task.id for task in done.store.jobs.tasks(done.job).tasks
    )
    sampled = [(c.task, c.test, c.sample) for c in done.store.jobs.candidates(done.job)]
    assert len(sampled) == len(set(sampled)) == 9


@pytest.mark.full
def test_a_run_killed_whole_leaves_a_valid_submission_and_is_taken_up_again(tmp_path: Path) -> None:
    tasks, home, out = few_tasks(tmp_path), tmp_path / "home", tmp_path / "submission.json"
    command = ["run", tasks, "--out", out, "--home", home, "--json", *SMALL, *SHORT]
    with start(*command) as running:
        record = wait_for(home, "Sampled")
        running.kill()
    assert set(submission.read(out)) == {"6ea4a07e", "2072aba6", "toolong"}
    done = arcd(*command)
    assert done.returncode == 0, done.stderr
    second = Done(tmp_path, json.loads(done.stdout), done.stderr)
    assert second.job == record.job
    assert sorted(Counter(e.task for e in second.records(events.Answered)).values()) == [1, 1, 1]
    assert len(list(second.store.jobs.candidates(second.job))) == 9


def test_serve_submit_status_result_and_stop(tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out.json"
    at = ("--home", home)
    with start("serve", *at, "--json", *SHORT) as daemon, Client(home) as client:
        assert daemon.stdout is not None
        lines = (json.loads(line) for line in daemon.stdout)
        assert next(lines)["event"] == "loading"
        # Jobs are taken while the models load.
        submitted = arcd("submit", few_tasks(tmp_path), *at, "--json", *SMALL)
        job = json.loads(submitted.stdout)["job"]
        assert next(lines)["event"] == "ready"
        refused = arcd("serve", *at)
        assert refused.returncode == 1
        assert f"in use by arcd with pid {daemon.pid}" in refused.stderr
        waited = arcd("submit", "arc1-train:1", *at, "--wait", "--json", *SMALL)
        assert json.loads(waited.stdout)["state"] == "done"
        assert client.job(job)["state"] == "done"
        assert arcd("result", job, *at, "--out", out).returncode == 0
        assert json.loads(out.read_text()) == client.result(job)
        assert "daemon ready" in arcd("status", *at).stdout
        assert "answered 3/3" in arcd("logs", *at).stdout
        assert arcd("stop", *at).returncode == 0
        assert daemon.wait(timeout=60) == 0
    assert json.loads(arcd("status", job, *at, "--json").stdout)["state"] == "done"


@pytest.mark.full
def test_ctrl_c_sets_a_run_aside_and_the_same_command_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = ["run", "arc1-train:5", "--home", home, "--json", *SMALL]
    with start(*command) as running:
        record = wait_for(home, "Trained")
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command goes on from here" in stderr
    state = Store(home, "read").journal.state()
    assert record.job is not None
    assert (state.daemon, state.jobs[record.job].state, state.in_flight()) == (None, "paused", [])
    done = arcd(*command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"] == record.job


@pytest.mark.full
def test_the_kaggle_notebook_runs_offline(tmp_path: Path) -> None:
    inputs = tmp_path / "input" / "competition"
    inputs.mkdir(parents=True)
    few_tasks(inputs).rename(inputs / "arc-agi_test_challenges.json")
    script = EXAMPLES.parent / "kaggle.py"
    command: list[str | Path] = [sys.executable, script, "--budget", "1h"]
    command += ["--input", tmp_path / "input", "--working", tmp_path]
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


def test_the_kaggle_notebook_leaves_a_submission_even_where_nothing_can_be_installed(
    tmp_path: Path,
) -> None:
    inputs = tmp_path / "input" / "competition"
    inputs.mkdir(parents=True)
    few_tasks(inputs).rename(inputs / "arc-agi_test_challenges.json")
    script = EXAMPLES.parent / "kaggle.py"
    # -S: without site-packages, so that neither arcd nor anything else is installed.
    command: list[str | Path] = [sys.executable, "-S", script]
    command += ["--input", tmp_path / "input", "--working", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "expected one arcd wheel under the input folder, found none"
    )
    found = json.loads((tmp_path / "submission.json").read_text())
    tasks = json.loads((inputs / "arc-agi_test_challenges.json").read_text())
    assert {name: len(tests) for name, tests in found.items()} == {
        name: len(task["test"]) for name, task in tasks.items()
    }
    assert submission.read(tmp_path / "submission.json")


@pytest.mark.full
@pytest.mark.timing
def test_a_run_with_a_budget_ends_in_time_with_an_answer_for_all(tmp_path: Path) -> None:
    begun = time.monotonic()
    out = tmp_path / "submission.json"
    limits = ("--budget", "60s", "--reserve", "15s")
    done = arcd("run", "arc1-train:20", *limits, "--home", tmp_path, "--out", out, "--json")
    assert time.monotonic() - begun < 60
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "done"
    assert len(submission.read(out)) == 20


@pytest.mark.full
def test_bench_compares_three_ways(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for name in ("6ea4a07e.json", "2072aba6.json"):
        shutil.copy(EXAMPLES / name, tasks)
    done = arcd("bench", tasks, "--set", "train.steps=3", "--set", "sample.samples=2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["cold_over_arcd"] > 1
    assert found["cold"]["train"] > 0 < found["cold"]["sample"]
    assert {"resident_over_arcd", "overlap_efficiency", "outside_compute_share"} <= set(found)


def test_doctor_says_that_everything_works() -> None:
    done = arcd("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert all(finding["ok"] for finding in found.values())
    assert "trainer and engine ready after" in found["smoke"]["value"]
