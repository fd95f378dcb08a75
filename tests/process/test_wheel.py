"""The wheel: built here, installed without torch into an empty environment, and used there.

Kaggle's notebooks install it offline, so it must contain every file that arcd reads, and its list
of dependencies must be enough for the verbs that need no model.
"""

import json
import shutil
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "tasks"


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needed(name: str, found: dict[str, Distribution]) -> None:
    """Adds a distribution and all that it requires, without extras."""
    if name.lower() in found:
        return
    found[name.lower()] = distribution(name)
    for text in found[name.lower()].requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(requirement.name, found)


def link(of: Distribution, site: Path) -> None:
    """Makes an installed distribution one of another environment, too."""
    for top in {file.parts[0] for file in of.files or () if file.parts[0] != ".."}:
        there = site / top
        if not there.exists():
            there.symlink_to(Path(str(of.locate_file(top))))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("arcd", "pyproject.toml", "README.md", "LICENSE"):
        path = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("arcd-*.whl")
    home = folder / "env"
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    found: dict[str, Distribution] = {}
    needed("arcd", found)
    assert not {"torch", "vllm", "transformers", "peft"} & found.keys()
    del found["arcd"]
    for each in found.values():
        link(each, site)
    run(*pip, "--python", home / "bin" / "python", "install", "--no-deps", wheel, cwd=folder)
    return home


def test_the_command_helps_without_torch(environment: Path, tmp_path: Path) -> None:
    assert "arcd" in run(environment / "bin" / "arcd", "--help", cwd=tmp_path)
    for verb in ("run", "serve", "submit", "sweep", "pretrain"):
        assert "Usage" in run(environment / "bin" / "arcd", verb, "--help", cwd=tmp_path)


def test_a_task_is_drawn_and_a_submission_evaluated(environment: Path, tmp_path: Path) -> None:
    file = EXAMPLES / "6ea4a07e.json"
    assert "task 6ea4a07e" in run(environment / "bin" / "arcd", "show", file, cwd=tmp_path)
    tests = json.loads(file.read_text())["test"]
    answers = [{"attempt_1": test["output"], "attempt_2": [[0]]} for test in tests]
    (tmp_path / "submission.json").write_text(json.dumps({"6ea4a07e": answers}))
    solutions = {"6ea4a07e": [test["output"] for test in tests]}
    (tmp_path / "solutions.json").write_text(json.dumps(solutions))
    command = ("eval", "submission.json", "--solutions", "solutions.json", "--json")
    assert json.loads(run(environment / "bin" / "arcd", *command, cwd=tmp_path))["score"] == 1


def test_every_file_that_is_read_is_in_it(environment: Path, tmp_path: Path) -> None:
    code = """
import json
from importlib.metadata import entry_points
from importlib.resources import files
from arcd.model.base_model import bundled, check, fingerprint
(plugin,) = entry_points(group="vllm.platform_plugins", name="arcd")
print(json.dumps({
    "page": sorted(file.name for file in (files("arcd.display") / "page").iterdir()),
    "base": sorted(file.name for file in bundled().iterdir()),
    "fingerprint": fingerprint(check(bundled())),
    "plugin": plugin.load()(),
    "typed": (files("arcd") / "py.typed").is_file(),
}))
"""
    found = json.loads(run(environment / "bin" / "python", "-c", code, cwd=tmp_path))
    package = ROOT / "arcd"
    assert found["page"] == sorted(path.name for path in (package / "display" / "page").iterdir())
    assert found["base"] == sorted(path.name for path in (package / "base").iterdir())
    assert len(found["fingerprint"]) == 64
    # The platform is arcd's own only where arcd's engine asks for it.
    assert found["plugin"] is None
    assert found["typed"]
