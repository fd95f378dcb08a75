"""The Kaggle script in a process: where nothing can be installed, and as it becomes arcd.

With the real arcd: see test_verbs.
"""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
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
    command += ["--input", inputs, "--working", tmp_path, "--budget", "4m", "--device", "cpu"]
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    script = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True, cwd=tmp_path)
    told = json.loads(script.communicate(timeout=60)[0])
    assert (told["pid"], script.returncode) == (script.pid, 3)
    assert told["arguments"][:3] == ["run", str(inputs / "test_challenges.json"), "--skip-invalid"]
    assert told["arguments"][-5:] == ["--budget", "4m", "--reserve", "24.0s", "--no-watch"]


def test_in_a_tree_as_kaggles_the_fakes_leave_a_submission_and_nothing_else(tmp_path: Path) -> None:
    inputs, working = tmp_path / "input", tmp_path / "working"
    place = inputs / "competitions" / "arc-prize-2026-arc-agi-2"
    place.mkdir(parents=True)
    working.mkdir()
    (inputs / "arc-prize-2026-arc-agi-2").symlink_to(place)
    tasks = load("arc1-eval:3").tasks
    challenges = to_challenges(TaskSet("test", tasks, {}))
    (place / "arc-agi_test_challenges.json").write_text(json.dumps(challenges))
    command: list[str | Path] = [sys.executable, EXAMPLES / "kaggle.py", "--input", inputs]
    command += ["--working", working, "--scratch", tmp_path / "scratch", "--device", "cpu"]
    command += ["--budget", "10m", "--set", "train.steps=2", "--set", "sample.samples=1"]
    done = subprocess.run(
        [*command, "--", "--backend", "fake"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scratch" / "arcd" / "daemon.log").is_file()
    assert [path.name for path in working.iterdir()] == ["submission.json"]
    found = submission.read(working / "submission.json")
    assert {name: len(tests) for name, tests in found.items()} == {
        task.id: len(task.tests) for task in tasks
    }


def test_what_is_installed_sees_the_notebooks_packages_and_goes_before_them(
    tmp_path: Path,
) -> None:
    notebook, folder = tmp_path / "notebook" / "site-packages", tmp_path / "wheels"
    notebook.mkdir(parents=True)
    folder.mkdir()
    pip = importlib.util.find_spec("pip")
    assert pip is not None
    assert pip.origin is not None
    (notebook / "pip").symlink_to(Path(pip.origin).parent)
    (notebook / "torch.py").write_text("version = 'of the notebook'")
    (notebook / "arcd.py").write_text("raise SystemExit('not this one')")
    wheel(folder, "arcd", {"arcd/__init__.py": "", "arcd/__main__.py": INSTALLED}, "some-core")
    wheel(folder, "some_core", {"some_core.py": ""})

    def installed() -> "subprocess.CompletedProcess[str]":
        command: list[str | Path] = [sys.executable, "-S", "-c", INSTALL, EXAMPLES, notebook]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [*command, folder, tmp_path / "env"],
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            cwd=tmp_path,
            env=env,
        )

    for _ in range(2):  # the second time, all is there
        done = installed()
        assert done.stdout.splitlines() == ["of the notebook"], done.stderr
    (folder / "some_core-1.0-py3-none-any.whl").unlink()
    last = installed().stderr.splitlines()[-1]
    assert last.startswith(f"kaggle.py: pip could not install arcd from {folder}: Could not find")


INSTALL = """\
import subprocess, sys
from pathlib import Path
examples, notebook, wheels, folder = sys.argv[1:]
sys.path[:0] = [notebook, examples]
import kaggle
python = kaggle.install(Path(wheels), "kaggle", Path(folder))
subprocess.run([python, "-m", "arcd"], check=True)
"""

INSTALLED = "import some_core, torch; print(torch.version)"


def wheel(folder: Path, name: str, files: dict[str, str], *requires: str) -> None:
    """A wheel of version 1.0 with these files."""
    info = f"{name}-1.0.dist-info"
    about = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", "Provides-Extra: kaggle"]
    about += [f"Requires-Dist: {each}" for each in requires]
    whole = {
        **files,
        f"{info}/METADATA": "\n".join(about) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    listed = "".join(f"{path},,\n" for path in (*whole, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as made:
        for path, text in {**whole, f"{info}/RECORD": listed}.items():
            made.writestr(path, text)
