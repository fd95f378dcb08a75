import random

from hypothesis import given
from hypothesis import strategies as st

from arcd.system.seeds import generator, seed_of


def test_a_seed_is_the_same_on_every_machine() -> None:
    # sha256 of "0\x1f007bbfb7\x1flessons", first 8 bytes big-endian, without the lowest bit.
    assert seed_of(0, "007bbfb7", "lessons") == 2513900029528194820


def test_run_task_and_purpose_each_make_another_seed() -> None:
    seeds = {seed_of(s, t, p) for s in (0, 1) for t in ("a", "b") for p in ("lessons", "questions")}
    assert len(seeds) == 8


def test_purposes_do_not_run_into_each_other() -> None:
    assert seed_of(0, "ab", "c") != seed_of(0, "a", "bc")


@given(st.integers(), st.text(), st.integers())
def test_a_seed_fits_a_signed_64_bit_field(seed: int, name: str, number: int) -> None:
    assert 0 <= seed_of(seed, name, number) < 2**63


def test_the_same_purpose_draws_the_same_numbers_whatever_was_drawn_before() -> None:
    first = generator(0, "task", "views")
    generator(0, "other", "views").random()
    assert [first.random() for _ in range(3)] == [
        again.random() for again in [generator(0, "task", "views")] for _ in range(3)
    ]


def test_the_global_generator_is_left_alone() -> None:
    state = random.getstate()
    generator(0, "task").random()
    assert random.getstate() == state
