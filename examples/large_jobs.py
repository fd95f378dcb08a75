"""What large jobs cost: the numbers of the section `scale` of measure.py.

Makes stores with tests/support/scale.py, then starts daemons of fakes on them and asks, as a user
does. Seconds are wall seconds of whole commands, start of Python included.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pages import ROOT

LARGE, MANY = 100_000, 20_000
"""Tasks of the job in the store, and of one order."""

LOOK_S = 0.01
"""Between two looks whether the daemon answers."""

READY_TIMEOUT_S = 120.0

SCREEN_LOOKS = 50
"""How often the live screen's question is asked."""

ORDER_BYTES = 245 << 20
"""Of the largest order: a little less than a request may have."""

AFTER_SUBMIT_S = 8.0
"""The scheduler reads the tasks of a job after the answer."""

LOOKER = """\
import select, sys, time
from arcd import Client
home, rest = sys.argv[1], float(sys.argv[2])
longest = 0.0
with Client(home) as client:
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], rest)[0]:
        begun = time.monotonic()
        client.health()
        longest = max(longest, time.monotonic() - begun)
print(longest)
"""
"""Asks for a daemon's health until its input is closed, then prints the longest answer."""


class Homes:
    """Homes under one folder, and arcd in each of them."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder, self.env = folder, env

    def __getitem__(self, name: str) -> Path:
        return self._folder / name

    def filled(self, name: str, tasks: int) -> Path:
        """A home whose job 1 has so many answered tasks."""
        maker = [sys.executable, str(ROOT / "tests/support/scale.py"), str(self[name]), str(tasks)]
        path = f"{ROOT}:{ROOT / 'tests'}"
        subprocess.run(maker, env={**self.env, "PYTHONPATH": path}, cwd=ROOT, check=True)
        return self[name]

    def arcd(self, home: Path, *words: str) -> tuple[float, str]:
        """Seconds and output of a command."""
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "arcd", *words],
            env={**self.env, "ARCD_HOME": str(home)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return time.monotonic() - begun, done.stdout

    @contextmanager
    def daemon(self, home: Path) -> Iterator[tuple[float, Any]]:
        """A daemon of fakes; seconds until it answered for the first time, and a client."""
        from arcd import Client
        from arcd.errors import NoDaemon

        begun = time.monotonic()
        with (home.parent / "serve.out").open("w") as log:
            served = subprocess.Popen(
                [sys.executable, "-m", "arcd", "serve", "--backend", "fake", "--grace", "0"],
                env={**self.env, "ARCD_HOME": str(home)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        client = Client(home)
        try:
            while True:
                try:
                    client.health()
                    break
                except NoDaemon:
                    if time.monotonic() > begun + READY_TIMEOUT_S:
                        raise
                    time.sleep(LOOK_S)
            yield time.monotonic() - begun, client
        finally:
            client.stop()
            served.wait()


def measure(folder: Path, env: dict[str, str]) -> dict[str, float]:
    """All lines of the table, by name: seconds, MiB."""
    homes = Homes(folder, env)
    folder.mkdir(parents=True)
    return {**of_a_large_store(homes), **of_orders(homes), **of_a_report(homes)}


def of_a_large_store(homes: Homes) -> dict[str, float]:
    """A daemon's start, and reading without one. The first start makes the snapshots."""
    home = homes.filled("large", LARGE)
    found: dict[str, float] = {}
    for name in ("first_health", "health"):
        with homes.daemon(home) as (seconds, client):
            found[name] = seconds
            client.jobs()  # waits until the store is read
            wait_for_snapshot(home)
    for name, words in (
        ("jobs", ("jobs", "--json")),
        ("status", ("status", "1", "--json")),
        ("result", ("result", "1", "--out", str(home / "result.json"))),
    ):
        found[name], _ = homes.arcd(home, *words)
    return found


def wait_for_snapshot(home: Path) -> None:
    """Until the job's state is kept."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not (home / "jobs" / "1" / "state.json").exists():
        if time.monotonic() > deadline:
            sys.exit("scale: no snapshot was written")
        time.sleep(LOOK_S)


def of_orders(homes: Homes) -> dict[str, float]:
    """Orders of MANY tasks while somebody asks for the daemon's health, and the largest one."""
    with homes.daemon(homes["orders"]) as (_, client):
        wait_until_ready(client)
        begun = time.monotonic()
        longest = longest_answer(homes, homes["orders"], lambda: client.send(order(0)))
        found = {"submit": time.monotonic() - begun, "submit_step": longest}
        client.pause(1)
        looks = [seconds_of(lambda: client.forecast(1, detail=False)) for _ in range(SCREEN_LOOKS)]
        found["screen"] = sorted(looks)[SCREEN_LOOKS // 2]
    with homes.daemon(homes["largest"]) as (_, client):
        wait_until_ready(client)
        client.send(order(ORDER_BYTES // MANY))
        found["largest_order_mib"] = peak_mib(client.health()["pid"])
    return found


def order(bytes_each: int) -> Any:
    """MANY tasks of the usual size, or of so many bytes each."""
    from arcd.daemon import schema

    cells = [[(r + c) % 10 for c in range(14)] for r in range(14)]
    pair = {"input": cells, "output": cells}
    pairs = bytes_each // len(json.dumps(pair, separators=(",", ":"))) if bytes_each else 4
    task = {"train": [pair] * pairs, "test": [{"input": cells}]}
    tasks = {f"{i:08x}": task for i in range(MANY)}
    return schema.Order(name="many", tasks=tasks)


def wait_until_ready(client: Any) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while client.health()["state"] != "ready":
        if time.monotonic() > deadline:
            sys.exit("scale: the daemon did not become ready")
        time.sleep(LOOK_S)


def longest_answer(homes: Homes, home: Path, act: Callable[[], object]) -> float:
    """The longest time that the daemon takes to tell its health while `act` is done.

    Another process asks: this one may be busy.
    """
    looking = subprocess.Popen(
        [sys.executable, "-c", LOOKER, str(home), str(LOOK_S)],
        env={**homes.env, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert looking.stdout is not None
    looking.stdout.readline()  # it has begun
    act()
    time.sleep(AFTER_SUBMIT_S)
    return float(looking.communicate("")[0])


def seconds_of(act: Callable[[], object]) -> float:
    begun = time.monotonic()
    act()
    return time.monotonic() - begun


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    sys.exit(f"scale: no VmHWM of process {pid}")


def of_a_report(homes: Homes) -> dict[str, float]:
    """The report of MANY tasks."""
    home = homes.filled("report", MANY)
    page = home / "report.html"
    probe = (
        "import re, runpy, sys; sys.argv = ['arcd', *sys.argv[1:]]\n"
        "try: runpy.run_module('arcd', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", probe, "report", "1", "--out", str(page), "--home", str(home)],
        env=homes.env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - begun
    most = int(done.stdout.split()[-1]) / 1024
    return {"report": seconds, "report_mib": most, "report_page_mib": page.stat().st_size / 2**20}
