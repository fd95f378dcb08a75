"""Measures what README.md and examples/*.md state, and writes the numbers into these pages.

    python examples/measure.py               every section but `tests`
    python examples/measure.py NAME...       some sections
    python examples/measure.py --render      write the pages from measurements.json, run nothing
    python examples/measure.py --check       exit 1 if a page differs from what would be written

A section runs commands as a user types them, in a home of its own under .measure/. What their JSON
says is kept in measurements.json, with date, version, base model and machine, as soon as the
section is done. Knows arcd by its commands, by its store's tables and by the fingerprint of its
base model. How a page tells a number is in pages.py.
"""

import argparse
import io
import json
import os
import platform
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import large_jobs
from pages import METRICS, ROOT, SESSION_BLOCKS, Record, changed, keep, read_records, write

MEASURE = ROOT / ".measure"
PICTURES = ROOT / "examples" / "pictures"

Values = dict[str, Any]

READY_TIMEOUT_S = 300.0
"""A daemon that has not loaded its models by then has failed, and so has a run of a picture."""

POLL_S = 1.0
"""Between two looks at a daemon or a job."""


class Shell:
    """Runs commands in one home and remembers them; `arcd` is the one of this checkout."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.commands: list[str] = []
        own = ("ARCD_URL", "ARCD_TOKEN", "ARCD_PALETTE", "TMUX", "COLUMNS", "LINES")
        self.env = {key: value for key, value in os.environ.items() if key not in own}
        self.env |= {"ARCD_HOME": str(home), "PYTHONPATH": str(ROOT)}

    def words(self, line: str) -> list[str]:
        """The command as a process takes it."""
        first, *rest = shlex.split(line)
        return [*([sys.executable, "-m", "arcd"] if first == "arcd" else [first]), *rest]

    def run(self, line: str) -> tuple[str, float]:
        """Standard output and wall seconds of a command that must succeed."""
        print(f"$ {line}", file=sys.stderr, flush=True)
        self.commands.append(line)
        begun = time.monotonic()
        done = subprocess.run(
            self.words(line), cwd=ROOT, env=self.env, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{line}: exit code {done.returncode}")
        return done.stdout, time.monotonic() - begun

    def documents(self, line: str) -> list[Any]:
        """The JSON documents that a command prints, one a line."""
        return [json.loads(text) for text in self.run(line)[0].splitlines()]

    def ask(self, line: str) -> Any:
        """A look that is no part of the measurement; None where the command fails."""
        done = subprocess.run(
            self.words(line), cwd=ROOT, env=self.env, capture_output=True, text=True, check=False
        )
        return None if done.returncode else json.loads(done.stdout)

    def transcript(self, line: str) -> str:
        """A command with all that it prints, whatever its exit code, as a terminal would show."""
        done = subprocess.run(
            self.words(line),
            cwd=ROOT,
            env=self.env | {"NO_COLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return f"$ {line}\n{self.plain(done.stdout)}"

    def plain(self, printed: str) -> str:
        """Without the path of this checkout, and without spaces at the ends of lines."""
        lines = printed.replace(f"{ROOT}/", "").splitlines()
        return "\n".join(line.rstrip() for line in lines if line.strip())

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the home's store."""
        place = f"{(self.home / 'arcd.db').as_uri()}?mode=ro"
        with closing(sqlite3.connect(place, uri=True)) as store:
            return store.execute(sql).fetchall()


@contextmanager
def daemon(shell: Shell, line: str) -> Iterator[str]:
    """A daemon that is ready; what it printed until then. It is stopped when the block is left."""
    print(f"$ {line} &", file=sys.stderr, flush=True)
    shell.commands.append(f"{line} &")
    printed = MEASURE / "serve.out"
    with printed.open("w") as file:
        served = subprocess.Popen(shell.words(line), cwd=ROOT, env=shell.env, stdout=file)
    try:
        end = time.monotonic() + READY_TIMEOUT_S
        while "arcd ready" not in printed.read_text():
            if served.poll() is not None or time.monotonic() > end:
                sys.exit(f"{line}: the daemon did not become ready: {printed.read_text()}")
            time.sleep(POLL_S)
        yield printed.read_text()
    finally:
        shell.ask("arcd stop --json")
        served.wait()


# The sections: each runs its commands and returns what is to be told of them.


def of_metrics(found: Mapping[str, float], seconds: float) -> Values:
    return {name: found[name] for name in METRICS.values()} | {"seconds": seconds}


def quickstart(shell: Shell) -> Values:
    """The quickstart's dozen tasks with the defaults, and with the base alone."""

    def column(line: str) -> Values:
        out, seconds = shell.run(line)
        return of_metrics(json.loads(out)["metrics"]["total"], seconds)

    tuned = column("arcd run examples/tasks --json")
    return {"tuned": tuned, "base": column("arcd run examples/tasks --set train.steps=0 --json")}


def dev100(shell: Shell) -> Values:
    """A hundred tasks, with the base alone and with the defaults; seconds are those a task."""
    (MEASURE / "dev100.toml").write_text('tasks = "arc1-eval@examples/dev100.json"\n')
    with daemon(shell, "arcd serve --stall 600"):
        trials = shell.documents("arcd sweep .measure/dev100.toml --over train.steps=0,60 --json")
    base, tuned = (of_metrics(trial, trial["seconds_per_task"]) for trial in trials)
    return {"base": base, "tuned": tuned}


def bench(shell: Shell) -> Values:
    """The same tasks as most people do them, with arcd one at a time, and with arcd; training alone
    on lessons of the hundred tasks."""
    line = "arcd bench examples/tasks --lessons-of arc1-eval@examples/dev100.json --repeat 3 --json"
    return dict(shell.documents(line)[-1])


def budget(shell: Shell) -> Values:
    """Twenty tasks in 90 s; fine-tuned are those that have a sample of an adapter."""
    out, seconds = shell.run("arcd run arc1-eval:20 --budget 90s --json")
    job = json.loads(out)["job"]
    (tuned,) = shell.query(
        "SELECT count(DISTINCT task) FROM candidates JOIN events USING (seq)"
        " WHERE json_extract(body, '$.candidate.adapter') IS NOT NULL"
    )
    now = shell.ask(f"arcd status {job} --json")
    counts = {"tasks": now["tasks"], "answered": now["answered"], "tuned": tuned[0]}
    return {**counts, "seconds": seconds}


def memory(shell: Shell) -> Values:
    """What the daemon has in memory when a training ends, and the time outside of steps."""
    line = "arcd run arc1-train:30 --set train.steps=10 --set sample.samples=4 --json"
    (document,) = shell.documents(line)
    rows = shell.query(
        "SELECT json_extract(body, '$.resident_bytes') FROM events WHERE kind = 'Trained'"
        " ORDER BY seq"
    )
    mib = [size / 2**20 for (size,) in rows]
    after = {"after_5": mib[4], "after_30": mib[29], "most": max(mib)}
    return {**after, "outside_steps": document["ledger"]["outside_steps"]}


SESSION = (
    (
        "arcd submit examples/tasks --name small --set train.steps=20 --set sample.samples=4",
        "arcd submit arc1-train:3 --priority 30 --set train.steps=5 --set sample.samples=4 --wait",
    ),
    ("arcd jobs", "arcd status", "arcd status 1", "arcd status 2 --json"),
    (
        "arcd pause 1",
        "arcd resume 1",
        "arcd result 1 --out .measure/small.json",
        "arcd cancel 1",
        "arcd retry 2",
        "arcd watch 2",
    ),
    (
        "arcd eval 2",
        "arcd result 2 --out .measure/three.json",
        "arcd merge .measure/small.json .measure/three.json --out .measure/both.json",
        "arcd report 2 --out .measure/report.html --trace .measure/trace.json",
    ),
    ("arcd logs -n 4", "arcd stop", "arcd status 1"),
)
"""The verbs of SESSION.md by its blocks, which begin with `arcd serve &`."""


def session(shell: Shell) -> Values:
    """A session with a daemon, verb by verb, as a terminal shows it."""
    told: Values = {}
    with daemon(shell, "arcd serve") as printed:
        for block, lines in zip(SESSION_BLOCKS, SESSION, strict=True):
            told[block] = "\n".join(map(shell.transcript, lines))
    told["start"] = f"$ arcd serve &\n{shell.plain(printed)}\n{told['start']}"
    return told


def scale(shell: Shell) -> Values:
    """What a hundred thousand tasks cost, with daemons of fakes."""
    shell.commands.append("python examples/measure.py scale")
    return dict(large_jobs.measure(shell.home, shell.env))


def tests(shell: Shell) -> Values:
    """The gate, from an environment that is set up."""
    return {"seconds": shell.run("bash tests/run.sh")[1]}


SCREEN = (110, 32)
"""Columns and rows of the live screen's picture."""

ANSWERED = 8
"""Tasks that are answered when the picture is taken."""

SCREEN_HTML = (
    "<!DOCTYPE html><meta charset='utf-8'><body style='margin:14px;background:{background};"
    "color:{foreground}'><pre style='font:15px/18px DejaVu Sans Mono,monospace;margin:0'>"
    "{code}</pre></body>"
)


def pictures(shell: Shell) -> Values | None:
    """The live screen in the middle of a run, in a real terminal, and the report of that run."""
    missing = [tool for tool in ("tmux", "chromium") if shutil.which(tool) is None]
    if missing:
        print(f"pictures: skipped, not installed: {', '.join(missing)}", file=sys.stderr)
        return None
    line = "arcd run examples/tasks"
    shell.commands.append(line)
    shell.env["COLORTERM"] = "truecolor"
    tmux = ["tmux", "-L", "arcd-measure", "-f", "/dev/null"]
    columns, rows = map(str, SCREEN)
    begin = [*tmux, "new-session", "-d", "-x", columns, "-y", rows, shlex.join(shell.words(line))]
    shell.home.mkdir(parents=True)
    subprocess.run(begin, cwd=ROOT, env=shell.env, check=True)
    try:
        until(lambda: (jobs := shell.ask("arcd jobs --json")) and jobs[0]["answered"] >= ANSWERED)
        seen = subprocess.run([*tmux, "capture-pane", "-p", "-e"], capture_output=True, check=True)
        until(lambda: subprocess.run([*tmux, "has-session"], check=False).returncode)
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    screen, rows_seen = shell.home / "screen.html", seen.stdout.decode().rstrip()
    screen.write_text(html_of(rows_seen))
    photograph(screen, PICTURES / "screen.png", 1034, 18 * len(rows_seen.splitlines()) + 28)
    shell.run("arcd report 1 --out .measure/pictures/report.html")
    photograph(shell.home / "report.html", PICTURES / "report.png", 1100, 1250)
    return {}


def until(reached: Callable[[], object]) -> None:
    """Wait for the run to get so far."""
    end = time.monotonic() + READY_TIMEOUT_S
    while not reached():
        if time.monotonic() > end:
            sys.exit("pictures: the run did not get so far")
        time.sleep(POLL_S)


def html_of(seen: str) -> str:
    """A terminal's text with its escape codes, as a page."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, width=SCREEN[0], file=io.StringIO())
    console.print(Text.from_ansi(seen), soft_wrap=True)
    return console.export_html(theme=MONOKAI, code_format=SCREEN_HTML, inline_styles=True)


def photograph(page: Path, picture: Path, width: int, height: int) -> None:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += [f"--screenshot={picture}", f"--window-size={width},{height}"]
    subprocess.run(["chromium", *options, page.as_uri()], check=True, capture_output=True)


SECTIONS: dict[str, Callable[[Shell], Values | None]] = {
    section.__name__: section
    for section in (quickstart, budget, memory, scale, bench, session, pictures, dev100, tests)
}

RESUMED = "dev100"
"""The section whose home is kept until it is done: its sweep is content with finished jobs."""

SCORED = ("quickstart", "dev100")
"""The sections whose seconds `--no-times` leaves out."""


def measure(name: str, *, times: bool) -> None:
    """Run a section, keep its record, write the pages."""
    home = MEASURE / name
    if name != RESUMED:
        shutil.rmtree(home, ignore_errors=True)
    MEASURE.mkdir(exist_ok=True)
    shell = Shell(home)
    values = SECTIONS[name](shell)
    if values is None:
        return
    if not times and name in SCORED:
        for column in values.values():
            del column["seconds"]
    keep(name, {**setting(), "commands": shell.commands, "values": values})
    if name == RESUMED:
        shutil.rmtree(done := MEASURE / f"{name}-done", ignore_errors=True)
        home.rename(done)


def setting() -> Record:
    """With what is measured, when and where."""
    from arcd.model.base_model import bundled, fingerprint
    from arcd.version import __version__

    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "date": date.today().isoformat(),
        "arcd": __version__,
        "base": fingerprint(bundled())[:12],
        "cores": len(os.sched_getaffinity(0)),
        "machine": found[1] if found else platform.machine(),
    }


def write_pages() -> None:
    for page, text in changed(read_records()).items():
        write(page, text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what the pages state, write the pages.")
    parser.add_argument("sections", nargs="*", metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--render", action="store_true", help="only write the pages")
    parser.add_argument("--check", action="store_true", help="1 if a page is not as written")
    parser.add_argument(
        "--no-times", action="store_true", help="no seconds in results: other work runs beside"
    )
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if given.check:
        stale = changed(read_records())
        for page in stale:
            print(f"{page.name}: not as measurements.json says")
        return 1 if stale else 0
    default = [name for name in SECTIONS if name != "tests"]
    for name in [] if given.render else given.sections or default:
        measure(name, times=not given.no_times)
        write_pages()
    write_pages()
    return 0


if __name__ == "__main__":
    sys.exit(main())
