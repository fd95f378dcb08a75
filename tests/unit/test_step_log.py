"""The step log: what an engine did is reported exactly once, as soon as it is known."""

import random
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from arcd.backends.protocols import EngineUsage
from arcd.backends.vllm.step_log import MIN_REPORT_STEPS, StepLog


@dataclass
class Sample:
    prompt: int
    length: int
    made: int = 0


@dataclass
class Step:
    seconds: float
    prompt: int
    generated: int
    aborted: bool = False
    """Whether a request in it was aborted."""


def simulate(seed: int, *, aborts: float = 0.0) -> tuple[list[EngineUsage], list[Step]]:
    """Usage reported, and what each step of an engine did.

    Requests come at any time; a step reads the prompts of all that are new and makes a token of
    each.
    """
    rng = random.Random(seed)
    log = StepLog()
    reported: list[EngineUsage] = []
    steps: list[Step] = []
    running: dict[str, Sample] = {}
    for number in range(rng.randint(1, 300)):
        if not running or rng.random() < 0.1:
            for i in range(rng.randint(1, 5)):
                name = f"{number}-{i}"
                running[name] = Sample(rng.randint(1, 900), rng.randint(1, 80))
                log.begin(name)
        prompt = sum(s.prompt for s in running.values() if not s.made)
        seconds = rng.uniform(0.01, 0.1)
        log.step(seconds)
        steps.append(Step(seconds, prompt, len(running)))
        for sample in running.values():
            sample.made += 1
        for name, sample in list(running.items()):
            if sample.made == sample.length:
                log.finish(name, sample.prompt, sample.length)
                del running[name]
            elif rng.random() < aborts:
                log.abort(name)
                for step in steps[len(steps) - sample.made :]:
                    step.aborted = True
                del running[name]
        reported += log.take()
    for name, sample in running.items():
        log.abort(name)
        for step in steps[len(steps) - sample.made :]:
            step.aborted = True
    return reported + log.take(), steps


def total(usage: list[EngineUsage]) -> tuple[int, int, int, float]:
    return (
        sum(s.steps for s in usage),
        sum(s.prompt for s in usage),
        sum(s.generated for s in usage),
        round(sum(s.seconds for s in usage), 6),
    )


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.002, 0.05]))
def test_every_step_is_reported_once_unless_a_request_in_it_was_aborted(
    seed: int, aborts: float
) -> None:
    reported, steps = simulate(seed, aborts=aborts)
    sound = [step for step in steps if not step.aborted]
    assert total(reported) == (
        len(sound),
        sum(step.prompt for step in sound),
        sum(step.generated for step in sound),
        round(sum(step.seconds for step in sound), 6),
    )


def test_nothing_is_reported_while_it_is_not_known_what_the_steps_did() -> None:
    log = StepLog()
    log.begin("a")
    for _ in range(3 * MIN_REPORT_STEPS):
        log.step(0.1)
    assert log.take() == []
    log.finish("a", 7, 3 * MIN_REPORT_STEPS)
    reading, generating = log.take()
    assert (reading.steps, reading.prompt, reading.generated) == (1, 7, 1)
    assert (generating.prompt, generating.generated) == (0, 3 * MIN_REPORT_STEPS - 1)


def test_an_engine_that_is_never_idle_is_reported_too() -> None:
    log, reported = StepLog(), []
    for number in range(10 * MIN_REPORT_STEPS):
        log.begin(str(number))
        log.step(0.1)
        if number >= 20:
            log.finish(str(number - 20), 5, 21)
        reported += log.take()
    assert sum(usage.steps for usage in reported) > 8 * MIN_REPORT_STEPS


def test_a_prompt_that_is_read_in_pieces_is_reported_with_all_of_its_steps() -> None:
    log = StepLog()
    log.begin("long")
    for _ in range(4):
        log.step(0.5)
    log.step(0.1)
    log.finish("long", 8000, 2)
    reading, generating = log.take()
    assert reading == EngineUsage(4, 8000, 1, 2.0)
    assert generating == EngineUsage(1, 0, 1, 0.1)
