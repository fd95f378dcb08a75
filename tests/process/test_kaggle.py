"""The Kaggle script in a process: where nothing can be installed, and as it becomes arcd.

With the real arcd: see test_verbs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from arcd.arc import submission
from arcd.arc.tasks import TaskSet, load, to_challenges

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_kaggle_notebook_leaves_a_submission_even_where_nothing_can_be_installed(
    tmp_path: Path,
) -> None:
    inputs = tmp_path / "input" / "competition"
    inputs.mkdir(parents=True)
    tasks = load("arc1-eval:3").tasks
    challenges = to_challenges(TaskSet("test", tasks, {}))
    (inputs / "arc-agi_test_challenges.json").write_text(json.dumps(challenges))
    # -I and -S: without PYTHONPATH and site-packages neither arcd nor anything else is installed.
    command: list[str | Path] = [sys.executable, "-I", "-S", EXAMPLES / "kaggle.py"]
    command += ["--input", tmp_path / "input", "--working", tmp_path]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "expected one arcd wheel under the input folder, found none"
    )
    found = submission.read(tmp_path / "submission.json")
    assert {name: len(tests) for name, tests in found.items()} == {
        task.id: len(task.tests) for task in tasks
    }


ARCD = """\
import json, os, sys
print(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:]}))
sys.exit(3)
"""
"""Stands for arcd: tells how it was called."""


def test_the_script_becomes_arcd_so_that_nobody_kills_it_for_being_interrupted(
    tmp_path: Path,
) -> None:
    package = tmp_path / "installed" / "arcd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(ARCD)
    inputs = tmp_path / "input"
    inputs.mkdir()
    (inputs / "test_challenges.json").write_text('{"a": {"test": [1]}}')
    command: list[str | Path] = [sys.executable, "-S", EXAMPLES / "kaggle.py"]
    command += ["--input", inputs, "--working", tmp_path, "--budget", "4m"]
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    script = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True, cwd=tmp_path)
    told = json.loads(script.communicate(timeout=60)[0])
    assert (told["pid"], script.returncode) == (script.pid, 3)
    assert told["arguments"][:3] == ["run", str(inputs / "test_challenges.json"), "--skip-invalid"]
    assert told["arguments"][-5:] == ["--budget", "4m", "--reserve", "24.0s", "--no-watch"]
