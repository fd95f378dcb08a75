"""The report in a real browser, and the trace against a schema of its format."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import jsonschema_rs
import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    ViewportSize,
    sync_playwright,
)
from playwright.sync_api import Error as PlaywrightError
from support.past import DAEMON, Past
from support.small import grid, solutions, task

from arcd.arc import metrics
from arcd.arc.grids import Grid
from arcd.arc.tasks import TaskSet, load
from arcd.config import Config
from arcd.display import report
from arcd.jobs import events
from arcd.system.ledger import Ledger

LEDGER = Ledger(iter([0.0, 1.0]).__next__).account().to_json()

# Names that would end the script element, or the string, if they were not escaped.
A, B, C, D = task("a"), task("b</script><b>"), task("c", tests=2), task("d")
SET = TaskSet("four", (A, B, C, D), solutions([A, B, C]))


def four() -> Past:
    """Solved surely, solved doubtfully, half solved, and without any valid answer."""
    right = {name: grids[0] for name, grids in SET.solutions.items()}
    past = Past().submitted([each.id for each in SET.tasks]).add(events.DaemonReady(6.0), after=6)
    past.solved(A, [right["a"]] * 4)
    past.solved(B, [right[B.id], right[B.id], None, grid(2, 2), grid(3, 3)])
    past.started("c").training("c", 3).add(DAEMON, after=70).add(events.Interrupted("c"))
    past.solved(C, [right["c"]] * 3 + [grid(2, 2)])
    note = "too <long> & wide"
    past.add(events.Noted("d", note))
    return past.answered(D, [None, None], serial=None, notes=(note,))


def page_of(past: Past, tasks: TaskSet) -> str:
    history = past.history(tasks.solutions)
    attempts = {name: verdict.attempts for name, verdict in history.answers.items()}
    found = metrics.evaluate(tasks.solutions, attempts) if tasks.solutions else None
    return report.page(history, tasks, Config(), found, LEDGER)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    # As root, and in a machine without a network or a GPU.
    arguments = ("no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-sync")
    flags = [f"--{each}" for each in (*arguments, "disable-background-networking")]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=flags)
        except PlaywrightError as error:
            pytest.skip(f"Chromium does not start here: {error}")
        yield browser
        browser.close()


needs_browser = pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    reason="there is no Chromium here",
)


@dataclass
class Opened:
    """A page, and what it said and asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        self.said.append(message.text)

    def fail(self, error: object) -> None:
        self.said.append(str(error))

    def ask(self, request: Request) -> None:
        self.asked.append(request.url)

    def shown(self) -> list[str]:
        return self.page.locator("article:not([hidden]) h3").all_text_contents()


Scheme = Literal["light", "dark"]

DESK: ViewportSize = {"width": 1200, "height": 900}
PHONE: ViewportSize = {"width": 360, "height": 700}


def opened(
    browser: Browser,
    path: Path,
    text: str,
    size: ViewportSize = DESK,
    scheme: Scheme | None = None,
) -> Opened:
    path.write_text(text, encoding="utf-8")
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.set_default_timeout(10_000)
    found = Opened(page)
    page.on("console", found.hear)
    page.on("pageerror", found.fail)
    page.on("request", found.ask)
    page.goto(path.as_uri())
    return found


@needs_browser
def test_it_says_nothing_asks_for_nothing_and_shows_every_task(
    browser: Browser, tmp_path: Path
) -> None:
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET))
    assert found.shown() == ["a", B.id, "c", "d"]
    assert found.page.title() == "arcd: job 1, small"
    names, values = (found.page.locator(f"#tiles {k}").all_inner_texts() for k in ("dt", "dd"))
    tiles = dict(zip(names, values, strict=True))
    assert (tiles["score"], tiles["answered"], tiles["restarts"]) == ("83.3%", "4 of 4", "1")
    # Each with its demonstrations, its test, the truth, and what was answered.
    found.page.locator("article").last.scroll_into_view_if_needed()
    found.page.wait_for_function("document.querySelectorAll('article:has(canvas)').length === 4")
    assert found.page.locator("#task-a canvas").count() == 2 * 3 + 1 + 1 + 1
    assert found.page.locator("#task-a figcaption").all_inner_texts() == [
        "input",
        "truth",
        "attempt 1 ✓, 4 votes, -0.125 nats a token",
    ]
    assert "too <long> & wide" in found.page.locator("#task-d").inner_text()
    assert found.page.locator("#lanes .death").count() == 1
    assert found.page.locator("#losses polyline").count() == 3 + 1
    assert found.page.locator("#times circle").count() == 3
    assert found.page.locator("#ledger tr").count() == 1 + 3
    assert found.said == []
    assert found.asked == [(tmp_path / "report.html").as_uri()]


@needs_browser
def test_filters_show_what_they_say(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET))
    buttons = found.page.locator("#filters button").all_inner_texts()
    assert buttons == ["all 4", "solved 2", "unsolved 1", "doubtful 1", "failed 1"]
    expected = {"solved": ["a", B.id], "unsolved": ["c"], "doubtful": [B.id], "failed": ["d"]}
    for kind, shown in expected.items():
        found.page.click(f"[data-kind={kind}]")
        assert found.shown() == shown
        assert found.page.locator("[aria-pressed=true]").inner_text() == f"{kind} {len(shown)}"
    found.page.click("[data-kind=all]")
    found.page.fill("#find", "C")
    assert found.shown() == [B.id, "c"]  # it has a script in its name
    found.page.fill("#find", "zz")
    assert found.page.locator("#none").is_visible()
    found.page.fill("#find", "")
    found.page.select_option("#order", "sure")
    assert found.shown() == ["a", "c", B.id, "d"]
    assert found.said == []


@needs_browser
def test_it_can_be_used_with_a_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET))
    keys, at = found.page.keyboard, "document.activeElement.id"
    for key, where in (("j", "task-a"), ("j", f"task-{B.id}"), ("k", "task-a"), ("/", "find")):
        keys.press(key)
        assert found.page.evaluate(at) == where
    found.page.focus("#lanes")
    ticks = found.page.locator("#lanes text").all_inner_texts()
    keys.press("+")
    assert found.page.locator("#lanes text").all_inner_texts() != ticks
    keys.press("0")
    assert found.page.locator("#lanes text").all_inner_texts() == ticks
    # Everything that can be clicked can be reached.
    for control in found.page.locator("button, select, input, summary").all():
        control.focus()
        assert control.evaluate("element => element === document.activeElement")
    found.page.click("#lanes rect[data-task=c]")
    assert found.page.evaluate(at) == "task-c"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_system(
    browser: Browser, tmp_path: Path, scheme: Scheme
) -> None:
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET), PHONE, scheme)
    for width in ("document.documentElement.scrollWidth", "document.body.scrollWidth"):
        assert found.page.evaluate(width) <= 360
    ground = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert (red > 200) == (scheme == "light")
    other = "dark" if scheme == "light" else "light"
    found.page.select_option("#theme", other)
    assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") != ground


@needs_browser
def test_palettes_change_the_cells(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET))
    picture = "document.querySelector('canvas').toDataURL()"
    pictures = set()
    for palette in ("arc", "colourblind", "digits"):
        found.page.select_option("#palette", palette)
        pictures.add(found.page.evaluate(picture))
    assert len(pictures) == 3


def four_hundred() -> tuple[Past, TaskSet]:
    """The evaluation set, each task with eight different answers."""
    tasks = load("arc1-eval")
    past = Past().submitted([each.id for each in tasks.tasks], name="arc1-eval")
    for each in tasks.tasks:
        found = [_changed(tasks.solutions[each.id][0], i) for i in range(8)]
        past.solved(each, found)
    return past, tasks


def _changed(true: Grid, cell: int) -> Grid:
    """With another colour in one cell, except for cell 0."""
    first = tuple((c + (i == cell - 1)) % 10 for i, c in enumerate(true[0]))
    return (first, *true[1:])


@pytest.mark.timing
@needs_browser
def test_four_hundred_tasks_are_there_in_two_seconds(browser: Browser, tmp_path: Path) -> None:
    found = opened(browser, tmp_path / "report.html", page_of(*four_hundred()))
    loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    found.page.wait_for_function(f"{loaded} > 0")
    assert found.page.locator("article").count() == 400
    assert found.page.evaluate(loaded) < 2000
    found.page.click("[data-kind=solved]")
    assert (
        len(found.shown()) == int(found.page.locator("[data-kind=solved]").inner_text()[7:]) > 300
    )
    assert found.said == []


def test_nothing_in_the_data_can_end_the_script_element() -> None:
    text = page_of(four(), SET)
    assert text.count("</script>") == 2
    embedded = re.search(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert embedded is not None
    assert [task["id"] for task in json.loads(embedded[1])["tasks"]] == [t.id for t in SET.tasks]


def test_a_job_that_has_just_begun_has_a_report() -> None:
    past = Past().submitted([each.id for each in SET.tasks]).started("a").training("a", 2)
    text = report.page(past.history(), TaskSet("four", SET.tasks, {}), Config(), None, None)
    assert '"phase":"started"' in text


NUMBER = {"type": "integer", "minimum": 0}
EVENT = {
    "type": "object",
    "required": ["ph", "name", "pid", "tid"],
    "properties": {"name": {"type": "string"}, "pid": NUMBER, "tid": NUMBER},
    "oneOf": [
        {
            "properties": {"ph": {"const": "X"}, "ts": NUMBER, "dur": NUMBER},
            "required": ["ts", "dur", "cat"],
        },
        {
            "properties": {"ph": {"const": "i"}, "ts": NUMBER, "s": {"enum": ["g", "p", "t"]}},
            "required": ["ts", "s"],
        },
        {
            "properties": {
                "ph": {"const": "M"},
                "name": {"enum": ["process_name", "thread_name"]},
                "args": {"type": "object", "required": ["name"]},
            },
            "required": ["args"],
        },
    ],
}
TRACE = {
    "type": "object",
    "required": ["traceEvents"],
    "properties": {
        "traceEvents": {"type": "array", "items": EVENT},
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
    },
}
"""Of "Trace Event Format" (The Chromium Authors) what arcd writes."""


def test_the_trace_keeps_to_its_format() -> None:
    trace = json.loads(json.dumps(report.trace(four().history())))
    jsonschema_rs.validate(TRACE, trace)
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["cat"], e["dur"]) for e in spans[:2]] == [
        ("a", "train", 10_000_000),
        ("a", "infer", 2_000_000),
    ]
    # Viewers nest what overlaps on one thread: nothing may.
    for thread in {(e["pid"], e["tid"]) for e in spans}:
        mine = [e for e in spans if (e["pid"], e["tid"]) == thread]
        times = sorted((e["ts"], e["ts"] + e["dur"]) for e in mine)
        assert all(a[1] <= b[0] for a, b in pairwise(times))
    assert sum(e["ph"] == "i" for e in trace["traceEvents"]) == 3
