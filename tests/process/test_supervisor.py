"""The supervisor with real daemons: small scripts that beat, stall, die or fail."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import arcd
from arcd.daemon import daemon_log, restarts, supervisor
from arcd.daemon.heartbeat import PULSE_FD, SUPERVISOR_PID
from arcd.daemon.supervisor import Incident, Supervisor
from arcd.daemon.watchdog import Limits
from arcd.errors import ArcdError, DaemonFailed, HomeInUse
from arcd.system.home_lock import HomeLock

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl"),
]

SECONDS = 30
"""No test may take longer."""

PATIENT = Limits()
STRICT = Limits(floor=1, ceiling=20)

DAEMON = """
import ctypes, os, signal, subprocess, sys, threading, time
from pathlib import Path
from arcd.daemon.heartbeat import (
    PREDECESSOR_DIED, Activity, Beat, Failure, Pulse, prepare_child
)

HERE = Path(__file__).parent
IDLE = Activity(False, 0)

def beat(engine=IDLE, trainer=IDLE, ready=True):
    pulse.send(Beat(ready, engine, trainer))

def loading(stage):
    pulse.send(Beat(False, IDLE, IDLE, loading=stage))

def beat_for_ever(*lanes):
    while True:
        beat(*lanes)
        time.sleep(0.05)

def tell(*words):
    with open(HERE / "told", "w") as told:
        print(*words, file=told)

def wait():
    while True:
        signal.pause()

prepare_child(HERE / "stacks")
pulse = Pulse.from_environment()
with open(HERE / "lives", "a") as lives:
    lives.write(".")
life = len((HERE / "lives").read_text())
"""
"""What every daemon here begins with; `life` counts from 1."""


class Told:
    """Hears the daemons' words over a named pipe, so that no test has to look again and again."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        # For writing too, so that the end of one daemon is not the end of the pipe.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    async def words(self) -> list[str]:
        await anyio.wait_readable(self._fd)
        return os.read(self._fd, 4096).decode().split()

    def close(self) -> None:
        os.close(self._fd)


class Rig:
    """A locked home and what has been reported."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.lock = HomeLock.take(home)
        self.told = Told(home / "told")
        self.log = home / "log"
        self.incidents: list[Incident] = []

    def supervisor(
        self,
        script: str,
        limits: Limits = PATIENT,
        *,
        env: Mapping[str, str] = {},
        grace: float = 30.0,
    ) -> Supervisor:
        program = self.home / "daemon.py"
        program.write_text(DAEMON + script)
        command = [sys.executable, str(program)]
        return Supervisor(
            command,
            self.lock,
            limits,
            env={"PYTHONPATH": str(Path(arcd.__file__).parents[1]), **env},
            log=self.log,
            report=self.incidents.append,
            grace=grace,
        )

    async def run(
        self, script: str, limits: Limits = PATIENT, *, env: Mapping[str, str] = {}
    ) -> int:
        with anyio.fail_after(SECONDS):
            return await self.supervisor(script, limits, env=env).run()

    @property
    def lives(self) -> int:
        return len((self.home / "lives").read_text())

    @property
    def stall(self) -> str:
        """What the first incident was about, without its time, which is as late as we were."""
        return re.sub(r" for \S+ s", "", self.incidents[0].text)

    @property
    def kinds(self) -> list[tuple[str, int]]:
        return [(incident.kind, incident.number) for incident in self.incidents]

    def close(self) -> None:
        self.lock.close()
        self.told.close()


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.0)
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture(autouse=True)
def no_file_is_left_open() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= len(before) + EVENT_LOOP


EVENT_LOOP = 3
"""Files of the event loop, which outlives the fixture: epoll and a pair of sockets."""


async def gone(pid: int) -> None:
    """Wait until a process is dead, reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(fd)
    finally:
        os.close(fd)


@asynccontextmanager
async def running(
    supervisor: Supervisor, ended: Callable[[int], None] = lambda code: None
) -> AsyncIterator[anyio.CancelScope]:
    """The supervisor at work beside the block, which ends when the supervisor has returned."""

    async def run() -> None:
        ended(await supervisor.run())

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            yield tasks.cancel_scope


async def test_a_daemon_that_ends_with_0_was_asked_to(rig: Rig) -> None:
    assert await rig.run("raise SystemExit(0)") == 0
    assert (rig.lives, rig.incidents) == (1, [])


async def test_a_daemon_that_dies_is_started_again(rig: Rig) -> None:
    assert await rig.run("beat(); sys.exit(0 if life == 5 else 3)") == 0
    assert rig.lives == 5
    assert rig.incidents[0] == Incident("death", "ended with exit code 3", 1)
    assert rig.kinds == [("death", 1), ("death", 2), ("death", 3), ("death", 4)]


async def test_a_death_by_a_signal_is_named(rig: Rig) -> None:
    await rig.run("beat()\nif life == 1: os.kill(os.getpid(), signal.SIGSEGV)")
    assert rig.incidents == [Incident("death", "died of signal 11 (Segmentation fault)", 1)]


async def test_a_daemon_that_is_never_ready_is_given_up(rig: Rig) -> None:
    with pytest.raises(DaemonFailed) as failed:
        await rig.run("beat(ready=False)\nprint('life', life)\nprint('no space')\nsys.exit(4)")
    expected = f"the daemon ended 3 times before it was ready, see {rig.log}: no space"
    assert str(failed.value) == expected
    assert failed.value.exit_code == 1
    assert isinstance(failed.value, ArcdError)
    assert rig.kinds == [("death", 1), ("death", 2), ("death", 3)]
    assert "life 1\nno space\nlife 2\n" in rig.log.read_text()


async def test_a_life_that_was_ready_resets_the_count(rig: Rig) -> None:
    with pytest.raises(DaemonFailed):
        await rig.run("beat(ready=life == 3)\nsys.exit(4)")
    assert rig.lives == 6


async def test_daemons_that_get_nothing_done_are_given_up(rig: Rig) -> None:
    with pytest.raises(DaemonFailed) as failed:
        await rig.run("beat()\nprint('poison')\nsys.exit(4)")
    expected = f"the daemon ended 10 times in a row and got nothing done, see {rig.log}: poison"
    assert str(failed.value) == expected
    assert rig.lives == 10


async def test_a_request_ends_the_pause_before_the_next_daemon(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 1e6)
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 1e6)
    codes: list[int] = []
    daemon = rig.supervisor("beat(); sys.exit(4)")

    def report(incident: Incident) -> None:
        if incident.number == 2:
            asyncio.get_running_loop().call_soon(daemon.stop)

    monkeypatch.setattr(daemon, "_report", report)
    async with running(daemon, codes.append):
        pass
    assert (codes, rig.lives) == ([0], 2)


async def test_an_empty_log_is_named_too(rig: Rig) -> None:
    with pytest.raises(DaemonFailed, match=r"log: \(it is empty\)$"):
        await rig.run("os._exit(1)")


async def test_a_failure_is_told_once_with_its_exit_code(rig: Rig) -> None:
    with pytest.raises(DaemonFailed, match=r"^no such base$") as failed:
        await rig.run("beat(); pulse.send(Failure('no such base', 2)); sys.exit(7)")
    assert failed.value.exit_code == 2
    assert (rig.lives, rig.incidents) == (1, [])


FULL = "pulse.send(Failure('the GPU is full', 1, passing=True)); sys.exit(1)"


async def test_a_full_gpu_at_the_first_start_ends_it_at_once(rig: Rig) -> None:
    with pytest.raises(DaemonFailed, match=r"^the GPU is full$"):
        await rig.run(FULL)
    assert (rig.lives, rig.incidents) == (1, [])


async def test_a_gpu_that_a_dead_daemon_may_still_hold_is_tried_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "RELEASE_S", 0.0)
    dies = "if life == 1: beat(); os._exit(3)\n"
    with pytest.raises(DaemonFailed, match=r"^the GPU is full$"):
        await rig.run(dies + FULL)
    assert rig.lives == 3
    assert rig.incidents[1] == Incident("death", "the GPU is full", 2)
    assert rig.kinds == [("death", 1), ("death", 2)]


async def test_a_daemon_that_hangs_while_it_loads_is_replaced(rig: Rig) -> None:
    script = "if life == 2: sys.exit()\nwhile True:\n    loading('engine')\n    time.sleep(0.05)"
    limits = Limits(floor=0.5, ceiling=20, loading=1)
    assert await rig.run(script, limits) == 0
    assert rig.kinds == [("stall", 1)]
    assert rig.stall == "no progress in loading (engine) (limit 1.0 s)"


async def test_only_after_a_daemon_that_was_ready_can_tasks_be_charged(rig: Rig) -> None:
    script = "print(repr(os.environ[PREDECESSOR_DIED]), flush=True)\n"
    script += "if life == 4: sys.exit()\nif life == 2: beat()\nos._exit(3)"
    assert await rig.run(script) == 0
    assert rig.log.read_text().split() == ["''", "''", "'1'", "'1'"]


async def test_a_command_that_cannot_be_started_is_told(rig: Rig) -> None:
    nothing = Supervisor(
        [str(rig.home / "nothing")], rig.lock, PATIENT, log=rig.log, report=rig.incidents.append
    )
    with pytest.raises(DaemonFailed, match=r"the daemon cannot be started: .*No such file"):
        await nothing.run()


async def test_a_daemon_that_stands_still_is_replaced(rig: Rig) -> None:
    script = "beat()\nif life == 1: os.kill(os.getpid(), signal.SIGSTOP)"
    assert await rig.run(script, STRICT) == 0
    assert rig.kinds == [("stall", 1)]
    assert rig.stall == "no sign of life (limit 1.0 s)"


LIVING_LOOP = """
if life == 2: sys.exit()
beat(Activity(True, 0)); beat(Activity(True, 1))
beat_for_ever(Activity(True, 1))
"""


async def test_a_lane_without_steps_is_a_stall_though_the_loop_lives(rig: Rig) -> None:
    assert await rig.run(LIVING_LOOP, STRICT) == 0
    assert rig.kinds == [("stall", 1)]
    assert rig.stall == "no engine step (limit 1.0 s)"
    assert "beat_for_ever" in (rig.home / "stacks").read_text()


HELD_GIL = """
def frozen_native_call():
    while True:  # a signal ends a sleep
        ctypes.PyDLL(None).sleep(1000)

if life == 2: sys.exit()
threading.Thread(target=beat_for_ever, daemon=True).start()
time.sleep(0.2)
frozen_native_call()
"""


async def test_a_daemon_that_holds_the_gil_leaves_its_stacks(rig: Rig) -> None:
    assert await rig.run(HELD_GIL, STRICT) == 0
    assert rig.kinds == [("stall", 1)]
    stacks = (rig.home / "stacks").read_text()
    assert "in frozen_native_call" in stacks
    assert "in beat_for_ever" in stacks


async def test_a_daemon_without_a_sign_of_life_at_its_start_is_replaced(rig: Rig) -> None:
    limits = Limits(floor=0.5, ceiling=2)
    assert await rig.run("if life == 1: wait()", limits) == 0
    assert rig.stall == "no sign of life (limit 2.0 s)"


async def test_a_daemon_that_closes_its_pulse_is_a_silent_one(rig: Rig) -> None:
    script = "if life == 1: beat(); os.close(pulse._fd); wait()"
    assert await rig.run(script, STRICT) == 0
    assert rig.stall == "no sign of life (limit 1.0 s)"


async def test_a_failure_counts_also_when_the_daemon_then_hangs(rig: Rig) -> None:
    with pytest.raises(DaemonFailed, match=r"^out of ideas$"):
        await rig.run("beat(); pulse.send(Failure('out of ideas', 1)); wait()", STRICT)


GRANDCHILD = """
if life == 2: sys.exit()
child = subprocess.Popen(["sleep", "1000"])
tell(child.pid)
beat()
{end}
"""


@pytest.mark.parametrize("end", ["os._exit(1)", "wait()"])
async def test_nobody_of_the_group_is_left_behind(rig: Rig, end: str) -> None:
    async with running(rig.supervisor(GRANDCHILD.format(end=end), STRICT)):
        (pid,) = await rig.told.words()
        await gone(int(pid))
    assert rig.lives == 2


async def test_the_daemon_gets_its_environment_and_its_output_goes_to_the_log(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "here")
    script = "print(os.environ['OURS'], os.environ['THEIRS'], repr(sys.stdin.read()), flush=True)"
    await rig.run(script + "\nprint('on stderr', file=sys.stderr)", env={"THEIRS": "there"})
    assert rig.log.read_text() == "here there ''\non stderr\n"
    assert PULSE_FD not in os.environ
    assert SUPERVISOR_PID not in os.environ


async def test_a_daemon_leads_a_session_of_its_own_and_is_written_down(rig: Rig) -> None:
    script = "tell(os.getpid(), os.getsid(0)); wait()"
    async with running(rig.supervisor(script)) as scope:
        pid, session = await rig.told.words()
        assert pid == session
        assert f'"daemon": {{"pid": {pid}, ' in (rig.home / "lock").read_text()
        held = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert str(rig.home / "lock") in held
        scope.cancel()


async def test_a_log_is_cut_while_the_daemon_writes_to_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_log, "LOG_BYTES", 100_000)
    printing = "for i in range(1000): print('x' * 999, flush=True); i % 10 or beat()"
    await rig.run(f"{printing}\nprint('the end')")
    kept = (rig.home / "log.1").read_text() + rig.log.read_text()
    assert kept.endswith("the end\n")
    assert len(kept) < 900_000, "of a million"


GRACEFUL = """
def stopped(number, frame):
    print("stopped")
    sys.exit(0)

signal.signal(signal.SIGTERM, stopped)
beat()
tell("up")
wait()
"""

STUBBORN = """
signal.signal(signal.SIGTERM, lambda number, frame: tell("no"))
beat()
tell("up")
wait()
"""


async def test_a_daemon_asked_to_stop_ends_in_its_own_way(rig: Rig) -> None:
    codes: list[int] = []
    daemon = rig.supervisor(GRACEFUL)
    async with running(daemon, codes.append):
        assert await rig.told.words() == ["up"]
        daemon.stop()
    assert (codes, rig.lives, rig.incidents) == ([0], 1, [])
    assert rig.log.read_text() == "stopped\n"


async def test_a_daemon_too_young_to_know_better_may_die_of_the_request(rig: Rig) -> None:
    codes: list[int] = []
    daemon = rig.supervisor("tell('up'); wait()")
    async with running(daemon, codes.append):
        await rig.told.words()
        daemon.stop()
    assert (codes, rig.lives, rig.incidents) == ([0], 1, [])


async def test_a_second_request_kills(rig: Rig) -> None:
    codes: list[int] = []
    daemon = rig.supervisor(STUBBORN)
    async with running(daemon, codes.append):
        assert await rig.told.words() == ["up"]
        daemon.stop()
        assert await rig.told.words() == ["no"]
        daemon.stop()
    assert codes == [1]
    assert rig.incidents == [Incident("kill", "killed on request", 1)]


async def test_a_daemon_that_does_not_stop_in_time_is_killed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_MARGIN_S", 0.25)
    codes: list[int] = []
    daemon = rig.supervisor(STUBBORN, grace=0.25)
    async with running(daemon, codes.append):
        await rig.told.words()
        daemon.stop()
    assert codes == [1]
    assert rig.kinds == [("kill", 1)]


async def test_a_daemon_that_dies_while_stopping_is_not_started_again(rig: Rig) -> None:
    codes: list[int] = []
    script = "signal.signal(signal.SIGTERM, lambda *_: os._exit(5)); beat(); tell('up'); wait()"
    daemon = rig.supervisor(script)
    async with running(daemon, codes.append):
        await rig.told.words()
        daemon.stop()
    assert (codes, rig.lives) == ([1], 1)
    assert rig.incidents == [Incident("death", "ended with exit code 5", 1)]


async def test_a_daemon_that_a_client_has_told_to_stop_is_not_started_again(rig: Rig) -> None:
    """Nor is that a death which a task could be charged for: the next daemon has another parent."""
    ends = "pulse.send(Beat(True, IDLE, IDLE, stopping=True)); os.kill(os.getpid(), 9)"
    assert await rig.run(ends) == 1
    assert rig.lives == 1
    assert [incident.kind for incident in rig.incidents] == ["death"]


async def test_a_supervisor_that_overslept_listens_before_it_judges(rig: Rig) -> None:
    daemon = rig.supervisor("beat(); tell('up'); beat_for_ever()", STRICT)
    async with running(daemon):
        await rig.told.words()
        time.sleep(STRICT.floor + 0.5)  # the whole event loop stands still
        await anyio.wait_all_tasks_blocked()
        daemon.stop()
    assert rig.incidents == []


SLOW_TO_STOP = """
def stopped(number, frame):
    time.sleep(1.5)
    sys.exit(0)

signal.signal(signal.SIGTERM, stopped)
beat()
tell("up")
wait()
"""


@pytest.mark.timing
async def test_a_daemon_that_is_stopping_may_be_silent(rig: Rig) -> None:
    codes: list[int] = []
    daemon = rig.supervisor(SLOW_TO_STOP, STRICT)
    async with running(daemon, codes.append):
        await rig.told.words()
        before = time.process_time()
        daemon.stop()
    assert (codes, rig.incidents) == ([0], [])
    assert time.process_time() - before < 0.25, "the supervisor sleeps while it waits"


async def test_a_request_before_the_start_is_not_lost(rig: Rig) -> None:
    daemon = rig.supervisor("wait()")
    daemon.stop()
    with anyio.fail_after(SECONDS):
        assert await daemon.run() == 0
    assert not rig.log.exists()


async def test_a_cancelled_supervisor_takes_its_daemon_along(rig: Rig) -> None:
    daemon = rig.supervisor(
        "child = subprocess.Popen(['sleep', '1000'])\ntell(os.getpid(), child.pid); wait()"
    )
    async with running(daemon) as scope:
        pids = await rig.told.words()
        scope.cancel()
    with anyio.fail_after(SECONDS):
        for pid in pids:
            await gone(int(pid))


SUPERVISOR = """
import sys, anyio
from pathlib import Path
from arcd.system.home_lock import HomeLock
from arcd.daemon.supervisor import Supervisor
from arcd.daemon.watchdog import Limits

home = Path(sys.argv[1])
command = [sys.executable, str(home / "daemon.py")]
with HomeLock.take(home) as lock:
    run = Supervisor(command, lock, Limits(), log=home / "log", report=print).run
    anyio.run(run)
"""


@pytest.fixture
def other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor in a process of its own, with a daemon that tells its pid."""
    monkeypatch.setenv("PYTHONPATH", str(Path(arcd.__file__).parents[1]))
    rig.lock.close()
    (rig.home / "daemon.py").write_text(DAEMON + "beat(); tell(os.getpid()); wait()")
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(rig.home)])
    yield process
    process.kill()
    process.wait(SECONDS)
    rig.lock = HomeLock.take(rig.home)


async def test_a_supervisor_that_is_killed_takes_its_daemon_along(
    rig: Rig, other: subprocess.Popen[bytes]
) -> None:
    with anyio.fail_after(SECONDS):
        (pid,) = await rig.told.words()
        other.kill()
        await gone(int(pid))
    HomeLock.take(rig.home).close()


async def test_a_home_with_a_supervisor_is_refused(
    rig: Rig, other: subprocess.Popen[bytes]
) -> None:
    with anyio.fail_after(SECONDS):
        await rig.told.words()
    with pytest.raises(HomeInUse, match=rf"in use by arcd with pid {other.pid}$"):
        HomeLock.take(rig.home)
