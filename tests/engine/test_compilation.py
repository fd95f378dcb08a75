"""Compiling the elementwise functions: beside the trainings, kept in a folder, never fatal."""

import shutil
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


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own code
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_child_compiles_and_the_next_training_finds_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE")
    monkeypatch.setattr("torch._dynamo.config.disable", False)
    used = Compilation(tmp_path, TINY)
    assert used() is EAGER, "the first training does not wait"
    functions = used.wait()
    assert functions is not EAGER
    assert used() is functions
    found = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    threads = torch.get_num_threads()
    for each in (1, 2):
        torch.set_num_threads(each)
        TINY.run(functions)
    torch.set_num_threads(threads)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == found
    x, weight = torch.rand(7, 32), torch.rand(32)
    torch.testing.assert_close(functions.norm(x, weight, 1e-6), elementwise.norm(x, weight, 1e-6))
    again = Compilation(tmp_path, TINY)
    assert again() is EAGER, "a training does not wait for reading either"
    assert again.wait() is not EAGER, "kept"
    assert again._child is None


def test_a_compilation_that_goes_on_ends_with_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "can_compile", lambda device: True)
    used = Compilation(tmp_path, TINY)
    used()
    assert used._child is not None
    used.close()
    assert used._child.returncode != 0
