import fcntl
import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from arcd.errors import ArcdError, HomeInUse
from arcd.system import processes
from arcd.system.home_lock import HomeLock
from arcd.system.processes import (
    Process,
    alive,
    identify,
    kill_group,
    myself,
    send,
    sweep_group,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

SLEEP = ("sleep", "1000")


class Start(Protocol):
    def __call__(
        self, *command: str, stdout: int | None = None, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[str]: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes in sessions of their own, and ends them after the test."""
    started: list[subprocess.Popen[str]] = []

    def one(
        *command: str, stdout: int | None = None, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command or SLEEP, stdout=stdout, pass_fds=pass_fds, start_new_session=True, text=True
        )
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.wait(10)
        if process.stdout:
            process.stdout.close()


def identity(process: subprocess.Popen[str]) -> Process:
    found = identify(process.pid)
    assert found is not None
    return found


def ticks(process: subprocess.Popen[str]) -> int:
    """Its start in clock ticks since the boot."""
    started = identity(process).started
    assert started is not None
    return started


def dead(start: Start) -> Process:
    """A process that is gone and reaped."""
    process = start()
    was = identity(process)
    process.kill()
    process.wait(10)
    return was


def wait_for_end(pid: int) -> None:
    """Wait until a process is dead, reaped or not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([fd], [], [], 10)[0], "still alive"
    os.close(fd)


def holders(home: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((home / "lock").read_text())
    return found


def test_a_process_keeps_its_identity_and_no_other_has_it(start: Start) -> None:
    one, other = start(), start()
    assert identity(one) == identity(one)
    assert ticks(one) <= ticks(other)
    assert alive(identity(one))
    assert identify(os.getpid()) != identity(one)


def since_boot() -> float:
    """Clock ticks since the boot."""
    return float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")


def test_a_start_is_told_in_clock_ticks_since_the_boot(start: Start) -> None:
    before = since_boot()
    assert before - 2 <= ticks(start()) <= since_boot() + 2


@pytest.mark.parametrize("name", ["a) S 1 (b", "((", "9 9 9"])
def test_the_name_of_a_program_cannot_confuse(start: Start, tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    program.symlink_to("/bin/sleep")
    before = since_boot()
    process = start(str(program), "1000")
    assert before - 2 <= ticks(process) <= since_boot() + 2
    assert alive(identity(process))


def test_a_process_that_is_gone_has_no_identity(start: Start) -> None:
    was = dead(start)
    assert identify(was.pid) is None
    assert not alive(was)


def test_a_zombie_is_not_alive_but_still_itself(start: Start) -> None:
    process = start()
    was = identity(process)
    process.kill()
    wait_for_end(process.pid)
    assert identify(process.pid) == was
    assert not alive(was)


def test_another_process_with_the_same_pid_is_not_touched(start: Start) -> None:
    process = start()
    earlier = replace(identity(process), started=ticks(process) - 1)
    assert not alive(earlier)
    kill_group(earlier)
    sweep_group(earlier)
    send(earlier, signal.SIGKILL)
    assert alive(identity(process))


def test_a_signal_reaches_the_process(start: Start) -> None:
    process = start()
    send(identity(process), signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    send(Process(process.pid, 1), signal.SIGTERM)


def family(start: Start) -> tuple[subprocess.Popen[str], int]:
    """The leader of a group, and the pid of its child."""
    leader = start("sh", "-c", "sleep 1000 & echo $!; wait", stdout=subprocess.PIPE)
    assert leader.stdout is not None
    return leader, int(leader.stdout.readline())


def test_a_group_is_killed_whole(start: Start) -> None:
    leader, child = family(start)
    kill_group(identity(leader))
    assert leader.wait(10) == -signal.SIGKILL
    wait_for_end(child)


def test_the_group_of_a_zombie_is_killed_too(start: Start) -> None:
    leader, child = family(start)
    leader.kill()
    wait_for_end(leader.pid)
    kill_group(identity(leader))
    wait_for_end(child)


def test_what_a_reaped_leader_left_behind_is_swept(start: Start) -> None:
    leader, child = family(start)
    was = identity(leader)
    leader.kill()
    leader.wait(10)
    kill_group(was)
    left = identify(child)
    assert left is not None
    assert alive(left)
    sweep_group(was)
    wait_for_end(child)


def test_without_proc_the_pid_has_to_do(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "PROC", tmp_path)
    process = start()
    was = identity(process)
    assert was == Process(process.pid, None)
    assert alive(was)
    process.kill()
    process.wait(10)
    assert identify(was.pid) is None
    assert identify(0) is None
    assert identify(-1) is None


def test_a_home_is_made_for_its_owner_only(tmp_path: Path) -> None:
    home = tmp_path / "not" / "there"
    with HomeLock.take(home) as lock:
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "lock").stat().st_mode) == 0o600
        assert lock.home == home


def test_a_home_that_was_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with HomeLock.take(tmp_path):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArcdError, match=rf"^{tmp_path}/file: File exists$"):
        HomeLock.take(tmp_path / "file")
    with pytest.raises(ArcdError, match=rf"^{tmp_path}/file/home: Not a directory$"):
        HomeLock.take(tmp_path / "file" / "home")


def test_the_holders_are_written_down(tmp_path: Path, start: Start) -> None:
    me = {"pid": os.getpid(), "started": myself().started}
    with HomeLock.take(tmp_path) as lock:
        assert holders(tmp_path) == {"supervisor": me, "daemon": None}
        lock.record(Process(4_000_000, 9_999_999_999))
        daemon = {"pid": 4_000_000, "started": 9_999_999_999}
        assert holders(tmp_path) == {"supervisor": me, "daemon": daemon}
        lock.record(None)
        assert holders(tmp_path) == {"supervisor": me, "daemon": None}


def test_a_second_lock_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with (
        HomeLock.take(tmp_path),
        pytest.raises(HomeInUse, match=rf"^{tmp_path}: in use by arcd with pid {os.getpid()}$"),
    ):
        HomeLock.take(tmp_path)


def test_a_lock_that_was_closed_can_be_taken_again(tmp_path: Path) -> None:
    HomeLock.take(tmp_path).close()
    HomeLock.take(tmp_path).close()


def test_a_refused_lock_leaves_no_file_open(tmp_path: Path) -> None:
    with HomeLock.take(tmp_path):
        before = os.listdir("/proc/self/fd")
        with pytest.raises(HomeInUse):
            HomeLock.take(tmp_path)
        assert os.listdir("/proc/self/fd") == before


def leave_orphan(home: Path, start: Start) -> subprocess.Popen[str]:
    """A daemon that holds the lock alone: its supervisor is gone."""
    with HomeLock.take(home) as lock:
        daemon = start(pass_fds=[lock.fd])
        lock.record(identity(daemon))
    blame(home, "supervisor", dead(start))
    return daemon


def blame(home: Path, role: str, process: Process) -> None:
    changed = {**holders(home), role: {"pid": process.pid, "started": process.started}}
    (home / "lock").write_text(json.dumps(changed))


def test_a_daemon_holds_the_lock_after_its_supervisor_let_go(tmp_path: Path, start: Start) -> None:
    with HomeLock.take(tmp_path) as lock:
        daemon = start(pass_fds=[lock.fd])
    with open(tmp_path / "lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    daemon.kill()
    daemon.wait(10)
    HomeLock.take(tmp_path).close()


def test_an_orphan_is_killed_and_its_home_is_taken(tmp_path: Path, start: Start) -> None:
    orphan = leave_orphan(tmp_path, start)
    with HomeLock.take(tmp_path):
        assert orphan.wait(10) == -signal.SIGKILL


def test_a_foreign_process_with_the_pid_of_the_orphan_is_never_touched(
    tmp_path: Path, start: Start
) -> None:
    leave_orphan(tmp_path, start)
    stranger = start()
    earlier = replace(identity(stranger), started=ticks(stranger) - 1)
    blame(tmp_path, "daemon", earlier)
    with pytest.raises(HomeInUse, match=f"in use by arcd with pid {stranger.pid}$"):
        HomeLock.take(tmp_path, timeout=0.2)
    assert alive(identity(stranger))


def test_without_start_times_nobody_is_killed(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = leave_orphan(tmp_path, start)
    blame(tmp_path, "daemon", Process(orphan.pid, None))
    monkeypatch.setattr(processes, "PROC", tmp_path)
    with pytest.raises(HomeInUse, match=f"in use by arcd with pid {orphan.pid}$"):
        HomeLock.take(tmp_path, timeout=0.2)
    assert orphan.poll() is None


@pytest.mark.parametrize("text", ["", '{"supervisor": {"pid": 1', "[]", '{"daemon": null}'])
def test_a_holder_that_is_not_written_down_yet_is_waited_for(
    tmp_path: Path, start: Start, text: str
) -> None:
    leave_orphan(tmp_path, start)
    (tmp_path / "arcd.db").touch()
    (tmp_path / "lock").write_text(text)
    with pytest.raises(HomeInUse, match=rf"^{tmp_path}: in use by arcd$"):
        HomeLock.take(tmp_path, timeout=0.1)


def test_a_folder_that_is_everybodys_is_not_made_private(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ArcdError, match="not for arcd alone"):
        HomeLock.take(shared)
    assert shared.stat().st_mode & 0o777 == 0o777
