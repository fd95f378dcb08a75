"""The plan of `arcd doctor --thorough`, a daemon's lives as they were seen, the document."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.small import candidate, task

from arcd.arc.selection import Candidate, verdict
from arcd.cli.checks import environment, lives
from arcd.cli.checks.lives import Observed, kill_finding, tasks_finding
from arcd.cli.checks.part import OPENING, Wanted, not_opened, raised, start_finding
from arcd.cli.checks.thorough import RUNTIME_CHECKS, Examination, document
from arcd.cli.finding import Finding
from arcd.config import resolve
from arcd.daemon.options import Options
from arcd.daemon.supervisor import Incident
from arcd.errors import OutOfMemory
from arcd.jobs import events
from arcd.jobs.events import Record
from arcd.model.base_model import bundled
from arcd.system.cuda_driver import Driver
from arcd.system.ledger import Account
from arcd.system.processes import Process

OPTIONS = Options(home=Path("nowhere"), base=bundled(), config=resolve())


FINE = Finding("any", "fine")


# The plan.


@dataclass
class Processes:
    """Processes that find everything ok, but for what is given; each takes `seconds`."""

    findings: Mapping[str, Finding] = field(default_factory=dict)
    crash: str = ""
    """The check at which the first process with it ends."""
    seconds: float = 10.0
    now: float = 0.0
    asked: list[tuple[tuple[str, ...], Mapping[str, str]]] = field(default_factory=list)
    device: str = "cpu"

    def run(self, wanted: Wanted, env: Mapping[str, str]) -> Iterator[Finding]:
        self.asked.append((wanted.names, env))
        self.now += min(self.seconds, wanted.seconds)
        for name in wanted.names:
            if self.seconds > wanted.seconds and name not in OPENING:
                yield Finding(name, "no result in time", ok=False)
                return
            if name == self.crash:
                self.crash = ""
                yield Finding(name, "crashed", ok=False)
                return
            known: dict[str, dict[str, Any]] = {
                "device": {"kind": self.device},
                "speed": {"gain": 1.5},
            }
            data = known.get(name, {"gain": 1.2})
            yield self.findings.get(name, Finding(name, "fine", data=data))
            if name in OPENING and not self.findings.get(name, FINE).ok:
                return

    def all(self, seconds: float = 480.0) -> dict[str, Finding]:
        plan = Examination(OPTIONS, seconds, seconds, self.run, clock=lambda: self.now)
        found = list(plan.findings())
        assert len({finding.name for finding in found}) == len(found), "one finding a check"
        return {finding.name: finding for finding in found}


EVERYTHING = (*RUNTIME_CHECKS, "kill", "tasks", "streams")


def test_on_a_cpu_two_processes_make_all_checks() -> None:
    processes = Processes()
    found = processes.all()
    assert tuple(found) == EVERYTHING
    assert all(finding.ok for finding in found.values())
    apart = {"ARCD_ONE_STREAM": "0"}
    assert processes.asked == [(RUNTIME_CHECKS, apart), (("kill", "tasks"), {})]
    assert found["streams"].value == "skipped: only a GPU has streams"


def test_on_a_gpu_a_third_one_shares_its_stream() -> None:
    processes = Processes(device="cuda")
    found = processes.all()
    assert processes.asked[-1] == (("one stream",), {"ARCD_ONE_STREAM": "1"})
    # Also where the user has set the variable.
    assert processes.asked[0] == (RUNTIME_CHECKS, {"ARCD_ONE_STREAM": "0"})
    assert "1.50 with streams of their own, 1.20 with one" in found["streams"].value


@pytest.mark.parametrize("name", RUNTIME_CHECKS[2:])
def test_after_a_crash_another_process_makes_the_checks_that_are_left(name: str) -> None:
    processes = Processes(crash=name)
    found = processes.all()
    assert tuple(found) == EVERYTHING
    assert [each for each in found if not found[each].ok] == [name]
    left = RUNTIME_CHECKS[RUNTIME_CHECKS.index(name) + 1 :]
    assert [names for names, _ in processes.asked] == [
        RUNTIME_CHECKS,
        *([left] if left else []),
        ("kill", "tasks"),
    ]


@pytest.mark.parametrize("name", ["device", "start"])
def test_where_nothing_can_be_started_the_other_checks_say_so(name: str) -> None:
    processes = Processes(findings={name: Finding(name, "no GPU", ok=False)})
    found = processes.all()
    assert set(found) == set(EVERYTHING)
    assert found["speed"] == Finding(
        "speed", f"not tried: see {name}", ok=False, advice="first mend that line"
    )
    assert found["kill"].ok


def test_where_the_time_is_up_the_checks_that_are_left_say_so() -> None:
    processes = Processes(seconds=1000.0)
    found = processes.all()
    assert tuple(found) == EVERYTHING
    assert "--seconds" in found["speed"].advice
    assert (found["tasks"].value, found["tasks"].ok) == ("no time left", False)
    assert processes.now <= 480.0


def test_a_daemon_whose_process_ends_has_a_finding_of_its_tasks_too() -> None:
    found = Processes(crash="kill").all()
    assert tuple(found) == EVERYTHING
    assert found["tasks"].value == "not tried: see kill"


def test_without_time_for_another_start_streams_are_not_compared() -> None:
    start = Finding("start", "slow", seconds={"engine": 300.0})
    found = Processes(device="cuda", findings={"start": start}, seconds=100.0).all()
    assert not found["streams"].ok
    assert "--seconds" in found["streams"].advice


def test_where_the_speed_could_not_be_measured_streams_are_not_compared() -> None:
    found = Processes(device="cuda", crash="speed").all()
    assert (found["streams"].value, found["streams"].ok) == ("not tried: see speed", False)


def test_the_doctor_itself_imports_neither_torch_nor_vllm() -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'peft', 'vllm'}"
    code = f"import sys, arcd.cli.checks.thorough; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


# A daemon's lives.

NAMES = ("a", "b", "c")
DAEMON = Process(12, 345)
DEATH = Incident("death", "died of signal 9 (Killed)", 1)
MIB = 1 << 20


def records(*what: events.Event) -> list[Record]:
    return [Record(seq, float(seq), 1, event) for seq, event in enumerate(what)]


def life(*names: str) -> list[events.Event]:
    found: list[events.Event] = []
    for name in names:
        drawn: Candidate = candidate(task(name))
        found += [
            events.Started(name, 2, 2),
            events.Trained(name, 3, 2, 100, 0.5, 0.1),
            events.Sampled(name, drawn),
            events.Answered(name, verdict(name, 1, [drawn], 3)),
        ]
    return found


BEGUN = (events.Started("a", 2, 2), events.Training("a", 1, 2, 1.0, 10.0))


def seen(**changed: Any) -> Observed:
    """All is well, but for what is given."""
    usual: dict[str, Any] = {
        "tasks": NAMES,
        "before": 100 * MIB,
        "during": 5000 * MIB,
        "after": 101 * MIB,
        "killed": DAEMON,
        "incidents": [DEATH],
        "records": records(*BEGUN, events.Interrupted("a"), *life(*NAMES)),
        "account": Account(20.0, {"trainer": {}, "engine": {}, "host": {}}, 3.0, {"engine": 9.0}),
    }
    return Observed(**{**usual, **changed})


def test_a_daemon_that_was_killed_and_came_back_is_ok() -> None:
    found = kill_finding(seen())
    assert found.ok, found
    assert found.value == (
        "killed while it trained a; 4900 MiB of device memory are back; answered by the next daemon"
    )
    more = kill_finding(seen(during=90 * MIB)).value
    assert "; 0 MiB of device memory are back;" in more, "others may give memory back"


@pytest.mark.parametrize("on_gpu", [True, False])
def test_device_memory_that_is_not_known_is_not_said_to_be_back(on_gpu: bool) -> None:
    found = kill_finding(seen(before=None, after=None, on_gpu=on_gpu))
    unknown = "; device memory not known: nvidia-smi does not tell" if on_gpu else ""
    assert f"; its processes are gone{unknown}; answered" in found.value


def test_the_kill_is_judged_as_soon_as_its_task_is_answered() -> None:
    """The other tasks may take longer than there is time: that is no fault of the kill."""
    happened = (*BEGUN, events.Interrupted("a"), *life("a"), *life("b"))
    over = [seen(records=records(*happened[:count])).over for count in range(len(happened) + 1)]
    assert over == [False] * 7 + [True] * 5
    assert kill_finding(seen(records=records(*happened[:7]))).ok
    assert not seen(killed=None).over


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"after": 3000 * MIB}, "2900 MiB of device memory are not back"),
        ({"left": True}, "processes of the killed daemon are still there"),
        ({"killed": None}, "no daemon was killed"),
        ({"records": records(*life(*NAMES))}, "in the middle of a task"),
        (
            {"records": records(*BEGUN, events.Interrupted("a"), *life("b", "c"))},
            "not answered afterwards: a",
        ),
        (
            {"incidents": [DEATH, Incident("death", "ended with exit code 1", 2)]},
            "died again: ended with exit code 1",
        ),
    ],
)
def test_what_a_killed_daemon_leaves_behind_is_found_out(fault: dict[str, Any], told: str) -> None:
    found = kill_finding(seen(**fault))
    assert not found.ok
    assert told in found.value
    assert found.advice


def test_three_tasks_have_answers_and_seconds_of_each_part() -> None:
    found = tasks_finding(seen())
    assert found.ok
    assert found.value == "3 answered in 11.0 s after the start"
    assert found.seconds == {
        "start": 9.0,
        **{f"{what} {name}": s for name in NAMES for what, s in (("train", 0.5), ("sample", 2.0))},
    }


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        (events.Trained, "not trained: b"),
        (events.Sampled, "without an answer: b"),
        (events.Answered, "without an answer: b"),
    ],
)
def test_a_task_that_something_was_left_out_of_is_found_out(
    lost: type[events.Event], told: str
) -> None:
    kept = [
        event
        for event in life(*NAMES)
        if not isinstance(event, lost) or getattr(event, "task", "") != "b"
    ]
    found = tasks_finding(seen(records=records(*BEGUN, events.Interrupted("a"), *kept)))
    assert (found.ok, found.value) == (False, told)
    assert found.advice


def test_a_daemon_that_died_again_is_found_out_though_all_tasks_are_answered() -> None:
    """It may have died after the finding of the kill was told."""
    found = tasks_finding(seen(incidents=[DEATH, Incident("death", "out of memory", 2)]))
    assert (found.ok, found.value) == (False, "died again: out of memory")


def test_a_task_that_was_not_trained_tells_why() -> None:
    drawn = candidate(task("a"))
    by_base = verdict("a", 1, [drawn], None, ("trained nothing: the device was full",))
    answered = (*life("a")[:3], events.Answered("a", by_base))
    found = tasks_finding(seen(tasks=["a"], records=records(*answered)))
    assert not found.ok
    assert found.value == "not trained: a (trained nothing: the device was full)"


def test_without_nvidia_smi_nothing_is_said_of_device_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert lives.gpu_memory_used() is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 100\necho 23\n")
    program.chmod(0o755)
    assert lives.gpu_memory_used() == 123 * MIB
    program.write_text('#!/bin/sh\ntest "$3 $4" = "-i 1" && echo 23\n')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert lives.gpu_memory_used() == 23 * MIB, "the GPU of this process alone"
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert lives.gpu_memory_used() is None


# Findings and the document.


def test_a_finding_is_the_same_after_it_was_sent() -> None:
    found = Finding("speed", "slow", False, {"a": 1.0}, "be faster", {"gain": 0.5})
    sent = json.loads(json.dumps(found.to_json()))
    assert Finding.from_json("speed", sent) == found
    assert Finding("arcd", "1").to_json() == {"ok": True, "value": "1"}


def test_an_error_is_told_in_one_line_with_its_type() -> None:
    group = ExceptionGroup("", [ExceptionGroup("", [ValueError("bad\nthings")])])
    assert raised("x", group).value == "ValueError: bad things"
    assert raised("x", ExceptionGroup("", [OutOfMemory()])).value == (
        "OutOfMemory: The training ran out of memory."
    )
    assert raised("x", RuntimeError()).value == "RuntimeError: (no message)"


def test_a_start_that_fails_after_a_crash_is_the_finding_of_the_first_check_left() -> None:
    error = RuntimeError("the GPU is gone")
    assert not_opened("start", error, RUNTIME_CHECKS) == raised("start", error)
    assert not_opened("device", error, RUNTIME_CHECKS) == raised("device", error)
    later = not_opened("start", error, ("adapters", "out of memory"))
    assert (later.name, later.ok) == ("adapters", False)
    assert later.value == "not started again: RuntimeError: the GPU is gone"


def test_a_start_tells_memory_before_and_after() -> None:
    found = start_finding(
        9.0,
        {"torch": 1.0},
        {"process": 100 * MIB, "device_used": 0},
        {"process": 900 * MIB, "device_used": 4000 * MIB},
        None,
    )
    assert found.value == (
        "9.0 s; base in memory once; memory: the process 100 to 900 MiB, the device 0 to 4000 MiB"
    )
    assert found.seconds == {"torch": 1.0}


@pytest.mark.parametrize(
    ("twice", "told"),
    [(None, "base in memory once"), ("no room", "base in memory twice: no room")],
)
def test_a_start_tells_how_often_the_base_is_in_memory(twice: str | None, told: str) -> None:
    found = start_finding(9.0, {}, {}, {}, twice)
    assert found.value == f"9.0 s; {told}"
    assert found.data["twice"] == twice


def test_variables_that_matter_are_told_and_secrets_are_not() -> None:
    environ = {
        "CUDA_VISIBLE_DEVICES": "0",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_API_KEY": "key-value",
        "HF_TOKEN": "hf_abcdef",
        "ARCD_TOKEN": "tok-value",
        "USER": "somebody",
        "OMP_NUM_THREADS": "2",
    }
    assert environment.variables(environ) == {
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
        "VLLM_LOGGING_LEVEL": "INFO",
    }


def test_neither_secrets_nor_the_home_of_a_user_are_in_the_document() -> None:
    told = {"a": ["/home/somebody/base refused hf_abcdef", 1, None], "/home/somebody/x": True}
    environ = {"HF_TOKEN": "hf_abcdef", "SHORT_KEY": "a"}
    assert environment.without_secrets(told, environ, "/home/somebody") == {
        "a": ["~/base refused ***", 1, None],
        "~/x": True,
    }
    assert environment.without_secrets("/a/b", {}, "/") == "/a/b"


def test_the_environment_is_found_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = environment.environment()
    assert found.ok
    assert "no NVIDIA driver" in found.value
    driver = Driver("580.65", (13, 0), 2, 2)
    monkeypatch.setattr(environment, "find_driver", lambda: driver)
    said = "nvidia-smi does not answer, driver 580.65 supports CUDA 13.0 and shows 2 GPUs"
    assert said in environment.environment().value
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 580.65.06, 8.9, 23034 MiB, 1 MiB'\n")
    program.chmod(0o755)
    found = environment.environment()
    assert "driver 580.65.06" in found.value
    assert found.data["gpus"][0]["compute_cap"] == "8.9"


def test_numbers_that_json_does_not_have_are_null_in_the_document() -> None:
    data = {"apart": [math.nan, math.inf, 1.0], "none": {"b": -math.inf}}
    found = document([Finding("parity", "nan apart", False, {"a": math.nan}, "", data)], OPTIONS, 1)
    text = json.dumps(found, allow_nan=False)
    told = json.loads(text)["findings"]["parity"]
    assert told["data"] == {"apart": [None, None, 1.0], "none": {"b": None}}
    assert told["seconds"] == {"a": None}


def test_the_document_has_the_whole_log_of_the_first_crash_alone() -> None:
    log = [f"line {number}" for number in range(60)]
    crashes = [Finding(name, "died", False, data={"log": log}) for name in "abc"]
    found = document(crashes, OPTIONS, 1)["findings"]
    assert [len(found[name]["data"]["log"]) for name in "abc"] == [60, 10, 10]
    assert found["c"]["data"]["log"][-1] == "line 59"


def test_the_document_is_json_and_tells_whether_all_is_ok() -> None:
    found = document([Finding("a", "1"), Finding("b", "2", ok=False)], OPTIONS, 12.34)
    assert json.loads(json.dumps(found))["ok"] is False
    assert found["findings"] == {
        "a": {"ok": True, "value": "1"},
        "b": {"ok": False, "value": "2"},
    }
    assert environment.packages().data["typer"]
