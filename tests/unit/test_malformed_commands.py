"""Malformed task files, submissions, settings and arguments on the command line, in this process.

Each command ends by itself, with an exit code and one line that names what is wrong, and prints no
traceback. There is no daemon, and `run` and `serve` have no base: what is accepted after all goes
no further. `--all` calls 3000 commands, the gate some hundred.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.homes import stored
from support.malformed import as_bytes, broken, damaged, wild_text

from arcd.arc.submission import entry
from arcd.cli.main import main
from arcd.config import Config

COMMANDS = 200
"""In each part."""

PARTS = [pytest.param(p, marks=() if p == 0 else pytest.mark.full) for p in range(3000 // COMMANDS)]

LONGEST_REFUSAL = 1010
"""Characters of the line."""

PAIR = {"input": [[1, 2], [3, 4]], "output": [[2, 1]]}
CHALLENGES = {
    "a": {"train": [PAIR, PAIR], "test": [{"input": [[3, 4]]}]},
    "b": {"train": [PAIR], "test": [{"input": [[3]]}, {"input": [[4]]}]},
}
SOLVED = {"train": [PAIR, PAIR], "test": [{"input": [[3, 4]], "output": [[1]]}]}
SOLUTIONS = {"a": [[[1]]], "b": [[[1]], [[2]]]}
SUBMISSION = {"a": entry([[((1,),)]]), "b": entry([[((1,),)], [((2,),)]])}
SETTINGS = Config().model_dump(mode="json")

FOLLIES = ("--home", "--json", "--", "-h", "--version", "-x", "--set", "--out", "nowhere", "1", "")


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: object
    out: str
    err: str


def called(*arguments: str) -> Ended:
    """`arcd` with streams as a process has them: what is no text cannot be printed."""
    out = TextIOWrapper(BytesIO(), "utf-8")
    err = TextIOWrapper(BytesIO(), "utf-8", "backslashreplace")
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        main(arguments)
        code: object = None
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout, sys.stderr = before
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Ended(code, *texts)


class Case:
    """The files and words of one command."""

    def __init__(self, random: Random, folder: Path, home: Path) -> None:
        self.random, self.folder, self.home = random, folder, home
        self._written = 0

    def file(self, document: Any, suffix: str = ".json") -> str:
        """A file of a document that is as malformed as it may be, or is whole."""
        self._written += 1
        path = self.folder / f"file{self._written}{suffix}"
        kind = self.random.random()
        if kind < 0.7:
            path.write_bytes(as_bytes(broken(self.random, document)))
        elif kind < 0.9:
            path.write_bytes(damaged(self.random, as_bytes(document)))
        else:
            path.write_bytes(as_bytes(document))
        return str(path)

    def whole(self, document: Any) -> str:
        path = self.folder / "whole.json"
        path.write_text(json.dumps(document))
        return str(path)

    def tasks(self) -> str:
        """Where tasks should be: a file, a folder, or something else."""
        kind = self.random.random()
        if kind < 0.6:
            return self.file(CHALLENGES)
        if kind < 0.8:
            folder = self.folder / f"folder{self._written}"
            folder.mkdir()
            written = Path(self.file(SOLVED))
            written.rename(folder / written.name)
            return str(folder)
        word = self.word()
        few = "3" if word.isdecimal() else word  # not all of them, which takes seconds to draw
        return self.random.choice((word, "arc1-eval:" + few, "arc1-train@x.json"))

    def word(self) -> str:
        return wild_text(self.random)

    def path(self) -> str:
        """A path that is not in the current folder, where a typing error would leave a file."""
        return str(self.folder / self.random.choice(("out.json", "no/out.json", self.word()[:50])))

    def setting(self) -> str:
        """KEY=VALUE, of which one may be wrong."""
        section = self.random.choice(list(SETTINGS))
        value: Any = SETTINGS[section]
        key = section
        if isinstance(value, dict):
            inner = self.random.choice(list(value))
            key, value = f"{section}.{inner}", value[inner]
        if self.random.random() < 0.2:
            key = self.random.choice((self.word(), key + "." + self.word(), key * 200))
        told = as_bytes(broken(self.random, value))[:20_000].decode(errors="replace")
        return (key + self.random.choice(("=", "=", "=", "", "==")) + told).replace("\0", "")

    def config(self) -> str:
        """A TOML file."""
        lines = "\n".join(self.setting() for _ in range(self.random.randint(1, 3)))
        path = self.folder / "config.toml"
        text = lines.encode(errors="replace")
        path.write_bytes(damaged(self.random, text) if self.random.random() < 0.3 else text)
        return str(path)

    def settings(self) -> list[str]:
        return self.random.choice(
            (["--set", self.setting()], ["--config", self.config()], ["--seed", self.word()], [])
        )


def submit(case: Case) -> list[str]:
    random = case.random
    return [
        *("submit", case.tasks(), *case.settings()),
        *random.choice(
            (
                ["--solutions", case.file(SOLUTIONS)],
                [f"--{random.choice(('name', 'priority', 'budget', 'reserve'))}", case.word()],
                ["--out", case.path()],
                ["--skip-invalid"],
                [],
            )
        ),
    ]


def run(case: Case) -> list[str]:
    return ["run", case.tasks(), *case.settings(), "--base", "nowhere", "--out", case.path()]


def serve(case: Case) -> list[str]:
    odd = case.random.choice(("host", "port", "grace", "stall", "device"))
    return ["serve", "--base", "nowhere", *case.settings(), f"--{odd}", case.word()]


def evaluate(case: Case) -> list[str]:
    if case.random.random() < 0.3:
        return ["eval", "1", "--solutions", case.file(SOLUTIONS)]
    return ["eval", case.file(SUBMISSION), "--solutions", case.file(SOLUTIONS)]


def merge(case: Case) -> list[str]:
    return ["merge", case.file(SUBMISSION), case.whole(SUBMISSION), "--out", case.path()]


def show(case: Case) -> list[str]:
    if case.random.random() < 0.3:
        return ["show", case.random.choice((case.word(), "a")), "--job", "1"]
    return ["show", case.tasks()]


def sweep(case: Case) -> list[str]:
    over = case.random.choice((case.setting(), case.word(), "train.steps=1,2"))
    return ["sweep", case.config(), "--over", over, "--tasks", case.file({"a": SOLVED})]


def of_a_job(case: Case) -> list[str]:
    verb = case.random.choice(
        ("status", "result", "cancel", "pause", "resume", "retry", "report", "eval", "watch")
    )
    out = ["--out", case.path()] if verb in ("result", "report") else []
    return [verb, case.random.choice((case.word(), "1", "2", "-1", "9" * 30)), *out]


def odd(case: Case) -> list[str]:
    """Anything."""
    verbs = ("jobs", "status", "logs", "result", "forget", "merge", "show", "report", case.word())
    words = case.random.sample((*FOLLIES, case.word(), case.word()), 3)
    return [case.random.choice(verbs), *words[: case.random.randint(0, 3)]]


KINDS: tuple[Callable[[Case], list[str]], ...] = (
    *(submit, submit, submit, run, serve, evaluate, merge, show, sweep, of_a_job, odd),
)


def check(ended: Ended) -> None:
    """It is refused in one line, which names what is wrong, or it is done."""
    assert ended.code in (0, 1, 2), ended.code
    assert "Traceback" not in ended.err
    if "─ Error ─" in ended.err:
        assert ended.code == 2  # of the usage, which typer explains in a box
    elif ended.code:
        *notes, last = ended.err.splitlines()
        assert last.startswith("arcd: ")
        assert all(line.startswith("skipped: ") for line in notes), ended.err
        assert len(last) <= LONGEST_REFUSAL


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """A home with a job, and a folder in which whatever is written does no harm."""
    home = folder / "home"
    stored(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCD_HOME", str(home))
        patch.setenv("COLUMNS", "200")
        patch.chdir(folder)
        yield home


@pytest.mark.parametrize("part", PARTS)
def test_whatever_is_called_it_ends_with_one_line(tmp_path: Path, part: int) -> None:
    random = Random(part)
    with alone(tmp_path) as home:
        for number in range(COMMANDS):
            folder = tmp_path / f"{number}"
            folder.mkdir()
            arguments = random.choice(KINDS)(Case(random, folder, home))
            try:
                ended = called(*arguments)
                check(ended)
            except BaseException as error:
                shown = ascii(arguments)[:3000]
                raise AssertionError(f"command {number} of part {part}: {shown}") from error
