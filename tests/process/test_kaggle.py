"""The Kaggle notebook where nothing can be installed; with arcd installed: see test_end_to_end."""

import json
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
