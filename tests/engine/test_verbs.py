"""What else needs real models: serve and its verbs, doctor, bench, a budget, the notebook."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.real_runs import EXAMPLES, SHORT, SMALL, arcd, few_tasks, start

from arcd.arc import submission
from arcd.daemon.client import Client

pytestmark = pytest.mark.engine


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
        for _ in client.follow(job):
            pass
        assert client.job(job)["state"] == "done"
        assert arcd("result", job, *at, "--out", out).returncode == 0
        assert json.loads(out.read_text()) == client.result(job)
        assert "daemon ready" in arcd("status", *at).stdout
        assert "answered 3/3" in arcd("logs", *at).stdout
        assert arcd("stop", *at).returncode == 0
        assert daemon.wait(timeout=60) == 0
    assert json.loads(arcd("status", job, *at, "--json").stdout)["state"] == "done"


@pytest.mark.full
def test_the_kaggle_notebook_runs_offline(tmp_path: Path) -> None:
    inputs = tmp_path / "input" / "competition"
    inputs.mkdir(parents=True)
    few_tasks(inputs).rename(inputs / "arc-agi_test_challenges.json")
    script = EXAMPLES.parent / "kaggle.py"
    command: list[str | Path] = [sys.executable, script, "--budget", "1h"]
    command += ["--input", tmp_path / "input", "--working", tmp_path, "--device", "auto"]
    command += ["--scratch", tmp_path]
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
@pytest.mark.timing
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
    # The processes take longer than their steps, and both trainers make some.
    assert 0 < found["cold"]["steps"]["trainer"] < found["cold"]["train"]
    assert 0 < found["cold"]["steps"]["engine"] < found["cold"]["sample"]
    assert found["trainer_over_peft"]["eager"] > 0
    assert 0 < found["hand_over_share"]["resident"] < 1


def test_doctor_says_that_everything_works() -> None:
    done = arcd("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert all(finding["ok"] for finding in found.values())
    assert "trainer and engine ready after" in found["smoke"]["value"]
