"""arcd in an offline Kaggle notebook: attach the data sets, run this file, submit its output.

Attach as data sets, under any name: the competition (its `*test_challenges.json` is found by
itself, or named with --tasks where there are several), a folder of wheels (how to make it stands in
KAGGLE.md), and, unless arcd's own small model is to be used, a base model folder. Then, in the only
cell:

    !python /kaggle/input/YOUR-DATASET/kaggle.py --base /kaggle/input/YOUR-BASE-MODEL

    write_blank   a complete and valid submission, before anything can fail
    missing       what the wheels lack for this Python: one line, in seconds
    no_gpu        whether there is a GPU
    install       arcd in an environment of its own, outside of the output
    become        this process turns into `arcd run`

/kaggle/working holds submission.json and nothing else: what arcd keeps is under --scratch.
"""

import argparse
import ctypes
import email
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BLANK = {"attempt_1": [[0]], "attempt_2": [[0]]}

RESERVE_S = 300
"""Seconds of the budget that are kept for writing, but at most a tenth of it."""

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Of this Python."""


def find(inputs: Path, pattern: str) -> list[Path]:
    """The files of this name in the data sets, in order; a file that is there twice counts once.

    Kaggle shows a data set as /kaggle/input/NAME, or as /kaggle/input/competitions/NAME, or as a
    link from one to the other.
    """
    found: dict[bytes | Path, Path] = {}
    seen: set[str] = set()
    for folder, names, files in os.walk(inputs, followlinks=True):
        names[:] = sorted(name for name in names if _new(Path(folder) / name, seen))
        for path in (Path(folder) / file for file in sorted(files) if fnmatch(file, pattern)):
            same = path.read_bytes() if path.suffix == ".json" else path.resolve()
            found.setdefault(same, path)
    return sorted(found.values())


def _new(folder: Path, seen: set[str]) -> bool:
    place = str(folder.resolve())
    if place in seen:
        return False
    seen.add(place)
    return True


def only(found: list[Path], what: str, option: str) -> Path:
    """The one file that was looked for; ends with a clear line if there is none or more."""
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none"
        hint = f": name it with {option}" if found else ""
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


def say(line: str) -> None:
    """Tell what takes long, before it begins."""
    print(f"kaggle.py: {line}", file=sys.stderr, flush=True)


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


class Wheels:
    """A folder of wheels, and what of them this Python can install."""

    def __init__(self, folder: Path) -> None:
        # pip brings the rules with it: nothing else is sure to be here.
        tags = import_module("pip._vendor.packaging.tags")
        self._utils = import_module("pip._vendor.packaging.utils")
        self._specifiers = import_module("pip._vendor.packaging.specifiers")
        self._requirements = import_module("pip._vendor.packaging.requirements")
        self._version = import_module("pip._vendor.packaging.version").Version
        self._fitting = set(tags.sys_tags())
        self._wheels: dict[str, list[tuple[Any, Path, frozenset[Any]]]] = {}
        for path in folder.glob("*.whl"):
            try:
                name, version, _, its = self._utils.parse_wheel_filename(path.name)
            except (ValueError, KeyError):
                continue  # pip does not see it either
            self._wheels.setdefault(name, []).append((version, path, its))

    def missing(self, wanted: str) -> str | None:
        """What cannot be had of a requirement and of all that it requires; None if all is there.

        What is installed already and fits is used, as pip does.
        """
        waiting, seen = deque([(wanted, "")]), set()
        while waiting:
            text, by = waiting.popleft()
            if text in seen:
                continue
            seen.add(text)
            required = self._requirements.Requirement(text)
            found = self._installed(required) or self._fits(required)
            if isinstance(found, str):
                return found + (f" (required by {by})" if by else "")
            for child in found.get_all("Requires-Dist") or ():
                if self._applies(child, required.extras):
                    waiting.append((child.partition(";")[0].strip(), required.name))
        return None

    def _applies(self, text: str, extras: set[str]) -> bool:
        marker = self._requirements.Requirement(text).marker
        return marker is None or any(marker.evaluate({"extra": e}) for e in extras or {""})

    def _installed(self, required: Any) -> Any:
        """The metadata of a package that is here and fits; None if there is none."""
        try:
            found = metadata.metadata(required.name)
        except metadata.PackageNotFoundError:
            return None
        return found if required.specifier.contains(found["Version"], prereleases=True) else None

    def _fits(self, required: Any) -> Any:
        """The metadata of the newest wheel that fits, or why there is none."""
        name = self._utils.canonicalize_name(required.name)
        reasons = []
        for version, path, tags in sorted(self._wheels.get(name, ()), reverse=True, key=_version):
            found = _metadata(path)
            reason = self._unfit(required, version, path, tags, found)
            if reason is None:
                return found
            reasons.append(reason)
        if reasons:
            return reasons[0]
        try:
            here = f"{metadata.version(required.name)} is installed"
        except metadata.PackageNotFoundError:
            here = "it is not installed"
        return f"no wheel of {required}, and {here}"

    def _unfit(
        self, required: Any, version: Any, path: Path, tags: frozenset[Any], found: Any
    ) -> str | None:
        """Why this wheel is of no use; None if it is."""
        if not tags & self._fitting:
            return f"{path.name} is for another {self._other(tags)}"
        pythons = self._specifiers.SpecifierSet(found["Requires-Python"] or "")
        if not pythons.contains(VERSION):
            return f"{path.name} is for Python {pythons}, and this is Python {VERSION}"
        if not required.specifier.contains(version, prereleases=True):
            old = any(self._below(version, each) for each in required.specifier)
            return f"{path.name} is too {'old' if old else 'new'}: {required} is needed"
        return None

    def _other(self, tags: frozenset[Any]) -> str:
        """In which way tags do not fit: the Python, or the machine."""
        pythons = {(each.interpreter, each.abi) for each in self._fitting}
        if any((each.interpreter, each.abi) in pythons for each in tags):
            return "kind of machine"
        return f"Python than {VERSION}"

    def _below(self, version: Any, specifier: Any) -> bool:
        """Whether a version is below what a part of a requirement asks for."""
        if specifier.operator not in (">=", ">", "==", "~="):
            return False
        return bool(version < self._version(specifier.version.removesuffix(".*")))


def _version(wheel: tuple[Any, Path, frozenset[Any]]) -> Any:
    return wheel[0]


def _metadata(wheel: Path) -> Any:
    """What a wheel says of itself; nothing where it cannot be read: then pip says why."""
    try:
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if re.fullmatch(r"[^/]+\.dist-info/METADATA", name):
                    return email.message_from_bytes(opened.read(name))
    except (OSError, zipfile.BadZipFile):
        pass
    return email.message_from_string("")


def no_gpu() -> str | None:
    """Why CUDA shows no GPU, asked as torch asks it; None if it does."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is here"
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return f"CUDA shows none (error {code})"
    return None


def install(wheels: Path, extra: str, folder: Path) -> Path:
    """arcd and all that it lacks, in an environment of its own; returns its Python.

    The notebook's packages stay as they are and are seen from it, its torch among them; what is
    installed here goes before them. Not with `pip install --target`: that installs all of them
    again, and leaves programs and *.pth files where nobody looks for them. The network is never
    asked.
    """
    python, done = folder / "bin" / "python", folder / "installed"
    names = "\n".join(sorted(f"{path.name} {path.stat().st_size}" for path in wheels.glob("*.whl")))
    if done.is_file() and done.read_text() == names:
        return python  # by an earlier run of the cell
    say(f"installing arcd[{extra}] into {folder}, which takes minutes")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    mine = folder / "lib" / f"python{VERSION}" / "site-packages" / "notebook.pth"
    mine.write_text("import site; " + "; ".join(map(_seen_from, _packages())) + "\n")
    command = [str(python), "-m", "pip", "install", "--no-index", "--quiet", "--find-links"]
    tried = subprocess.run(
        [*command, str(wheels), f"arcd[{extra}]"], check=False, capture_output=True, text=True
    )
    if tried.returncode:
        errors = re.findall(r"^ERROR: (.*)", tried.stderr, re.MULTILINE) or ["see above"]
        sys.stderr.write(tried.stderr)
        sys.exit(f"kaggle.py: pip could not install arcd from {wheels}: {errors[0]}")
    done.write_text(names)
    return python


def _packages() -> Iterator[str]:
    for place in sys.path:
        if Path(place).name in ("site-packages", "dist-packages"):
            yield place


def _seen_from(place: str) -> str:
    return f"site.addsitedir({place!r})"


def reserve(budget: str) -> list[str]:
    """The option for the reserve; none where the budget cannot be read, which arcd then says."""
    units = {"h": 3600, "m": 60, "s": 1, "": 1}
    parts = re.findall(r"([\d.]+)([hms]?)", budget)
    try:
        whole = sum(float(number) * units[unit] for number, unit in parts)
    except ValueError:
        return []
    return ["--reserve", f"{min(RESERVE_S, whole / 10):.1f}s"] if whole else []


def options() -> argparse.Namespace:
    """What was given on the command line."""
    parser = argparse.ArgumentParser(description="arcd in an offline Kaggle notebook")
    parser.add_argument("--input", type=Path, default=Path("/kaggle/input"))
    parser.add_argument("--working", type=Path, default=Path("/kaggle/working"))
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"), help="not in the output")
    parser.add_argument("--tasks", type=Path, help="where several test_challenges.json are found")
    parser.add_argument("--wheels", type=Path, help="where several arcd wheels are found")
    parser.add_argument("--extra", default="kaggle", help="of arcd: what is installed with it")
    parser.add_argument("--base", type=Path, help="base model folder; by default arcd's own")
    parser.add_argument("--device", default="cuda", help="auto takes a CPU where no GPU is")
    parser.add_argument("--budget", default="11h30m", help="the session ends after 12 hours")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("more", nargs="*", metavar="...", help="after --: more for `arcd run`")
    return parser.parse_args()


def prepare(given: argparse.Namespace) -> Path:
    """Install arcd unless it is here; returns the Python that has it. Ends with a line if not."""
    wheels: Path | None = given.wheels
    here = find_spec("arcd") is not None
    if not here:
        wheels = wheels or only(find(given.input, "arcd-*.whl"), "arcd wheel", "--wheels").parent
        if find_spec("pip") is None:
            sys.exit(f"kaggle.py: {sys.executable} has no pip to install arcd with")
        say(f"looking through the wheels in {wheels}")
        lacking = Wheels(wheels).missing(f"arcd[{given.extra}]")
        if lacking:
            sys.exit(f"kaggle.py: {wheels} cannot be installed: {lacking}")
    if given.base and not (given.base / "config.json").is_file():
        found = ", ".join(str(path.parent) for path in find(given.input, "config.json")) or "none"
        sys.exit(f"kaggle.py: no base model in {given.base}; under the input folder: {found}")
    if given.device.startswith("cuda") and (reason := no_gpu()):
        hint = "choose an accelerator for the session, or say --device auto"
        sys.exit(f"kaggle.py: no GPU: {reason}; {hint}")
    if wheels is None or here:
        return Path(sys.executable)
    return install(wheels, given.extra, given.scratch / "arcd-python")


def become(python: Path, given: argparse.Namespace, tasks: Path, submission: Path) -> None:
    """Turn into arcd. Not a child, which Python would kill soon after an interrupt."""
    command = [str(python), "-m", "arcd", "run", str(tasks), "--skip-invalid"]
    command += ["--out", str(submission)]
    command += ["--home", str(given.scratch / "arcd")]
    command += ["--device", given.device]
    command += ["--budget", given.budget, *reserve(given.budget)]
    command += ["--no-watch"]  # a notebook shows lines
    command += ["--base", str(given.base)] if given.base else []
    for setting in given.set:
        command += ["--set", setting]
    command += given.more
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(python, command, {**os.environ, "PATH": path})


def main() -> None:
    """Leave a blank submission, install arcd, become it."""
    given = options()
    found = find(given.input, "*test_challenges.json")
    tasks = given.tasks or only(found, "test_challenges.json", "--tasks")
    submission = given.working / "submission.json"
    write_blank(tasks, submission)
    say(f"{submission} is written, blank or as it was; tasks: {tasks}")
    become(prepare(given), given, tasks, submission)


if __name__ == "__main__":
    main()
