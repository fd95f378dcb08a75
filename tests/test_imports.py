import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import arcd

PACKAGE = Path(arcd.__file__).parent

ROOMS = (
    "system",
    "arc",
    "model",
    "jobs",
    "backends",
    "backends.vllm",
    "pretrain",
    "display",
    "cli",
)
BACKENDS = ("fake", "lora_trainer", "trainer_pool", "vllm.step_log")
PLUGIN = ("vllm.plugin", "vllm.cpu_platform", "vllm.grouped_lora")
RANKS = (
    ("arcd", "errors", *ROOMS),
    (
        "arc.grids",
        "config",
        "system.seeds",
        "system.ledger",
        "system.home",
        "system.processes",
        "palette",
        "system.files",
    ),
    ("heartbeat",),
    ("arc.tasks", "model.encoding", "options", "watchdog"),
    ("arc.views", "arc.metrics", "model.base_model", "supervisor"),
    ("model.prompts", "arc.selection", "compose", "forbidden"),
    ("forecast",),
    ("agenda", "budget", "rates"),
    (
        "arc.submission",
        "events",
        "backends.protocols",
        "show",
        "model.collate",
        *(f"backends.{m}" for m in PLUGIN),
    ),
    ("state", "corpus", "cellmodel", *(f"backends.{name}" for name in BACKENDS)),
    ("store", "lines", "pretrain", "judging", "backends.vllm.engine"),
    ("solver",),
    ("desk", "wire", "backends.runtime", "calibration", "history", "stored"),
    ("publisher", "scheduler", "server", "client", "screen", "report", "sweep"),
    ("daemon", "live"),
    ("foreground",),
    ("doctor", "jobs_cli", "bench", "cold"),
    ("tables",),
    ("cli",),
    ("__main__",),
)
"""A module imports only modules of a lower rank; `arcd` itself is the version and, when somebody
asks for it, the client."""

RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "arcd"


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules of arcd that a module imports anywhere, without the `arcd.` in front."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            names = [_whole_name(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            if name == "arcd" or name.startswith("arcd."):
                yield name.removeprefix("arcd.")


def _whole_name(module: str, name: str) -> str:
    """`from arcd import grids` is about a module, `from arcd import __version__` is not."""
    inner = f"{module}.{name}"
    return inner if inner.removeprefix("arcd.") in RANK.keys() | MODULES.keys() else module


def test_every_module_has_a_rank():
    assert set(MODULES) <= set(RANK)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_modules_of_a_lower_rank(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for other in imported(tree):
        if (module, other) == ("arcd", "client"):
            continue
        assert RANK[other] < RANK[module], f"{module} must not import {other}"


def test_imports_are_seen_wherever_they_stand():
    tree = ast.parse(
        "import arcd.arc.grids\nfrom arcd import __version__\nfrom arcd.arc import tasks\n"
        "from arcd.arc.views import View\n"
        "def f():\n    from arcd.backends import fake\n    import json"
    )
    assert list(imported(tree)) == ["arc.grids", "arcd", "arc.tasks", "arc.views", "backends.fake"]


@pytest.mark.parametrize(
    "module",
    ["arc.tasks", "arc.metrics", "cli", "store", "client", "supervisor", "foreground", "daemon"],
)
def test_a_light_module_does_not_import_anything_heavy(module):
    heavy = "{'torch', 'numpy', 'transformers', 'peft', 'vllm'}"
    code = f"import sys, arcd.{module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
