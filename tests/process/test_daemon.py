"""A daemon of fakes as its users meet it: by the command line, by the client, by signals.

Tests that take the fixture `shared` leave no job unfinished and do not end the daemon.
"""

import json
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fakedaemon import SOLUTIONS, Plan
from support.running import ENDLESS, SETTINGS, Running, until

from arcd import Client
from arcd.arc import submission
from arcd.arc.tasks import load
from arcd.errors import BadInput, BadJob, NoJob
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.jobs.store import Store, path_in
from arcd.model.base_model import bundled

SMALL = ["--set", "train.steps=2", "--set", "sample.samples=3"]
TASKS = load(SOLUTIONS).tasks

NOBODYS = 999
"""The number of no job."""

FULL_PAGES = 19
"""Of the store on a full disk: room for the job and for some of its steps."""

LONG = {"train": {"steps": 3000, "batch_size": 1}}
"""A job whose first training takes more pages than FULL_PAGES."""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "home") as found:
        yield found.wait()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(tmp_path_factory.mktemp("shared") / "home") as found:
        yield found.wait()


def trains(records: Iterator[Record]) -> bool:
    """Wait until a task is being trained."""
    return any(isinstance(record.event, events.Training) for record in records)


def test_every_verb_from_submit_to_stop(running: Running, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    submitted = running.json("submit", SOLUTIONS, "--name", "first", *SMALL)
    assert (submitted["job"], submitted["name"]) == (1, "first")
    running.follow(1)
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


def test_who_looks_on_elsewhere_than_on_a_terminal_gets_lines(shared: Running) -> None:
    job = shared.json("submit", SOLUTIONS, *SMALL)["job"]
    done = shared.arcd("watch", job)
    lines = done.stderr.splitlines()
    assert sum("answered" in line and "✓ solved" in line for line in lines) == len(TASKS)
    assert "\x1b" not in done.stderr
    assert done.stdout == f"job {job} ({SOLUTIONS}): done, 4 of 4 tasks answered, 0 in flight\n"
    assert shared.client.solutions(job) == load(SOLUTIONS).solutions
    assert shared.arcd("watch", NOBODYS).returncode == 2


def test_what_waits_is_predicted_and_the_rates_outlive_the_daemon(tmp_path: Path) -> None:
    found = []
    for job in (1, 2):
        with Running(tmp_path) as running:
            found.append(running.wait().client.health()["rates"])
            running.client.submit(SOLUTIONS, settings=ENDLESS)
            forecast = running.json("status", job)["forecast"]
            assert forecast["seconds"] > 0
            assert forecast["tasks"].keys() == {task.id for task in TASKS}
            assert all(times["train"] > 0 for times in forecast["tasks"].values())
            running.client.cancel(job)
            assert running.end() == 0
            assert running.json("status", job)["forecast"]["tasks"] == {}
    assert found[0] == found[1], "measured once"


def test_submit_tells_what_can_be_done_next(shared: Running) -> None:
    done = shared.arcd("submit", SOLUTIONS, *SMALL)
    job = shared.client.jobs()[-1]["job"]
    assert done.stdout.splitlines() == [
        f"job {job}: 4 tasks, queued",
        f"  arcd status {job}",
        f"  arcd result {job} --out submission.json",
        f"  arcd cancel {job}",
    ]
    shared.follow(job)


def test_submit_and_wait_ends_with_the_job_and_leaves_its_submission(
    shared: Running, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = shared.arcd("submit", SOLUTIONS, "--wait", "--out", out, *SMALL)
    assert done.returncode == 0
    assert done.stderr.count("answered") == len(TASKS)
    job = shared.client.jobs()[-1]["job"]
    assert f"job {job} (arc1-train:4): done, 4 of 4 tasks answered" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert json.loads(out.read_text()) == shared.client.result(job)


def test_who_has_followed_a_job_to_its_end_reads_its_submission(
    shared: Running, tmp_path: Path
) -> None:
    for i in range(3):
        out = tmp_path / f"{i}.json"
        job = shared.client.submit(SOLUTIONS, settings=SETTINGS, out=out)
        shared.follow(job)
        for path in (out, shared.home / "jobs" / str(job) / "submission.json"):
            assert json.loads(path.read_text()) == shared.client.result(job)


def test_the_submission_is_there_from_the_first_moment(shared: Running, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    job = shared.client.submit(SOLUTIONS, settings=ENDLESS, out=out)
    until(out.exists)
    assert submission.read(out) == {
        task.id: [[submission.BLANK] * 2 for _ in task.tests] for task in TASKS
    }
    assert shared.client.result(job) == json.loads(out.read_text())
    shared.client.cancel(job)


def test_a_cancelled_job_stops_and_its_answers_stand(shared: Running) -> None:
    job = shared.client.submit(SOLUTIONS, settings=ENDLESS)
    stream = shared.client.follow(job)
    assert trains(stream)
    assert shared.json("cancel", job)["state"] == "cancelled"
    assert events.Cancelled() in [record.event for record in stream]
    with pytest.raises(BadJob, match=f"job {job}: it is cancelled already"):
        shared.client.cancel(job)
    # The trainer is free for the next one.
    following = shared.client.submit(SOLUTIONS, settings=SETTINGS)
    assert shared.follow(following)[-1].job == following


def test_a_paused_job_waits_until_it_is_resumed(shared: Running) -> None:
    blocking = shared.client.submit(SOLUTIONS, settings=ENDLESS)
    job = shared.client.submit(SOLUTIONS, settings=SETTINGS)
    assert shared.json("pause", job)["state"] == "paused"
    shared.client.cancel(blocking)
    third = shared.client.submit(SOLUTIONS, settings=SETTINGS)
    assert len(shared.follow(third)) > 0
    assert shared.client.job(job)["answered"] == 0
    assert shared.json("resume", job)["state"] in ("queued", "running")
    shared.follow(job)
    assert shared.client.job(job)["state"] == "done"


def test_a_good_answer_is_not_retried(shared: Running) -> None:
    job = shared.client.submit(SOLUTIONS, settings=SETTINGS)
    shared.follow(job)
    done = shared.arcd("retry", job)
    assert done.returncode == 2
    assert "none of its answers is failed or doubtful" in done.stderr


def test_a_failed_answer_is_retried_with_what_it_has(shared: Running) -> None:
    # Without an adapter the fake engine answers nothing right, and here nothing valid.
    job = shared.client.submit(SOLUTIONS, settings={**SETTINGS, "train": {"steps": 0}})
    shared.follow(job)
    before = shared.client.job(job)
    assert before["retriable"] == len(TASKS)
    assert shared.json("retry", job)["answered"] == 0
    shared.follow(job)
    found = Store(shared.home, "read").jobs.candidates(job)
    samples = [(c.task, c.test, c.sample) for c in found]
    assert len(samples) == len(set(samples)) == 2 * 3 * sum(len(t.tests) for t in TASKS)


def test_asked_to_end_it_sets_aside_what_is_in_hand_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    with Running(tmp_path / "home") as first:
        job = first.wait().client.submit(SOLUTIONS, settings=ENDLESS)
        assert trains(first.client.follow(job))
        assert first.end() == 0
    state = Store(tmp_path / "home", "read").journal.state()
    assert state.daemon is None
    assert state.in_flight() == []
    assert [t.deaths for t in state.jobs[job].tasks.values()] == [0] * len(TASKS)
    with Running(tmp_path / "home") as second:
        assert trains(second.wait().client.follow(job, state.seq))


def test_asked_to_end_while_loading_it_ends_at_once(tmp_path: Path) -> None:
    with Running(tmp_path / "home", Plan(str(tmp_path / "marker"), loading=1000)) as loading:
        job = loading.wait(ready=False).client.submit(SOLUTIONS, settings=SETTINGS)
        assert loading.client.health()["state"] == "loading"
        assert loading.client.job(job)["state"] == "queued"
        assert loading.end() == 0


def test_left_alone_an_old_job_waits_until_it_is_resumed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Running(home) as first:
        old = first.wait().client.submit(SOLUTIONS, settings=ENDLESS)
        assert first.end() == 0
    since = Store(home, "read").journal.last() + 1
    with Running(home, since=since) as second:
        new = second.wait().client.submit(SOLUTIONS, settings=SETTINGS)
        second.follow(new)
        assert second.client.job(old)["answered"] == 0
        after = Store(home, "read").journal.last()
        second.client.resume(old)
        assert trains(second.client.follow(old, after))
    # Nor is it forgotten by a daemon that replaces this one.
    after = Store(home, "read").journal.last()
    with Running(home, since=since) as third:
        assert trains(third.wait().client.follow(old, after))


def test_a_job_of_another_base_waits_for_a_daemon_with_its_own(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "base"
    with Running(home) as first:
        old = first.wait().client.submit(SOLUTIONS, settings=ENDLESS)
        assert first.end() == 0
    shutil.copytree(bundled(), other)
    with Running(home, base=other) as second:
        new = second.wait().client.submit(SOLUTIONS, settings=SETTINGS)
        second.follow(new)
        assert second.client.job(old)["answered"] == 0
        for verb in (second.client.resume, second.client.retry):
            with pytest.raises(BadJob, match=f"job {old}: it was given to another base, .*base"):
                verb(old)
        assert second.end() == 0
        assert f"job {old} waits for a daemon with its base" in second.log
    after = Store(home, "read").journal.last()
    with Running(home) as third:
        assert trains(third.wait().client.follow(old, after))


def test_the_client_raises_what_the_daemon_explains(shared: Running) -> None:
    before = len(shared.client.jobs())
    with pytest.raises(NoJob, match=f"job {NOBODYS}: there is no such job"):
        shared.client.job(NOBODYS)
    with pytest.raises(BadInput, match=r"train\.stepz: unknown key"):
        shared.client.submit(SOLUTIONS, settings={"train": {"stepz": 1}})
    with pytest.raises(BadInput, match="the base has no 'wrong'"):
        shared.client.submit(SOLUTIONS, settings={"train": {"target_modules": ["wrong"]}})
    with pytest.raises(NoJob):
        next(shared.client.follow(NOBODYS))
    assert len(shared.client.jobs()) == before


def test_by_tcp_only_with_the_token(tmp_path: Path) -> None:
    with Running(tmp_path / "home", host="127.0.0.1", port=0) as running:
        # The system chooses the port; the log names it.
        url = re.sub(r"(?s).*listening on (\S+)\n.*", r"http://\1", running.wait().log)
        token = (tmp_path / "home" / "token").read_text().strip()
        with Client(url=url, token=token) as client:
            job = client.submit(SOLUTIONS, settings=SETTINGS)
            assert next(r.job for r in client.follow(job)) == job
            with pytest.raises(BadJob, match="only a client on this machine may name files"):
                client.submit(SOLUTIONS, out=tmp_path / "out.json")
        with Client(url=url, token="wrong") as client, pytest.raises(Exception, match="token"):
            client.jobs()


def test_what_is_kept_is_for_its_owner_alone(shared: Running) -> None:
    for path, mode in ((shared.home, 0o700), (path_in(shared.home), 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE((shared.home / "socket").stat().st_mode) == 0o600


def test_a_full_disk_ends_the_daemon_with_one_clear_line_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    plan = Plan(str(tmp_path / "marker"), seconds_per_step=0.001, pages=FULL_PAGES)
    with Running(tmp_path / "home", plan) as full:
        job = full.wait().client.submit(SOLUTIONS, settings=LONG)
        assert full.process.wait(timeout=60) == 1
        last = full.log.splitlines()[-1]
        assert last.endswith("arcd.db: database or disk is full")
    records = list(Store(tmp_path / "home", "read").journal.records(job=job))
    assert isinstance(records[-1].event, events.Training)
    with Running(tmp_path / "home") as again:
        assert trains(again.wait().client.follow(job, records[-1].seq))
