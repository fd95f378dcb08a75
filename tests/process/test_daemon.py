"""A daemon of fakes as its users meet it: by the command line, by the client, by signals."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fakedaemon import SOLUTIONS, Plan

from arcd import Client
from arcd.arc import submission
from arcd.arc.tasks import load
from arcd.config import resolve
from arcd.daemon.heartbeat import SUPERVISOR_PID
from arcd.daemon.options import Options
from arcd.errors import BadInput, BadJob, NoDaemon, NoJob
from arcd.jobs import events
from arcd.jobs.store import Store, path_in
from arcd.model.base_model import bundled

SETTINGS = {"train": {"steps": 2}, "sample": {"samples": 3}}
SMALL = ["--set", "train.steps=2", "--set", "sample.samples=3"]
ENDLESS = {"train": {"steps": 400}}
"""With the plan's pace longer than any test."""
TASKS = load(SOLUTIONS).tasks


class Running:
    """A daemon of fakes; this process stands for its supervisor."""

    def __init__(self, home: Path, plan: Plan | None = None, **options: object) -> None:
        home.mkdir(mode=0o700, exist_ok=True)
        self.home = home
        given = {"base": bundled(), **options}
        asked = Options(home=home, config=resolve(), grace=0.2, **given)
        script = Path(__file__).parents[1] / "support" / "fakedaemon.py"
        plan = plan or Plan(str(home / "marker"), seconds_per_step=0.03)
        command = [sys.executable, str(script), asked.model_dump_json(), plan.to_json()]
        env = {**os.environ, SUPERVISOR_PID: str(os.getpid())}
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.client = Client(home)

    def wait(self, state: str = "ready") -> "Running":
        """Until it says that this is its state."""
        while self.process.poll() is None:
            try:
                found = self.client.health()
            except NoDaemon:
                continue
            if found["state"] == state:
                return self
        raise AssertionError(self.process.stdout.read())

    def arcd(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "arcd", *map(str, arguments), "--home", str(self.home)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    def json(self, *arguments: object) -> object:
        done = self.arcd(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def end(self) -> int:
        """The exit code after it was asked to end."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    found = Running(tmp_path / "home")
    yield found.wait()
    found.close()


def test_every_verb_from_submit_to_stop(running: Running, tmp_path: Path):
    out = tmp_path / "out.json"
    submitted = running.json("submit", SOLUTIONS, "--name", "first", *SMALL)
    assert (submitted["job"], submitted["name"]) == (1, "first")
    for _ in running.client.follow(1):
        pass
    status = running.json("status", "1")
    assert (status["state"], status["answered"]) == ("done", len(TASKS))
    assert set(status.pop("forecast")["accuracy"]) == {"train", "infer"}
    assert running.json("jobs") == [status]
    assert running.json("result", "1", "--out", out)["submission"] == str(out)
    assert submission.read(out).keys() == {task.id for task in TASKS}
    assert running.json("eval", "1")["score"] == 1.0
    assert "daemon ready" in running.arcd("status").stdout
    assert running.arcd("stop").stdout == "stopped\n"
    assert running.process.wait(timeout=30) == 0


def test_who_looks_on_elsewhere_than_on_a_terminal_gets_lines(running: Running):
    running.arcd("submit", SOLUTIONS, *SMALL)
    done = running.arcd("watch", "1")
    lines = done.stderr.splitlines()
    assert sum("answered" in line and "✓ solved" in line for line in lines) == len(TASKS)
    assert "\x1b" not in done.stderr
    assert done.stdout == f"job 1 ({SOLUTIONS}): done, 4 of 4 tasks answered, 0 in flight\n"
    assert running.client.solutions(1) == load(SOLUTIONS).solutions
    assert running.arcd("watch", "2").returncode == 2


def test_what_waits_is_predicted_and_the_rates_outlive_the_daemon(tmp_path: Path):
    found = []
    for _ in range(2):
        running = Running(tmp_path).wait()
        try:
            found.append(running.client.health()["rates"])
            running.client.submit(SOLUTIONS, settings=ENDLESS)
            forecast = running.json("status", len(found))["forecast"]
            assert forecast["seconds"] > 0
            assert forecast["tasks"].keys() == {task.id for task in TASKS}
            assert all(times["train"] > 0 for times in forecast["tasks"].values())
            running.client.cancel(len(found))
            assert running.end() == 0
            assert running.json("status", len(found))["forecast"]["tasks"] == {}
        finally:
            running.close()
    assert found[0] == found[1], "measured once"


def test_submit_tells_what_can_be_done_next(running: Running):
    done = running.arcd("submit", SOLUTIONS, *SMALL)
    assert done.stdout.splitlines() == [
        "job 1: 4 tasks, queued",
        "  arcd status 1",
        "  arcd result 1 --out submission.json",
        "  arcd cancel 1",
    ]


def test_submit_and_wait_ends_with_the_job(running: Running, tmp_path: Path):
    out = tmp_path / "out.json"
    done = running.arcd("submit", SOLUTIONS, "--wait", "--out", out, *SMALL)
    assert done.returncode == 0
    assert done.stderr.count("answered") == len(TASKS)
    assert "job 1 (arc1-train:4): done, 4 of 4 tasks answered" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert running.end() == 0
    assert submission.read(out).keys() == {task.id for task in TASKS}


def test_the_submission_is_there_from_the_first_moment(running: Running, tmp_path: Path):
    out = tmp_path / "out.json"
    running.client.submit(SOLUTIONS, settings=ENDLESS, out=out)
    while not out.exists():
        pass
    assert submission.read(out) == {
        task.id: [[submission.BLANK] * 2 for _ in task.tests] for task in TASKS
    }
    assert running.client.result(1) == json.loads(out.read_text())


def test_a_cancelled_job_stops_and_its_answers_stand(running: Running):
    job = running.client.submit(SOLUTIONS, settings=ENDLESS)
    stream = running.client.follow(job)
    assert any(isinstance(record.event, events.Training) for record in stream)
    assert running.json("cancel", job)["state"] == "cancelled"
    assert events.Cancelled() in [record.event for record in stream]
    with pytest.raises(BadJob, match="job 1: it is cancelled already"):
        running.client.cancel(job)
    # The trainer is free for the next one.
    following = running.client.submit(SOLUTIONS, settings=SETTINGS)
    assert list(running.client.follow(following))[-1].job == following


def test_a_paused_job_waits_until_it_is_resumed(running: Running):
    blocking = running.client.submit(SOLUTIONS, settings=ENDLESS)
    job = running.client.submit(SOLUTIONS, settings=SETTINGS)
    assert running.json("pause", job)["state"] == "paused"
    running.client.cancel(blocking)
    third = running.client.submit(SOLUTIONS, settings=SETTINGS)
    assert len(list(running.client.follow(third))) > 0
    assert running.client.job(job)["answered"] == 0
    assert running.json("resume", job)["state"] in ("queued", "running")
    for _ in running.client.follow(job):
        pass
    assert running.client.job(job)["state"] == "done"


def test_a_good_answer_is_not_retried(running: Running):
    job = running.client.submit(SOLUTIONS, settings=SETTINGS)
    for _ in running.client.follow(job):
        pass
    done = running.arcd("retry", job)
    assert done.returncode == 2
    assert "none of its answers is failed or doubtful" in done.stderr


def test_a_failed_answer_is_retried_with_what_it_has(running: Running):
    # Without an adapter the fake engine answers nothing right, and here nothing valid.
    job = running.client.submit(SOLUTIONS, settings={**SETTINGS, "train": {"steps": 0}})
    for _ in running.client.follow(job):
        pass
    before = running.client.job(job)
    assert before["retriable"] == len(TASKS)
    assert running.json("retry", job)["answered"] == 0
    for _ in running.client.follow(job):
        pass
    samples = [(c.task, c.test, c.sample) for c in Store(running.home, "read").jobs.candidates(job)]
    assert len(samples) == len(set(samples)) == 2 * 3 * sum(len(t.tests) for t in TASKS)


def test_asked_to_end_it_sets_aside_what_is_in_hand_and_the_next_one_goes_on(tmp_path: Path):
    first = Running(tmp_path / "home").wait()
    job = first.client.submit(SOLUTIONS, settings=ENDLESS)
    stream = first.client.follow(job)
    assert any(isinstance(record.event, events.Training) for record in stream)
    assert first.end() == 0
    first.close()
    store = Store(tmp_path / "home", "read")
    assert store.journal.state().daemon is None
    assert store.journal.state().in_flight() == []
    assert [t.deaths for t in store.journal.state().jobs[job].tasks.values()] == [0] * len(TASKS)
    after = store.journal.state().seq
    second = Running(tmp_path / "home").wait()
    follow = second.client.follow(job, after)
    assert any(isinstance(record.event, events.Training) for record in follow)
    second.close()


def test_asked_to_end_while_loading_it_ends_at_once(tmp_path: Path):
    plan = Plan(str(tmp_path / "marker"), loading=1000)
    loading = Running(tmp_path / "home", plan).wait("loading")
    job = loading.client.submit(SOLUTIONS, settings=SETTINGS)
    assert loading.client.job(job)["state"] == "queued"
    assert loading.end() == 0
    loading.close()


def test_left_alone_an_old_job_waits_until_it_is_resumed(tmp_path: Path):
    first = Running(tmp_path / "home").wait()
    old = first.client.submit(SOLUTIONS, settings=ENDLESS)
    assert first.end() == 0
    first.close()
    since = Store(tmp_path / "home", "read").journal.last() + 1
    second = Running(tmp_path / "home", since=since).wait()
    new = second.client.submit(SOLUTIONS, settings=SETTINGS)
    for _ in second.client.follow(new):
        pass
    assert second.client.job(old)["answered"] == 0
    after = Store(tmp_path / "home", "read").journal.last()
    second.client.resume(old)
    follow = second.client.follow(old, after)
    assert any(isinstance(r.event, events.Training) for r in follow)
    second.close()
    # Nor is it forgotten by a daemon that replaces this one.
    after = Store(tmp_path / "home", "read").journal.last()
    third = Running(tmp_path / "home", since=since).wait()
    follow = third.client.follow(old, after)
    assert any(isinstance(r.event, events.Training) for r in follow)
    third.close()


def test_a_job_of_another_base_waits_for_a_daemon_with_its_own(tmp_path: Path):
    first = Running(tmp_path / "home").wait()
    old = first.client.submit(SOLUTIONS, settings=ENDLESS)
    assert first.end() == 0
    first.close()
    other = tmp_path / "base"
    shutil.copytree(bundled(), other)
    second = Running(tmp_path / "home", base=other).wait()
    try:
        new = second.client.submit(SOLUTIONS, settings=SETTINGS)
        for _ in second.client.follow(new):
            pass
        assert second.client.job(old)["answered"] == 0
        for verb in (second.client.resume, second.client.retry):
            with pytest.raises(BadJob, match=f"job {old}: it was given to another base, .*base"):
                verb(old)
        assert second.end() == 0
        assert f"job {old} waits for a daemon with its base" in second.process.stdout.read()
    finally:
        second.close()
    third = Running(tmp_path / "home").wait()
    assert any(isinstance(r.event, events.Sampled) for r in third.client.follow(old))
    third.close()


def test_the_client_raises_what_the_daemon_explains(running: Running):
    with pytest.raises(NoJob, match="job 9: there is no such job"):
        running.client.job(9)
    with pytest.raises(BadInput, match=r"train\.stepz: unknown key"):
        running.client.submit(SOLUTIONS, settings={"train": {"stepz": 1}})
    with pytest.raises(BadInput, match="the base has no 'wrong'"):
        running.client.submit(SOLUTIONS, settings={"train": {"target_modules": ["wrong"]}})
    with pytest.raises(NoJob):
        next(running.client.follow(9))
    assert running.client.jobs() == []


def test_by_tcp_only_with_the_token(tmp_path: Path):
    running = Running(tmp_path / "home", host="127.0.0.1", port=18710).wait()
    url, token = "http://127.0.0.1:18710", (tmp_path / "home" / "token").read_text().strip()
    with Client(url=url, token=token) as client:
        job = client.submit(SOLUTIONS, settings=SETTINGS)
        assert next(r.job for r in client.follow(job)) == job
        with pytest.raises(BadJob, match="only a client on this machine may name files"):
            client.submit(SOLUTIONS, out=tmp_path / "out.json")
    with Client(url=url, token="wrong") as client, pytest.raises(Exception, match="token"):
        client.jobs()
    running.close()


def test_what_is_kept_is_for_its_owner_alone(running: Running):
    for path, mode in ((running.home, 0o700), (path_in(running.home), 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((running.home / "socket").stat().st_mode) == 0o600


def test_a_full_disk_ends_the_daemon_with_one_clear_line_and_the_next_one_goes_on(tmp_path: Path):
    full = Running(tmp_path / "home", Plan(str(tmp_path / "marker"), pages=50)).wait()
    job = full.client.submit(SOLUTIONS, settings=ENDLESS)
    assert full.process.wait(timeout=60) == 1
    last = full.process.stdout.read().splitlines()[-1]
    assert last.endswith("arcd.db: database or disk is full")
    full.close()
    records = list(Store(tmp_path / "home", "read").journal.records(job=job))
    assert isinstance(records[-1].event, events.Training)
    again = Running(tmp_path / "home").wait()
    follow = again.client.follow(job, records[-1].seq)
    assert any(isinstance(r.event, events.Training) for r in follow)
    again.close()
