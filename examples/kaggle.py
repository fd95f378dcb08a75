"""arcd in an offline Kaggle notebook: attach the data sets, run this file, submit its output.

Attach as data sets, under any name: the competition (its `*test_challenges.json` is found by
itself, or named with --tasks where there are several), a folder of wheels (how to make it stands in
KAGGLE.md), and, unless arcd's own small model is to be used, a base model folder. Then, in the only
cell:

    !python /kaggle/input/YOUR-DATASET/kaggle.py --base /kaggle/input/YOUR-BASE-MODEL

/kaggle/working/submission.json is complete and valid before anything is installed (blank where
there is no answer yet) and better with every task that is answered.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BLANK = {"attempt_1": [[0]], "attempt_2": [[0]]}

RESERVE_S = 300
"""Seconds of the budget that are kept for writing, but at most a tenth of it."""


def only(found: list[Path], what: str, option: str = "") -> Path:
    """The one file that was looked for; ends with a clear line if there is none or more."""
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        hint = f": name it with {option}" if option and found else ""
        sys.exit(f"kaggle.py: expected one {what} under the input folder, found {names}{hint}")
    return found[0]


def write_blank(tasks: Path, submission: Path) -> None:
    """Whatever goes wrong from here on, there is something to submit.

    A submission of the same tasks stays: an earlier run of the cell has left it.
    """
    blank = {name: [BLANK] * count_tests(task) for name, task in read(tasks).items()}
    if shape(read(submission)) != shape(blank):
        whole = submission.with_name(f"{submission.name}.tmp")
        whole.write_text(json.dumps(blank))
        whole.replace(submission)


def read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def count_tests(task: Any) -> int:
    """The tests of a task, as arcd counts them: 1 where that cannot be told, 200 at most."""
    tests = task.get("test") if isinstance(task, dict) else None
    return min(max(1, len(tests)), 200) if isinstance(tests, list) else 1


def shape(submission: dict[str, Any]) -> dict[str, int]:
    """How many tests each task has in it."""
    return {name: len(tests) for name, tests in submission.items() if isinstance(tests, list)}


def install(inputs: Path) -> None:
    """arcd and all that it needs, from the attached wheels; the network is never asked."""
    wheel = only(sorted(inputs.rglob("arcd-*.whl")), "arcd wheel")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--quiet"]
    subprocess.run([*command, "--find-links", str(wheel.parent), "arcd[cuda]"], check=True)


def reserve(budget: str) -> list[str]:
    """The option for the reserve; none where the budget cannot be read, which arcd then says."""
    units = {"h": 3600, "m": 60, "s": 1, "": 1}
    parts = re.findall(r"([\d.]+)([hms]?)", budget)
    try:
        whole = sum(float(number) * units[unit] for number, unit in parts)
    except ValueError:
        return []
    return ["--reserve", f"{min(RESERVE_S, whole / 10):.1f}s"] if whole else []


def main() -> None:
    """Leave a blank submission, install arcd, become it."""
    parser = argparse.ArgumentParser(description="arcd in an offline Kaggle notebook")
    parser.add_argument("--input", type=Path, default=Path("/kaggle/input"))
    parser.add_argument("--working", type=Path, default=Path("/kaggle/working"))
    parser.add_argument("--tasks", type=Path, help="where several test_challenges.json are found")
    parser.add_argument("--base", type=Path, help="base model folder; by default arcd's own")
    parser.add_argument("--budget", default="11h30m", help="the session ends after 12 hours")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()

    found = sorted(given.input.rglob("*test_challenges.json"))
    tasks = given.tasks or only(found, "test_challenges.json", "--tasks")
    submission = given.working / "submission.json"
    write_blank(tasks, submission)
    if find_spec("arcd") is None:
        install(given.input)
    command = [sys.executable, "-m", "arcd", "run", str(tasks), "--skip-invalid"]
    command += ["--out", str(submission)]
    command += ["--home", str(given.working / "arcd")]
    command += ["--budget", given.budget, *reserve(given.budget)]
    command += ["--no-watch"]  # a notebook shows lines
    command += ["--base", str(given.base)] if given.base else []
    for setting in given.set:
        command += ["--set", setting]
    # Not a child, which Python would kill a quarter of a second after an interrupt.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
