"""`arcd run` on real tasks with the real trainer and the real engine, as a user calls it.

Two runs are shared: one that nothing disturbs, and the same one, whose daemon is killed twice.
"""

import json
from pathlib import Path

import pytest
from support.real_runs import SHORT, SMALL, Done, arcd, few_tasks, kill_daemon_at, start

from arcd.arc import submission
from arcd.jobs import events

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("once")
    out, tasks = folder / "submission.json", few_tasks(folder)
    done = arcd("run", tasks, "--out", out, "--home", folder / "home", "--json", *SMALL, *SHORT)
    assert done.returncode == 0, done.stderr
    return Done(folder, json.loads(done.stdout), done.stderr)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The same run, whose daemon was killed while it trained and while it sampled."""
    folder = tmp_path_factory.mktemp("killed")
    tasks, home = few_tasks(folder), folder / "home"
    with start("run", tasks, "--home", home, "--json", *SMALL, *SHORT) as running:
        for kind in ("Training", "Sampled"):
            kill_daemon_at(home, kind)
        stdout, stderr = running.communicate(timeout=300)
    assert running.returncode == 0, stderr
    return Done(folder, json.loads(stdout), stderr)


def test_every_task_and_test_is_in_the_submission(once: Done) -> None:
    read = submission.read(Path(once.document["submission"]))
    assert {name: len(tests) for name, tests in read.items()} == {
        task.id: len(task.tests) for task in once.store.jobs.tasks(once.job).tasks
    }
    assert read == submission.parse("stored", json.loads(once.store.jobs.submission(once.job)))


def test_every_sample_was_drawn_once_with_the_adapter_of_its_task(once: Done) -> None:
    adapters = {event.task: event.adapter for event in once.records(events.Trained)}
    assert len(set(adapters.values())) == 2
    found = [(c.task, c.test, c.sample, c.adapter) for c in once.store.jobs.candidates(once.job)]
    wanted = [("6ea4a07e", test, s, adapters["6ea4a07e"]) for test in (0, 1) for s in range(3)]
    wanted += [("2072aba6", 0, s, adapters["2072aba6"]) for s in range(3)]
    assert sorted(found) == sorted(wanted)


def test_a_task_that_fits_nowhere_is_blank_with_a_line_that_says_so(once: Done) -> None:
    attempts = submission.read(Path(once.document["submission"]))
    assert attempts["toolong"] == [[submission.BLANK] * 2]
    notes = {verdict.task: verdict.notes for verdict in once.store.jobs.verdicts(once.job)}
    assert any("3727 tokens, 2000 are allowed" in note for note in notes["toolong"])
    assert "toolong  note: " in once.progress


def test_progress_is_one_line_for_each_transition_and_nothing_else(once: Done) -> None:
    lines = once.progress.splitlines()
    assert sum("trained 4 steps" in line for line in lines) == 2
    assert sum("answered" in line and "/3:" in line for line in lines) == 3
    first = {"6ea4a07e", "2072aba6", "toolong"}
    others = [line for line in lines if line.split()[0] not in first]
    assert [line for line in others if not line.startswith("models loaded in ")] == []


def test_the_ledger_accounts_for_the_wall_time_of_each_lane(once: Done) -> None:
    ledger = once.document["ledger"]
    for lane in ledger["lanes"].values():
        spent = sum(seconds for kind, seconds in lane.items() if kind != "load")
        assert spent == pytest.approx(ledger["solving"], rel=0.02)
    assert ledger["lanes"]["trainer"]["step"] > 0
    assert ledger["lanes"]["engine"]["step"] > 0


def test_a_daemon_killed_in_training_and_in_sampling_loses_nothing(killed: Done) -> None:
    assert killed.progress.count("note: death: died of signal 9") == 2
    assert len(killed.records(events.DaemonReady)) == 3
    assert sorted(event.task for event in killed.records(events.Answered)) == sorted(
        task.id for task in killed.store.jobs.tasks(killed.job).tasks
    )
    sampled = [(c.task, c.test, c.sample) for c in killed.store.jobs.candidates(killed.job)]
    assert len(sampled) == len(set(sampled)) == 9


def test_the_same_seed_gives_the_same_lessons_and_questions_also_after_a_kill(
    once: Done, killed: Done
) -> None:
    def provenance(run: Done) -> object:
        return sorted(
            (c.task, c.test, c.sample, c.view.flip, c.view.turns, c.view.colours, c.shown)
            for c in run.store.jobs.candidates(run.job)
        )

    assert provenance(once) == provenance(killed)

    def trained(run: Done) -> list[events.Trained]:
        return sorted(run.records(events.Trained), key=lambda event: event.task)

    for one, two in zip(trained(once), trained(killed), strict=True):
        assert (one.task, one.tokens) == (two.task, two.tokens)
        # Its last digits depend on how many threads there were.
        assert one.loss == pytest.approx(two.loss, abs=0.01)


def test_no_adapter_is_left_behind(once: Done, killed: Done) -> None:
    for run in (once, killed):
        assert list((run.home / "adapters").iterdir()) == []
