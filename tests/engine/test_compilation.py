"""Compiling the elementwise functions: beside the trainings, kept in a folder, never fatal."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from arcd.backends import compilation
from arcd.backends.compilation import MARK, Compilation, Rehearsal
from arcd.decoder import elementwise
from arcd.decoder.elementwise import EAGER, Elementwise
from arcd.decoder.layers import Shape

pytestmark = pytest.mark.engine

TINY = Rehearsal(32, 48, Shape(4, 2, 8, 1e-6), norms=True, dtype="float32", device="cpu")


def test_the_rehearsal_of_the_child_is_that_of_the_parent() -> None:
    assert Rehearsal.from_json(TINY.to_json()) == TINY


@pytest.mark.parametrize("missing", ["switch", "compiler"])
def test_where_nothing_can_be_compiled_the_functions_are_run_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "compiler":
        monkeypatch.delenv("TORCH_COMPILE_DISABLE")
        monkeypatch.setattr(shutil, "which", lambda name: None)
    used = Compilation(tmp_path, TINY)
    assert used.wait() is EAGER
    assert list(tmp_path.iterdir()) == []
    used.close()


def test_functions_that_fail_are_not_used_and_cost_nothing_but_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(x: "torch.Tensor", weight: "torch.Tensor", epsilon: float) -> "torch.Tensor":
        raise RuntimeError("the cache is of another machine")

    used = Compilation(tmp_path, TINY)
    used._folder.mkdir()
    (used._folder / MARK).touch()
    monkeypatch.setattr(elementwise, "compiled", lambda: Elementwise(norm=broken))
    assert used.wait() is EAGER
    assert "the cache is of another machine" in caplog.text
    assert used.wait() is EAGER, "asked once"
    assert len(caplog.records) == 1


REHEARSED = """
import sys
from pathlib import Path
import torch
from arcd.backends.compilation import Compilation, Rehearsal
from arcd.decoder import elementwise

torch.set_num_threads(1)
sizes = Rehearsal.from_json(sys.argv[2])
used = Compilation(Path(sys.argv[1]), sizes)
assert used() is elementwise.EAGER, "a training waits neither for compiling nor for reading"
print("compiled" if used._child else "read")
functions = used.wait()
assert functions is not elementwise.EAGER
assert used() is functions
graphs = torch._dynamo.utils.counters["stats"]
found = graphs["unique_graphs"]
assert found > 0
for threads in (1, 2):
    torch.set_num_threads(threads)
    sizes.run(functions)
assert graphs["unique_graphs"] == found, "traced once for all numbers of threads"
x, weight = torch.rand(7, sizes.width), torch.rand(sizes.width)
torch.testing.assert_close(functions.norm(x, weight, 1e-6), elementwise.norm(x, weight, 1e-6))
"""


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_child_compiles_and_the_next_process_finds_all_of_it(tmp_path: Path) -> None:
    # In processes of their own: torch keeps its switches by thread.
    command = [sys.executable, "-W", "ignore", "-c", REHEARSED, str(tmp_path), TINY.to_json()]
    env = {name: value for name, value in os.environ.items() if name != "TORCH_COMPILE_DISABLE"}
    for told in ("compiled", "read"):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == told


def test_a_compilation_that_goes_on_ends_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "can_compile", lambda device: True)
    used = Compilation(tmp_path, TINY)
    used()
    assert used._child is not None
    used.close()
    assert used._child.returncode != 0
