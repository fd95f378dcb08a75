"""The pages: their numbers are those of measurements.json, and the README stays one page."""

import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
pages: Any = importlib.import_module("pages")
measure: Any = importlib.import_module("measure")

SCORES = {name: 0.123456 for name in pages.METRICS.values()} | {"seconds": 1234.56}
RUN = {"wall": 1234.5, "first": 123.4, "steps": {"trainer": 123.4, "engine": 123.4}}
RATES = {"peft": 2012.3, "peft_labelled": 4012.3, "eager": 6012.3, "compiled": 8012.3}
VALUES: dict[str, dict[str, Any]] = {
    "quickstart": {"base": SCORES, "tuned": SCORES},
    "dev100": {"base": SCORES, "tuned": SCORES},
    "bench": {
        "tasks": 12,
        "rounds": [{"cold": 2345.6, "resident": 1234.5, "arcd": 1234.5}] * 3,
        "cold": {
            **{"wall": 2345.6, "first": 12.3, "train": 1.2, "sample": 1.2},
            "steps": {"trainer": 123.4, "engine": 123.4},
        },
        "cold_over_arcd": 1.9,
        "resident_over_arcd": 1.1,
        "hand_over_share": {"resident": 0.01, "arcd": 0.02},
        "trainer_over_peft": {"compiled": 4.1, "eager": 3.1},
        "trainer_over_peft_labelled": {"compiled": 2.1, "eager": 1.6},
        "speeds": {
            "threads": 1,
            "lengths": [{"task": "00d62c1b", "tokens": 670.4, "rates": RATES, "over_peft": {}}],
        },
        "resident": RUN,
        "arcd": RUN,
        "overlap_efficiency": 0.9,
        "outside_compute_share": 0.03,
        "contention": {"trainer": 0.9, "engine": 1.8},
        "idle": {"trainer": 0.03, "engine": 0.6, "host": 0.9},
    },
    "budget": {"tasks": 20, "answered": 20, "tuned": 8, "seconds": 86.4},
    "memory": {"after_5": 3000.1, "after_30": 2900.1, "most": 3000.2, "outside_steps": 0.01},
    "scale": {key: 1.25 for _, key, _, _ in pages.SCALE},
    "session": {block: "$ arcd" for block in pages.SESSION_BLOCKS},
    "pictures": {},
    "tests": {"seconds": 500.0},
}
MADE_UP = {
    section: {
        "commands": ["arcd serve --stall 600 &", "arcd sweep .measure/dev100.toml --over a=0,60"],
        "date": "2026-11-24",
        "arcd": "0.1.0",
        "base": "0123456789ab",
        "cores": 2,
        "machine": "the processor with a name of 40 letters",
        "values": values,
    }
    for section, values in VALUES.items()
}


def test_the_pages_say_what_the_measurements_say() -> None:
    assert pages.changed(pages.read_records()) == {}


def test_the_readme_is_one_page_also_when_everything_is_measured() -> None:
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    for written in (text, pages.render(text, MADE_UP)):
        assert len(written.encode()) <= pages.README_BYTES


def test_every_block_stands_once() -> None:
    texts = [page.read_text(encoding="utf-8") for page in pages.pages()]
    marks = Counter(found["name"] for text in texts for found in pages.MARKED.finditer(text))
    # What has no end would go on to the end of another one.
    assert sum(text.count("<!-- measured: ") for text in texts) == marks.total()
    assert marks == dict.fromkeys(pages.BLOCKS, 1)


def test_measured_numbers_replace_what_stands_between_the_marks() -> None:
    text = "before\n<!-- measured: budget -->\nold\n<!-- end -->\nbehind\n"
    assert "not measured yet: `python examples/measure.py budget`" in pages.render(text, {})
    written = pages.render(text, MADE_UP)
    assert "old" not in written
    assert "20 are answered after 86.4 s, 8 of them" in written
    assert pages.render(written, MADE_UP) == written


@pytest.mark.parametrize("name", pages.BLOCKS)
def test_every_block_can_be_made_and_is_of_a_section(name: str) -> None:
    section = name.partition(".")[0]
    assert section in measure.SECTIONS
    assert pages.BLOCKS[name](MADE_UP[section])


def test_results_without_times_say_so() -> None:
    scores = {name: share for name, share in SCORES.items() if name != "seconds"}
    record = {**MADE_UP["dev100"], "values": {"base": scores, "tuned": scores}}
    assert "not measured: other work ran beside it" in pages.BLOCKS["dev100"](record)


def test_an_unknown_block_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        pages.render("<!-- measured: nothing -->\n<!-- end -->", {})


def test_a_record_is_kept_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "RECORDS", tmp_path / "measurements.json")
    pages.write(pages.RECORDS, json.dumps({"bench": 1, "budget": 2}))
    pages.keep("budget", 3)
    assert pages.read_records() == {"bench": 1, "budget": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["measurements.json"]


@pytest.mark.parametrize("page", [*pages.pages(), EXAMPLES.parent / "arcd" / "base" / "README.md"])
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (page.parent / link).exists(), link
