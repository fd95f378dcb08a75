"""arcd in an offline Kaggle notebook: attach the data sets, run this file, submit its output.

Attach as data sets, under any name: the competition (its `*test_challenges.json` is found by
itself), a folder of wheels (how to make it stands in KAGGLE.md), and, unless arcd's own small
model is to be used, a base model folder. Then, in the only cell:

    !python /kaggle/input/YOUR-DATASET/kaggle.py --base /kaggle/input/YOUR-BASE-MODEL

/kaggle/working/submission.json is complete and valid before anything is installed (blank where
there is no answer yet) and better with every task that is answered.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path


def only(found: list[Path], what: str) -> Path:
    """The one file that was looked for; ends with a clear line if there is none or more."""
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        sys.exit(f"kaggle.py: expected one {what} under the input folder, found {names}")
    return found[0]


def write_blank(tasks: Path, submission: Path) -> None:
    """Whatever goes wrong from here on, there is something to submit."""
    blank = {"attempt_1": [[0]], "attempt_2": [[0]]}
    found = json.loads(tasks.read_text())
    submission.write_text(json.dumps({name: [blank] * len(t["test"]) for name, t in found.items()}))


def install(inputs: Path) -> None:
    """arcd and all that it needs, from the attached wheels; the network is never asked."""
    wheel = only(sorted(inputs.rglob("arcd-*.whl")), "arcd wheel")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--quiet"]
    subprocess.run([*command, "--find-links", str(wheel.parent), "arcd[cuda]"], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="arcd in an offline Kaggle notebook")
    parser.add_argument("--input", type=Path, default=Path("/kaggle/input"))
    parser.add_argument("--working", type=Path, default=Path("/kaggle/working"))
    parser.add_argument("--base", type=Path, help="base model folder; by default arcd's own")
    parser.add_argument("--budget", default="11h30m", help="the session ends after 12 hours")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()

    tasks = only(sorted(given.input.rglob("*test_challenges.json")), "test_challenges.json")
    submission = given.working / "submission.json"
    if not submission.exists():
        write_blank(tasks, submission)
    if find_spec("arcd") is None:
        install(given.input)
    command = [sys.executable, "-m", "arcd", "run", str(tasks)]
    command += ["--out", str(submission)]
    command += ["--home", str(given.working / "arcd")]
    command += ["--budget", given.budget, "--reserve", "5m"]
    command += ["--no-watch"]  # a notebook shows lines
    command += ["--base", str(given.base)] if given.base else []
    for setting in given.set:
        command += ["--set", setting]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
