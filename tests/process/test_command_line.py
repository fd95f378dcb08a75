"""The command line in a process of its own: pipes, colours, exit codes.

What does not depend on the process is in tests/unit/test_cli.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import arcd_process
from support.homes import stored, write


def test_a_bad_task_file_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    ragged = {"train": [pair], "test": [{"input": [[1], [1, 2]]}]}
    tasks = write(tmp_path / "tasks.json", {"bad": ragged})
    out, home = tmp_path / "out.json", tmp_path / "home"
    done = arcd_process("run", tasks, "--out", out, "--home", home)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for part in (str(tasks), "task bad", "test 0 input", "row 1 has 2 cells, row 0 has 1"):
        assert part in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tasks.json"]


def test_a_wrong_option_is_an_error_of_usage(tmp_path: Path) -> None:
    done = arcd_process("run", "arc1-train:1", "--home", tmp_path / "home", "--wrong")
    assert done.returncode == 2
    assert "No such option: --wrong" in " ".join(done.stderr.split())


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_where_nothing_is_a_verb_says_so_in_one_line(tmp_path: Path, verb: str) -> None:
    done = arcd_process(verb, "--home", tmp_path / "home")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "home") in done.stderr


def test_a_pipe_gets_a_drawing_without_colour_and_json(tmp_path: Path) -> None:
    stored(tmp_path)
    drawn = arcd_process("show", "a", "--job", "1", "--home", tmp_path)
    assert drawn.returncode == 0
    assert "attempt 1: 1 vote  -0.125 nats a token" in drawn.stdout
    assert "\x1b" not in drawn.stdout
    status = json.loads(arcd_process("status", "1", "--home", tmp_path, "--json").stdout)
    assert (status["state"], status["answered"], status["started"]) == ("running", 1, 1)


def test_show_in_colours_of_either_palette(tmp_path: Path) -> None:
    stored(tmp_path)
    show = (sys.executable, "-m", "arcd", "show", "a", "--job", "1", "--home", str(tmp_path))
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "COLORTERM")}
    terminal = {**plain, "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm"}

    def drawn(**environment: str) -> str:
        env = {**terminal, **environment}
        return subprocess.run(show, check=True, capture_output=True, text=True, env=env).stdout

    blue = {"arc": "48;2;0;116;217", "colourblind": "48;2;0;114;178"}
    for palette, other in (("arc", "colourblind"), ("colourblind", "arc")):
        text = drawn(ARCD_PALETTE=palette)
        assert blue[palette] in text
        assert blue[other] not in text
    assert "48;2;" not in drawn(NO_COLOR="1")
