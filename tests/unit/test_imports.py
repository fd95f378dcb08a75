"""Who may import whom: the rooms of arcd, what is heavy, and the modules of the tests."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import arcd

PACKAGE = Path(arcd.__file__).parent

FLOORS = (
    {"version", "errors"},
    {"config", "system"},
    {"arc"},
    {"model"},
    {"decoder"},
    {"jobs", "backends", "pretrain"},
    {"display", "solver"},
    {"scheduling"},
    {"daemon"},
    {"cli"},
)
"""Rooms (sub-packages, and modules beside them) from the lowest floor to the highest.

A room imports only rooms on lower floors."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

HEAVY = {
    "torch": {"model", "decoder", "backends", "pretrain"},
    "transformers": {"model", "decoder", "backends", "pretrain"},
    "peft": {"backends"},
    "vllm": {"backends"},
    "rich": {"display", "cli"},
    "typer": {"cli"},
    "fastapi": {"daemon"},
    "uvicorn": {"daemon"},
    "httpx": {"daemon"},
    "ray": set(),
}
"""Third-party packages, and the rooms that may import them."""


def name_of(path: Path) -> str:
    """E.g. "arc.grids"; "arc" for the `__init__` of a room; "" for that of arcd itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imported(tree: ast.Module) -> Iterator[str]:
    """The full names that a module imports anywhere, `from x import y` as x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """The modules of arcd that one of them imports."""
    found = set()
    for name in imported(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        package, _, inner = name.partition(".")
        if package == "arcd":
            # A name in a module, or the module itself.
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found


def test_every_room_has_a_floor() -> None:
    # `arcd` itself hands its client on, and `__main__` starts the command line.
    assert {room_of(module) for module in MODULES} - {"", "__main__"} == set(FLOOR)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("", "__main__")])
def test_a_room_imports_only_rooms_below_it(module: str) -> None:
    room = room_of(module)
    for other in own_imports(module):
        if room_of(other) != room:
            assert FLOOR[room_of(other)] < FLOOR[room], f"{module} must not import {other}"


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_inside_a_room_no_imports_go_round_in_a_circle(room: str) -> None:
    inside = {module for module in MODULES if room_of(module) == room}
    graph = {module: own_imports(module) & inside - {module} for module in inside}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_what_is_heavy_is_imported_in_its_rooms_alone(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for name in imported(tree):
        rooms = HEAVY.get(name.partition(".")[0])
        assert rooms is None or room_of(module) in rooms, f"{module} must not import {name}"


def test_imports_are_seen_wherever_they_stand() -> None:
    tree = ast.parse(
        "import arcd.arc.grids\nfrom arcd.arc import tasks\n"
        "def f():\n    from arcd.backends.fake import FakeTrainer\n    import json"
    )
    found = {"arcd.arc.grids", "arcd.arc.tasks", "arcd.backends.fake.FakeTrainer", "json"}
    assert set(imported(tree)) == found


TESTS = {path.stem: path for path in sorted(Path(__file__).parents[1].rglob("test_*.py"))}


@pytest.mark.parametrize("module", TESTS)
def test_no_test_module_imports_another_one(module: str) -> None:
    source = TESTS[module].read_text(encoding="utf-8")
    for name in imported(ast.parse(source)):
        assert not TESTS.keys() & set(name.split(".")), f"{module} must not import {name}"
    # Nor does a script in it.
    assert not re.search(r"(?m)^(from|import) test_", source)


@pytest.mark.parametrize(
    "module",
    [
        "arc.tasks",
        "arc.metrics",
        "cli.main",
        "daemon.client",
        "daemon.foreground",
        "daemon.process",
        "daemon.supervisor",
        "jobs.store",
    ],
)
def test_a_light_module_does_not_import_anything_heavy(module: str) -> None:
    heavy = "{'torch', 'numpy', 'transformers', 'peft', 'vllm', 'ray'}"
    code = f"import sys, arcd.{module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
