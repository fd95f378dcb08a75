"""The report in a real browser, and the trace against a schema of its format."""

import base64
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, nan
from pathlib import Path
from typing import Any, Literal

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
from support.trace_format import TRACE

from arcd.arc.grids import Grid, to_text
from arcd.arc.selection import Verdict, Vote
from arcd.arc.tasks import TaskSet, load
from arcd.config import Config
from arcd.display import report
from arcd.jobs import events, outline
from arcd.jobs.sheets import sheets
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


def page_of(past: Past, tasks: TaskSet, home: Path) -> str:
    """The page of a job whose store is in `home` from now on."""
    with closing(past.store(home, tasks)) as store:
        history, found = outline.history(store.database, 1), sheets(store.database, 1)
        return report.page(history, found, Config(), LEDGER)


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
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET, tmp_path))
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
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET, tmp_path))
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
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET, tmp_path))
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
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET, tmp_path), PHONE, scheme)
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
    found = opened(browser, tmp_path / "report.html", page_of(four(), SET, tmp_path))
    found.page.wait_for_selector("canvas")
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
    found = opened(browser, tmp_path / "report.html", page_of(*four_hundred(), tmp_path))
    loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    found.page.wait_for_function(f"{loaded} > 0")
    assert found.page.locator("article").count() == 400
    assert found.page.evaluate(loaded) < 2000
    found.page.click("[data-kind=solved]")
    assert (
        len(found.shown()) == int(found.page.locator("[data-kind=solved]").inner_text()[7:]) > 300
    )
    assert found.said == []


def test_nothing_in_the_data_can_end_the_script_element(tmp_path: Path) -> None:
    text = page_of(four(), SET, tmp_path)
    assert text.count("</script>") == 2
    embedded = re.search(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert embedded is not None
    assert [task["id"] for task in json.loads(embedded[1])["tasks"]] == [t.id for t in SET.tasks]


def test_a_job_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    past = Past().submitted([each.id for each in SET.tasks]).started("a").training("a", 2)
    assert '"phase":"started"' in page_of(past, TaskSet("four", SET.tasks, {}), tmp_path)


def data_of(text: str) -> Any:
    """The data of a page, with the grids of all tasks in their places."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert found is not None
    data = json.loads(found[1], parse_constant=pytest.fail)
    unpacked = [zlib.decompress(base64.b64decode(part)) for part in data["packed"]]
    grids = [each for part in unpacked for each in json.loads(part)]
    for each, its in zip(data["tasks"], grids, strict=True):
        each["grids"] = its
    return data


def test_the_page_has_each_grid_of_each_task_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = data_of(page_of(four(), SET, tmp_path))
    assert [each["id"] for each in data["tasks"]] == [each.id for each in SET.tasks]
    first, half = data["tasks"][0]["grids"], data["tasks"][2]["grids"]
    assert first["train"] == [[to_text(p.input), to_text(p.output)] for p in A.train]
    assert first["tests"] == [to_text(test) for test in A.tests]
    truth = to_text(SET.solutions["a"][0])
    assert first["truth"] == [truth]
    assert first["ranked"] == [
        [{"grid": truth, "votes": 4, "likely": "-0.125 nats a token"}],
    ]
    assert [[vote["votes"] for vote in test] for test in half["ranked"]] == [[3, 1], [3, 1]]
    assert data["tasks"][3]["grids"]["truth"] is None


def test_numbers_that_json_does_not_have_are_left_out(tmp_path: Path) -> None:
    past = Past().submitted(["a"]).started("a").training("a", 2)
    for step, loss in ((3, nan), (4, inf)):
        past.add(events.Training("a", step, 10, loss, 2400.0))
    vote = Vote(grid(3, 3), 1, -inf)
    past.add(events.Answered("a", Verdict("a", ((vote,),), 1, 0, 3)))
    data = data_of(page_of(past, TaskSet("one", (A,), {}), tmp_path))
    assert data["curves"] == [[[1, 1.0], [2, 0.6667]]]
    assert data["tasks"][0]["loss"] == 0.6667
    assert [vote["likely"] for vote in data["tasks"][0]["grids"]["ranked"][0]] == [
        "-inf nats a token"
    ]


def many(count: int) -> tuple[Past, TaskSet]:
    """Trained in two steps and answered, and nothing of it known."""
    tasks = [replace(A, id=f"t{i}") for i in range(count)]
    past = Past().submitted([each.id for each in tasks])
    for each in tasks:
        past.started(each.id).training(each.id, 2).answered(each, [grid(3, 3)])
    return past, TaskSet("many", tuple(tasks), {})


def test_the_page_names_the_daemon_that_the_job_was_given_to(tmp_path: Path) -> None:
    past = Past().submitted(["a"]).started("a")
    data = data_of(page_of(past, TaskSet("one", (A,), {}), tmp_path))
    assert data["subtitle"] == f"running, {DAEMON.platform}, arcd {DAEMON.version}"


def test_of_many_curves_some_are_drawn(tmp_path: Path) -> None:
    data = data_of(page_of(*many(2 * report.MAX_CURVES + 1), tmp_path))
    assert len(data["curves"]) == report.MAX_CURVES * 2 // 3 + 1


@needs_browser
def test_of_many_tasks_a_page_is_shown_and_grids_are_unpacked_when_they_are_seen(
    browser: Browser, tmp_path: Path
) -> None:
    found = opened(browser, tmp_path / "report.html", page_of(*many(1100), tmp_path), PHONE)
    assert len(found.shown()) == 500
    assert found.page.locator(".pages output").first.inner_text() == "tasks 1 to 500 of 1100"
    found.page.locator("#task-t0").scroll_into_view_if_needed()
    found.page.wait_for_selector("#task-t0 canvas")
    assert found.page.evaluate("packed.kept.size") == 1
    found.page.click(".pages button:last-child >> nth=0")
    assert found.shown()[0] == "t500"
    # From the last task of a page to the first of the next, and back.
    found.page.evaluate("tasks.go('t999')")
    keys, at = found.page.keyboard, "document.activeElement.id"
    for key, where in (("j", "task-t1000"), ("k", "task-t999")):
        keys.press(key)
        assert found.page.evaluate(at) == where
    found.page.wait_for_selector("#task-t999 canvas")
    found.page.fill("#find", "t109")
    assert found.shown() == ["t109", *(f"t109{i}" for i in range(10))]
    assert not found.page.locator(".pages").first.is_visible()
    # Of blocks on the same pixel one is drawn.
    blocks = found.page.locator("#lanes rect")
    assert blocks.count() <= PHONE["width"]
    found.page.evaluate("lanes.zoom(0.01)")
    assert 0 < blocks.count() < 50
    assert found.said == []


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
