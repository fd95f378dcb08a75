"""The command line in this process: exit codes, one-line errors, nothing half-written.

No model here: every command either needs none or must refuse before one is loaded.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.commands import arcd
from support.homes import stored, write

from arcd.cli import daemon
from arcd.errors import NoDaemon
from arcd.jobs.job_table import JobTable
from arcd.jobs.journal import Journal
from arcd.system.home_lock import HomeLock

PAIR = {"input": [[1, 2]], "output": [[2, 1]]}
TASK = {"train": [PAIR, PAIR], "test": [{"input": [[3, 4]]}]}


BROKEN = {
    "not JSON": ("{", ["not JSON"]),
    "ragged rows": (
        {"good": TASK, "bad": {**TASK, "test": [{"input": [[1], [1, 2]]}]}},
        ["task bad", "test 0 input", "row 1 has 2 cells, row 0 has 1"],
    ),
    "colour": (
        {"bad": {**TASK, "train": [{**PAIR, "output": [[10]]}]}},
        ["task bad", "train pair 0 output", "not a colour 0..9: 10"],
    ),
    "empty grid": ({"bad": {**TASK, "test": [{"input": []}]}}, ["task bad", "non-empty list"]),
    "no test": ({"bad": {"train": [PAIR]}}, ["task bad", "'test' is missing or empty"]),
    "twice": ('{"bad": 1, "bad": 2}', ["'bad' stands in it twice"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_task_file_is_one_line_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    content, expected = BROKEN[kind]
    tasks = write(tmp_path / "tasks.json", content)
    done = arcd("run", tasks, "--out", tmp_path / "out.json", "--home", tmp_path / "home")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    for part in [str(tasks), *expected]:
        assert part in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tasks.json"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "train.stepz=3"], "train.stepz: unknown key"),
        (["--set", "train.steps=-3"], "train.steps: Input should be greater than or equal to 0"),
        (["--set", "encoding=rows+cells"], "unknown encoding 'rows+cells'"),
        (["--base", "nowhere"], "nowhere: not a folder with a base model"),
        (["--base", "."], "a base model without config.json"),
        (["--config", "none.toml"], "none.toml: No such file"),
        (["--solutions", "none.json"], "none.json: No such file"),
        (["--device", "tpu"], "device 'tpu': expected auto, cpu, cuda or cuda:N"),
        (["--wrong"], "No such option: --wrong"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], expected: str
) -> None:
    tasks = write(tmp_path / "tasks.json", {"t": TASK})
    if arguments[0] == "--base" and arguments[1] == ".":
        arguments = ["--base", str(tmp_path)]
    done = arcd("run", tasks, "--home", tmp_path / "home", *arguments)
    assert done.returncode == 2
    assert expected in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_home_that_is_not_arcds_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "adapters" / "mine").touch()
    tmp_path.chmod(0o755)
    done = arcd("serve", "--backend", "fake", "--home", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    line = f"arcd: {tmp_path}: other files are in it; name a new or empty folder\n"
    assert done.stderr == line
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert {path.name for path in tmp_path.rglob("*")} == {"adapters", "mine"}


def test_a_base_without_weights_is_named(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.json", {"t": TASK})
    base = tmp_path / "base"
    base.mkdir()
    write(base / "config.json", {})
    done = arcd("run", tasks, "--home", tmp_path / "home", "--base", base)
    assert done.returncode == 2
    assert f"{base}: a base model without weights" in done.stderr


def test_eval_prints_a_table_and_json(tmp_path: Path) -> None:
    attempts = {"attempt_1": [[5]], "attempt_2": [[0]]}
    submission = write(tmp_path / "submission.json", {"a": [attempts]})
    solutions = write(tmp_path / "solutions.json", {"a": [[[5]]], "b": [[[1]]]})
    table = arcd("eval", submission, "--solutions", solutions)
    assert table.returncode == 0
    assert "score 50.0% of 2 tasks" in table.stdout
    assert f"solutions of 2 tasks, 1 of them in {submission}\n" in table.stdout
    document = json.loads(arcd("eval", submission, "--solutions", solutions, "--json").stdout)
    assert document["score"] == 0.5
    assert document["tasks"]["a"]["pass_1"] == 1
    assert document["tasks"]["b"]["unanswered"] == 1


def test_eval_of_a_job_counts_all_its_samples(tmp_path: Path) -> None:
    stored(tmp_path)
    document = json.loads(arcd("eval", "1", "--home", tmp_path, "--json").stdout)
    assert set(document["tasks"]) == {"a", "b"}
    document["total"] = document["tasks"]["a"]
    # Test 0 had the samples TWO, which is right, and ONE; test 1 a single invalid one.
    assert document["total"]["accuracy"] == 0.25
    assert document["total"]["unanswered"] == 0.5
    assert document["total"]["pass_2"] == 0.5


def test_eval_of_a_job_with_a_larger_file_counts_the_tasks_of_the_job(tmp_path: Path) -> None:
    stored(tmp_path)
    others = {f"other{i}": [[[1]]] for i in range(398)}
    truth = {**others, "a": [[[5]], [[1, 2], [3, 4]]], "b": [[[5]], [[1]]]}
    solutions = write(tmp_path / "solutions.json", truth)
    command = ("eval", "1", "--solutions", solutions, "--home", tmp_path)
    table = arcd(*command)
    assert "score 25.0% of 2 tasks" in table.stdout
    assert f"{solutions}: solutions of 400 tasks, 2 of them in job 1\n" in table.stdout
    document = json.loads(arcd(*command, "--json").stdout)
    assert (set(document["tasks"]), document["solutions"]) == ({"a", "b"}, 400)
    wrong = write(tmp_path / "wrong.json", others)
    done = arcd("eval", "1", "--solutions", wrong, "--home", tmp_path)
    assert (done.returncode, "job 1: the solutions are of other tasks" in done.stderr) == (2, True)


def test_eval_of_a_blank_submission_says_that_nothing_is_answered(tmp_path: Path) -> None:
    attempts = {"attempt_1": [[0]], "attempt_2": [[0]]}
    submission = write(tmp_path / "submission.json", {"a": [attempts]})
    solutions = write(tmp_path / "solutions.json", {"a": [[[5]]]})
    document = json.loads(arcd("eval", submission, "--solutions", solutions, "--json").stdout)
    assert document["total"]["unanswered"] == 1


def test_eval_without_solutions_says_what_is_missing(tmp_path: Path) -> None:
    submission = write(
        tmp_path / "submission.json", {"a": [{"attempt_1": [[5]], "attempt_2": [[0]]}]}
    )
    done = arcd("eval", submission)
    assert (done.returncode, "give --solutions" in done.stderr) == (2, True)


def test_merge_writes_the_first_attempts_of_both(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", {"x": [{"attempt_1": [[1]], "attempt_2": [[2]]}]})
    second = write(tmp_path / "b.json", {"x": [{"attempt_1": [[3]], "attempt_2": [[4]]}]})
    out = tmp_path / "c.json"
    assert arcd("merge", first, second, "--out", out).returncode == 0
    assert json.loads(out.read_text()) == {"x": [{"attempt_1": [[1]], "attempt_2": [[3]]}]}


def test_show_draws_a_job_without_colour_into_a_pipe(tmp_path: Path) -> None:
    stored(tmp_path)
    done = arcd("show", "a", "--job", "1", "--home", tmp_path)
    assert done.returncode == 0
    assert "pair 0  2x2 → 1x1" in done.stdout
    assert "attempt 1: 1 vote  -0.125 nats a token" in done.stdout
    assert "right" in done.stdout
    assert "note: a note" in done.stdout
    assert "\x1b" not in done.stdout
    assert arcd("show", "zz", "--job", "1", "--home", tmp_path).returncode == 2
    assert arcd("show", "a", "--job", "2", "--home", tmp_path).returncode == 2


def test_show_reads_no_other_task_and_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path)
    monkeypatch.delattr(JobTable, "tasks")
    monkeypatch.delattr(Journal, "state")
    done = arcd("show", "a", "--job", "1", "--home", tmp_path)
    assert (done.returncode, "note: a note" in done.stdout) == (0, True)


def test_report_and_trace_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    stored(tmp_path)
    page, trace = tmp_path / "report.html", tmp_path / "trace.json"
    home = ("--home", tmp_path)
    done = arcd("report", 1, "--out", page, "--trace", trace, *home, "--json")
    assert json.loads(done.stdout) == {"job": 1, "report": str(page), "trace": str(trace)}
    assert "a note" in page.read_text()
    assert "a" in {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    for wrong, said in (((9, "--out", page), "no job 9"), ((1,), "--out FILE")):
        done = arcd("report", *wrong, *home)
        assert (done.returncode, said in done.stderr) == (2, True)
    done = arcd("report", 1, "--out", tmp_path / "none" / "report.html", *home)
    assert (done.returncode, "not written" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "command",
    [["eval", "1"], ["show", "a", "--job", "1"], ["report", "1", "--trace", "x"], ["logs"]],
)
def test_what_reads_a_home_does_not_take_another_daemons_jobs_for_its_own(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ARCD_URL job 1 is the far daemon's, and so is the log."""
    stored(tmp_path)
    (tmp_path / "daemon.log").write_text("a line\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCD_HOME", str(tmp_path))
    monkeypatch.setenv("ARCD_URL", "http://127.0.0.1:1")
    done = arcd(*command)
    assert (done.returncode, done.stdout) in ((1, ""), (2, ""))
    assert done.stderr.count("\n") == 1
    assert "http://127.0.0.1:1" in done.stderr
    assert arcd(*command, "--home", tmp_path).returncode == 0


def test_stop_waits_for_the_far_daemon_and_not_for_a_home_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Far:
        def stop(self) -> None:
            asked.append("stop")

        def health(self) -> dict[str, object]:
            asked.append("health")
            raise NoDaemon

    monkeypatch.setattr(daemon, "client_of", lambda home: nullcontext(Far()))
    monkeypatch.setenv("ARCD_HOME", str(tmp_path))
    monkeypatch.setenv("ARCD_URL", "http://far:1")
    with HomeLock.take(tmp_path):
        assert arcd("stop").stdout == "stopped\n"
    assert asked == ["stop", "health"]


def test_show_draws_a_task_of_a_bundled_set() -> None:
    done = arcd("show", "arc1-eval:6ea4a07e")
    assert done.returncode == 0
    assert "task 6ea4a07e" in done.stdout


def test_without_a_daemon_the_store_answers(tmp_path: Path) -> None:
    tasks = stored(tmp_path)
    home = ("--home", tmp_path)
    status = json.loads(arcd("status", "1", *home, "--json").stdout)
    assert (status["state"], status["answered"], status["started"]) == ("running", 1, 1)
    assert status.pop("forecast")["tasks"] == {}
    assert json.loads(arcd("jobs", *home, "--json").stdout) == [status]
    assert json.loads(arcd("status", *home, "--json").stdout)["state"] == "stopped"
    assert "1 of 2 tasks answered" in arcd("status", "1", *home).stdout
    assert "no daemon runs" in arcd("status", *home).stdout
    out = tmp_path / "out.json"
    assert arcd("result", "1", *home, "--out", out).returncode == 0
    assert {name: len(tests) for name, tests in json.loads(out.read_text()).items()} == {
        task.id: len(task.tests) for task in tasks.tasks
    }
    assert json.loads(arcd("result", "1", *home).stdout) == json.loads(out.read_text())


@pytest.mark.parametrize("number", [-1, 0, 7, 10**18, 10**30])
def test_no_number_of_a_job_is_too_much(tmp_path: Path, number: int) -> None:
    stored(tmp_path)
    for command in (
        ("status", "--", number),
        ("result", "--", number),
        ("eval", "--", number),
        ("show", "a", f"--job={number}"),
        ("report", "--trace", tmp_path / "trace", "--", number),
    ):
        verb, *rest = command
        done = arcd(verb, "--home", tmp_path, *rest)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_job_that_is_not_there_is_named(tmp_path: Path) -> None:
    stored(tmp_path)
    for verb in ("status", "result", "eval"):
        done = arcd(verb, "7", "--home", tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "job 7" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["submit", "arc1-train:1"],
        ["jobs"],
        ["status"],
        ["status", "1"],
        ["result", "1"],
        ["cancel", "1"],
        ["pause", "1"],
        ["resume", "1"],
        ["retry", "1"],
        ["logs"],
        ["stop"],
    ],
)
def test_where_nothing_is_every_verb_says_so_in_one_line(
    tmp_path: Path, command: list[str]
) -> None:
    done = arcd(*command, "--home", tmp_path / "home")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "home") in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_bench_without_training_is_refused(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.json", {"a": TASK})
    done = arcd("bench", tasks, "--set", "train.steps=0")
    assert (done.returncode, done.stderr) == (2, "arcd: bench: train.steps: at least 1\n")
