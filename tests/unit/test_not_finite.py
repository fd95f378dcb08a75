"""A loss that is NaN or infinite: valid JSON, a screen and a report that go on, a note."""

import io
import json
import math
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support.past import BEGIN, Past
from support.small import candidate, grid, task, task_set
from support.solving import questions_of
from support.stores import JOB, A, opened, sampled

from arcd.arc.selection import rank, verdict
from arcd.backends.protocols import Completion, Request
from arcd.config import Config
from arcd.display import report
from arcd.display.screen import Scene, draw
from arcd.jobs import events, outline
from arcd.jobs.events import Record
from arcd.jobs.sheets import sheets
from arcd.model.encoding import CellEncoding
from arcd.solver.sampling import to_candidate
from arcd.system import json_text
from arcd.system.linear_fit import LinearFit

NAN, INF = math.nan, math.inf
WRONG = [NAN, INF, -INF]


def strict(text: str) -> Any:
    """Read as a browser does."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(values)
def test_every_value_is_json_that_every_parser_reads(value: Any) -> None:
    found = strict(json_text.dumps(value))
    assert found == json_text.plain(value)
    if "NaN" not in repr(found) and "Infinity" not in repr(found):
        assert found == value


def training(loss: float) -> events.Training:
    return events.Training("a", 1, 3, loss, 10.0)


@pytest.mark.parametrize("loss", WRONG)
def test_an_event_with_such_a_number_is_json_and_comes_back(loss: float) -> None:
    record = Record(1, BEGIN, 1, training(loss))
    fields = events.dump(record.event)
    text = events.text_of(1, BEGIN, 1, "Training", fields)
    assert strict(text) == strict(json.dumps(record.to_json()))
    for found in (events.load("Training", fields), Record.from_json(strict(text)).event):
        assert isinstance(found, events.Training)
        assert repr(found.loss) == repr(loss)


@given(st.sampled_from([events.Paused(), training(0.5), events.DaemonReady(1.0), sampled()]))
def test_the_text_of_a_record_is_its_json(event: events.Event) -> None:
    record = Record(7, BEGIN, None, event)
    text = events.text_of(7, BEGIN, None, events.kind(event), events.dump(event))
    assert json.loads(text) == json.loads(json.dumps(record.to_json()))


def test_a_store_that_holds_nan_is_read_and_passed_on(tmp_path: Path) -> None:
    old = json.dumps({"task": "a", "step": 1, "steps": 3, "loss": NAN, "tokens_per_second": INF})
    assert "NaN" in old
    with opened(tmp_path) as store:
        store.journal.submit(JOB)
        insert = "INSERT INTO events (at, job, kind, body) VALUES (1.0, 1, 'Training', ?)"
        store.database.connection.execute(insert, (old,))
        *_, record = store.journal.records(job=1)
        assert isinstance(record.event, events.Training)
        assert math.isnan(record.event.loss)
        assert store.journal.state().training
    assert strict(events.text_of(2, 1.0, 1, "Training", old))["loss"] == "NaN"


def failing(loss: float) -> Past:
    """A training that begins well."""
    past = Past().submitted(["a"]).started("a").training("a", 3)
    for step in range(4, 8):
        past.add(events.Training("a", step, 10, loss, 2400.0), after=1.0)
    return past


@pytest.mark.parametrize("loss", WRONG)
def test_the_screen_goes_on(loss: float) -> None:
    past = failing(loss)
    console = Console(file=io.StringIO(), width=100, height=30, _environ={})
    console.print(draw(Scene(past.history(), None), past.at, 100, 30))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"step 7/10  loss {loss:.3f}" in shown


@pytest.mark.parametrize("loss", WRONG)
def test_the_report_can_be_read(loss: float, tmp_path: Path) -> None:
    past = failing(loss)
    with closing(past.store(tmp_path, task_set(task("a")))) as store:
        history = outline.history(store.database, 1)
        text = report.page(history, sheets(store.database, 1), Config(), None)
    (data,) = re.findall(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)
    document = strict(data)
    assert [step for step, _ in document["curves"][0]] == [1, 2, 3]
    strict(json.dumps(report.trace(past.history())))


def test_a_curve_that_begins_anew_forgets_the_last_one() -> None:
    past = Past().submitted(["a"]).started("a").training("a", 3)
    past.add(events.Training("a", 1, 10, NAN, 2400.0), events.Training("a", 2, 10, 0.5, 2400.0))
    assert past.history().losses["a"] == [(2, 0.5)]


@pytest.mark.parametrize("wrong", WRONG)
def test_rates_are_not_measured_by_it(wrong: float) -> None:
    fit = LinearFit((1.0, 2.0))
    fit.add((1.0, wrong), 3.0)
    fit.add((1.0, 1.0), wrong)
    assert fit.coefficients == (1.0, 2.0)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_sample_of_a_model_that_computes_no_numbers_is_invalid(wrong: float) -> None:
    encoding = CellEncoding()
    (question, *_) = questions_of(task(), Config())
    tokens = tuple(encoding.answer(grid(3, 3)))
    request = Request(question, 0, seed=0)

    def drawn(logprob: float) -> object:
        logprobs = (*[-0.1] * (len(tokens) - 1), logprob)
        return to_candidate(Completion(request, tokens, logprobs, "stop"), None, encoding).grid

    assert drawn(-0.1) is not None
    assert drawn(wrong) is None


@given(st.permutations(range(6)))
def test_votes_of_old_stores_with_nan_are_ranked_in_one_order(order: list[int]) -> None:
    of = task()
    logprobs = [NAN, -1.0, NAN, -2.0, NAN, -0.5]
    found = [
        replace(candidate(of, 0, i, grid(2, 2, i)), logprob=logprob)
        for i, logprob in enumerate(logprobs)
    ]
    ranked = [vote.grid for vote in rank([found[i] for i in order])]
    assert ranked == [grid(2, 2, i) for i in (5, 1, 3, 0, 2, 4)]
    made = verdict("t", 1, found, None)
    assert strict(events.dump(events.Answered("t", made)))


def test_an_answer_with_such_numbers_comes_back() -> None:
    drawn = [replace(candidate(A, 0, 0, ((1,),)), logprob=NAN)]
    answered = events.Answered("a", verdict("a", 1, drawn, None))
    assert events.load("Answered", events.dump(answered)) == answered
