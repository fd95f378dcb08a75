"""`arcd` as a user calls it: in this process, which takes milliseconds, or in one of its own."""

import io
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from arcd.cli.main import main


@dataclass(frozen=True)
class Done:
    """What came of a command; named as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def arcd(*arguments: object) -> Done:
    """In this process, through the entry point, which makes exit codes of errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    code = end.value.code
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())


def arcd_process(
    *arguments: object, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, with pipes for its output."""
    command = [sys.executable, "-m", "arcd", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=60)
