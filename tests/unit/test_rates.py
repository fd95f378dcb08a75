"""Learnt rates: what generated the measurements comes out, whatever a few of them were."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcd.backends.protocols import EngineUsage
from arcd.scheduling.forecast import COLD, Rates, times, work
from arcd.scheduling.rates import RateEstimator
from arcd.system.linear_fit import WINDOW, LinearFit

machines = st.builds(
    lambda scale, task, step, token, round_, prompt, row: Rates(
        scale * COLD.task * task,
        scale * COLD.step * step,
        scale * COLD.token * token,
        scale * COLD.round * round_,
        scale * COLD.prompt * prompt,
        scale * COLD.row * row,
    ),
    st.sampled_from([0.001, 0.1, 1.0, 30.0]),
    *[st.floats(0.3, 3.0)] * 6,
)
"""Machines of any speed, whose kinds of work cost other shares than was assumed."""


def trainings(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """(steps, tokens) of tasks of all sizes."""
    steps = [rng.choice([5, 20, 60, 200]) for _ in range(count)]
    return [(n, n * rng.randint(100, 6000)) for n in steps]


def of(rates: Rates, steps: int, tokens: int) -> float:
    return rates.task + steps * rates.step + tokens * rates.token


def learnt(
    rates: Rates, seed: int, *, noise: float = 0.0, stragglers: float = 0.0
) -> RateEstimator:
    rng = random.Random(seed)
    measured = RateEstimator()
    for steps, tokens in trainings(rng, 40):
        slow = 20 if rng.random() < stragglers else 1
        seconds = of(rates, steps, tokens) * rng.uniform(1 - noise, 1 + noise) * slow
        measured.trained(steps, tokens, seconds)
    for _ in range(40):
        sequences, length = rng.choice([1, 4, 16, 64]), rng.randint(10, 300)
        prompt = sequences * rng.choice([0, 100, 800])
        seconds = length * rates.round + prompt * rates.prompt + sequences * length * rates.row
        measured.stepped(EngineUsage(length, prompt, sequences * length, seconds))
    return measured


@settings(max_examples=30)
@given(machines, st.integers(0, 1000))
def test_what_made_the_times_is_found_again(rates: Rates, seed: int) -> None:
    found = learnt(rates, seed).rates
    for steps, tokens in trainings(random.Random(seed + 1), 20):
        assert of(found, steps, tokens) == pytest.approx(of(rates, steps, tokens), rel=0.2)
    for sequences in (1, 8, 32, 64):
        assert found.decode(sequences) == pytest.approx(rates.decode(sequences), rel=0.2)


@settings(max_examples=30)
@given(machines, st.integers(0, 1000))
def test_stragglers_are_not_believed(rates: Rates, seed: int) -> None:
    found = learnt(rates, seed, noise=0.1, stragglers=0.15).rates
    for steps, tokens in trainings(random.Random(seed + 1), 20):
        assert of(found, steps, tokens) == pytest.approx(of(rates, steps, tokens), rel=0.4)


@given(machines)
def test_one_measurement_sets_the_scale_of_all(rates: Rates) -> None:
    measured = RateEstimator()
    measured.trained(10, 5000, of(rates, 10, 5000))
    assert of(measured.rates, 10, 5000) == pytest.approx(of(rates, 10, 5000), rel=0.01)
    assert not measured.known
    measured.stepped(EngineUsage(100, 0, 1600, 2.0))
    assert measured.known


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 10**6), st.floats(1e-3, 1e5))))
def test_nothing_ever_costs_less_than_nothing(seen: list[tuple[int, int, float]]) -> None:
    measured = RateEstimator()
    for steps, tokens, seconds in seen:
        measured.trained(steps, tokens, seconds)
    rates = measured.rates
    assert min(rates.task, rates.step, rates.token) >= 0
    assert max(rates.task, rates.step, rates.token) > 0


def test_a_machine_that_has_become_slower_is_believed() -> None:
    fast, slow = COLD, Rates(*(3 * rate for rate in (COLD.task, COLD.step, COLD.token)))
    measured = RateEstimator()
    for rates in (fast, slow):
        for steps, tokens in trainings(random.Random(1), WINDOW):
            measured.trained(steps, tokens, of(rates, steps, tokens))
    assert of(measured.rates, 60, 60_000) == pytest.approx(of(slow, 60, 60_000), rel=0.02)


def test_before_anything_is_measured_the_rates_are_the_assumed_ones() -> None:
    assert RateEstimator().rates == COLD


@given(machines)
def test_a_training_that_goes_on_counts_until_one_is_done(rates: Rates) -> None:
    measured = RateEstimator()
    for step in (1, 2, 3):
        measured.training(step, 500 * step, of(rates, step, 500 * step))
    assert of(measured.rates, 60, 30_000) == pytest.approx(of(rates, 60, 30_000), rel=0.5)
    assert not measured.known
    twice = 2 * of(rates, 60, 30_000)
    measured.trained(60, 30_000, twice)
    measured.training(1, 500, of(rates, 1, 500))
    assert of(measured.rates, 60, 30_000) == pytest.approx(twice, rel=0.01)


@given(st.floats(0.01, 100))
def test_what_was_not_measured_is_as_much_slower_as_the_rest_but_not_faster(slower: float) -> None:
    measured = RateEstimator()
    measured.stepped(EngineUsage(100, 0, 1600, slower * (100 * COLD.round + 1600 * COLD.row)))
    assert measured.rates.token == pytest.approx(max(1.0, slower) * COLD.token)
    measured = RateEstimator()
    measured.trained(10, 5000, slower * of(COLD, 10, 5000))
    assert measured.rates.row == pytest.approx(max(1.0, slower) * COLD.row)


def test_what_took_no_time_or_did_nothing_is_no_measurement() -> None:
    fit = LinearFit((1.0, 1.0))
    fit.add((0.0, 0.0), 1.0)
    fit.add((1.0, 1.0), 0.0)
    assert len(fit) == 0


@given(machines)
def test_what_is_kept_is_gone_on_from(rates: Rates) -> None:
    before = learnt(rates, 3)
    after = RateEstimator.from_json(json.loads(json.dumps(before.to_json())))
    assert after.rates == before.rates


def test_a_prediction_is_what_the_fit_says_of_the_work() -> None:
    """The names of the coefficients and their order are the same on both sides."""
    from support.small import task

    from arcd.config import Config

    measured = learnt(Rates(1, 2, 0.003, 0.4, 0.005, 0.0006), 5)
    done = work(task(), Config())
    expected = 1 + done.steps * 2 + done.train * 0.003
    assert times(done, measured.rates).train == pytest.approx(expected, rel=0.1)
    reading = done.prefill * 0.005 + done.rounds * 0.4 + done.decode * 0.0006
    assert times(done, measured.rates).infer == pytest.approx(reading, rel=0.1)


amounts = st.integers(0, 10**6)


@given(
    st.lists(st.tuples(amounts, amounts, amounts, st.floats(1e-9, 1e5)), min_size=1),
    st.lists(st.tuples(st.integers(1, 500), amounts, st.floats(1e-9, 1e5))),
)
def test_no_rate_is_ever_in_the_way_of_saying_how_the_daemon_is(
    usage: list[tuple[int, int, int, float]], trained: list[tuple[int, int, float]]
) -> None:
    """Rates are divided by where they are shown: no measurement makes one of them 0."""
    measured = RateEstimator()
    measured.stepped(*(EngineUsage(*each) for each in usage))
    for steps, tokens, seconds in trained:
        measured.trained(steps, tokens, seconds)
    shown = measured.rates.to_json()
    assert json.loads(json.dumps(shown, allow_nan=False))
