"""Text is text: no name of a job or task is taken as markup, as a command, or as a line's end."""

import ast
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Group, RenderableType
from support.commands import arcd
from support.homes import write
from support.past import Past
from support.small import candidate, grid, solutions, task

import arcd as package
from arcd.arc.metrics import Metrics, Report
from arcd.arc.selection import verdict
from arcd.arc.tasks import Task, TaskSet
from arcd.cli.sweep import Trial
from arcd.cli.tables import jobs_table, trials_table
from arcd.config import resolve
from arcd.display import grids, tables
from arcd.display.screen import Scene, draw
from arcd.display.terminal import COMMANDS, JOINERS, Terminal
from arcd.jobs import events
from arcd.jobs.journal import new_job
from arcd.jobs.store import Store

ROOT = Path(package.__file__).parent
WIDTH = 80
NASTY = ["[/b]", "run[/old]", "[bold red]", "[link=x]y", ":smile:", "\\[", "%s{0}", "\x1b[2J"]
NASTY += ["\u202eabc", "\u2028", "a\u200bb", "שלום", "مرحبا", "日本語" * 20, "e\u0301" * 9, "\x00"]
NASTY += ["x" * 300, "👩\u200d👩\u200d👧", "\t", "\ud800", "\r"]

NUMBERS = Metrics(*(0.5,) * 9)


def names() -> st.SearchStrategy[str]:
    """What may be in a name: anything but a line's end, which no stored name has."""
    anything = st.text(st.characters(exclude_characters="\n\x0b\x0c\r\x1c\x1d\x1e\x85"), min_size=1)
    return st.one_of(st.sampled_from(NASTY), anything)


def printed(value: RenderableType) -> list[str]:
    terminal = Terminal()
    terminal.width = WIDTH
    with terminal.capture() as captured:
        terminal.print(value)
    return captured.get().removesuffix("\n").split("\n")


def jobs(name: str) -> RenderableType:
    numbers = {"answered": 3, "tasks": 4, "retriable": 0, "priority": 10}
    return jobs_table([{"job": 1, "name": name, "state": "running", **numbers}])


def metrics(name: str) -> RenderableType:
    return tables.metrics_table(Report({name: NUMBERS}, NUMBERS), each=True)


def trials(name: str) -> RenderableType:
    report = Report({"t": NUMBERS}, NUMBERS)
    return trials_table([Trial({"train.start": name}, 1, 1, report, 2.0, {"train": 1, "infer": 1})])


def drawn(name: str) -> RenderableType:
    of = Task(name, task().train, task().tests)
    found = verdict(name, 1, [candidate(of)], None, (name[:20],))
    return Group(grids.task(of, None), grids.answers(found, None))


def screen(name: str) -> RenderableType:
    of = Task(name, task().train, task().tests)
    past = Past().submitted([name], name=name).add(events.DaemonReady(6.0))
    past.started(name).training(name, 3).trained(name).add(events.Noted(name, name))
    past.sampled(of, [grid(3, 3)]).answered(of, [grid(3, 3)])
    history = past.history(solutions([of]))
    return Group(draw(Scene(history, None), past.at, WIDTH, 40))


VIEWS: list[Callable[[str], RenderableType]] = [jobs, metrics, trials, drawn, screen, str]


@pytest.mark.parametrize("view", VIEWS)
@given(name=names())
@example(name="[/b]")
@example(name="\x1b]0;title\x07")
@example(name="\u202eabc\u2028d")
def test_a_name_is_shown_and_nothing_obeys_it(
    view: Callable[[str], RenderableType], name: str
) -> None:
    lines, plain = printed(view(name)), printed(view("name"))
    for line in lines:
        assert cell_len(line) <= WIDTH
        assert not [c for c in line if unicodedata.category(c) in COMMANDS and c not in JOINERS]
    if view is not str:
        assert len(lines) == len(plain)
    if name.isascii() and name.isprintable() and " " not in name and len(name) < 10:
        assert name in "\n".join(lines)


def a_home(folder: Path, job: str, name: str) -> tuple[str, str]:
    tasks = TaskSet("set", (Task(name, task().train, task().tests),), {name: (grid(3, 3, 5),)})
    store = Store(folder)
    store.journal.submit(new_job(job, 10, tasks, resolve()))
    found = verdict(name, 1, [candidate(tasks.tasks[0])], None, ("[note]",))
    store.journal.append(1, events.Started(name, 1, 1), events.Answered(name, found))
    store.close()
    return ("--home", str(folder))


def test_every_verb_shows_names_in_brackets(tmp_path: Path) -> None:
    home = a_home(tmp_path, "run[/old]", "[/b]")
    for command, shown in (
        (["jobs"], "run[/old]"),
        (["status", "1"], "run[/old]"),
        (["eval", "1"], "[/b]"),
        (["show", "[/b]", "--job", "1"], "task [/b]"),
        (["show", "[/b]", "--job", "1"], "note: [note]"),
        (["report", "1", "--out", str(tmp_path / "[red].html")], "[red].html"),
    ):
        done = arcd(*command, *home)
        assert (done.returncode, done.stderr) == (0, "")
        assert shown in done.stdout


def test_errors_are_text_too(tmp_path: Path) -> None:
    home = a_home(tmp_path, "job", "a")
    done = arcd("show", "[/b]\nx", "--job", "1", *home)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "[/b]" in done.stderr
    done = arcd("run", write(tmp_path / "[red].json", "{"), "--home", tmp_path / "[home]")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "[red].json" in done.stderr
    assert arcd("jobs", "--[/b]").returncode == 2


def calls(tree: ast.AST) -> set[str]:
    """The names of what is called in a module, without what they belong to."""
    functions = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {
        function.attr if isinstance(function, ast.Attribute) else function.id
        for function in functions
        if isinstance(function, ast.Attribute | ast.Name)
    }


def test_only_one_module_makes_consoles_and_panels_and_none_reads_markup() -> None:
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        keywords = {each.arg for each in ast.walk(tree) if isinstance(each, ast.keyword)}
        imported = {
            f"{node.module}.{name.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for name in node.names
        }
        assert "from_markup" not in calls(tree), path
        if path.name != "terminal.py":
            assert not calls(tree) & {"Console", "Panel"}, path
            assert "markup" not in keywords, path
            assert not imported & {"rich.print", "rich.markup.render"}, path
