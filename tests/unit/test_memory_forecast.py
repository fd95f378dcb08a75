"""Memory: what a step will take, what is chosen so that it fits, and what is the engine's."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.backends import runtime
from arcd.backends.memory import UNLIMITED, WORKSPACE, GpuMemory, Occupation, share_of_trainer
from arcd.backends.memory_forecast import MARGIN, MemoryForecast, Plan, StepMemory
from arcd.config import EngineConfig
from arcd.decoder.footprint import Footprint, Linear, Sizes, footprint
from arcd.errors import OutOfMemory
from arcd.model.device import Device

MIB, GIB = 1 << 20, 1 << 30

PRIOR = Footprint(MIB, Linear(4 * MIB, MIB), Linear(4 * MIB, MIB // 10))
"""A token takes 1 MiB, a tenth of that if activations are computed again."""


@dataclass
class Meter:
    """A memory of a fixed size; `peak` is what the next step takes."""

    allowed: int
    taken: int = 0

    def allowance(self, own: int) -> int:
        return self.allowed

    def start(self) -> None:
        pass

    def peak(self) -> int:
        return self.taken

    def release(self) -> None:
        pass


def padded(lengths: Sequence[int]) -> int:
    return sum(-(-length // 32) * 32 for length in lengths)


def steps(allowed: int, most: int | None = None) -> StepMemory:
    return StepMemory(Meter(allowed), PRIOR, most)


def room_for(tokens: int, *, recompute: bool = False) -> int:
    """Bytes in which a step of so many tokens just fits, by the prior."""
    return int(MemoryForecast(PRIOR).needed(tokens, recompute=recompute)) + 1


@given(st.integers(1, 10_000), st.booleans(), st.integers(0, 50 * GIB))
def test_what_fits_is_needed_and_one_more_token_is_too_much(
    tokens: int, recompute: bool, allowed: int
) -> None:
    forecast = MemoryForecast(PRIOR)
    fits = forecast.fitting(allowed, recompute=recompute)
    if fits:
        assert forecast.needed(fits, recompute=recompute) <= allowed * (1 + 1e-9)
    assert forecast.needed(fits + 1, recompute=recompute) > allowed * (1 - 1e-9)
    needed = forecast.needed(tokens, recompute=recompute)
    assert needed > PRIOR.lasting


def test_plain_steps_of_the_whole_batch_are_chosen_where_they_fit() -> None:
    plan = steps(10 * GIB).plan([600, 600], padded, frugal=False)
    assert plan == Plan(recompute=False, at_once=padded([600, 600]))


def test_a_batch_goes_in_parts_before_anything_is_computed_twice() -> None:
    plan = steps(room_for(700)).plan([600, 600], padded, frugal=False)
    assert plan == Plan(recompute=False, at_once=700)


def test_recomputation_is_chosen_where_the_longest_lesson_does_not_fit() -> None:
    plan = steps(room_for(700)).plan([100, 701], padded, frugal=False)
    assert plan == Plan(recompute=True, at_once=padded([100, 701]))


def test_recomputation_is_done_in_any_case_where_it_is_wanted() -> None:
    assert steps(room_for(700)).plan([100], padded, frugal=True).recompute


def test_what_cannot_fit_is_refused_with_the_tokens_that_would() -> None:
    allowed = room_for(7000, recompute=True)
    with pytest.raises(
        OutOfMemory, match=r"8000 tokens needs 0\.9 GiB .*, 0\.8 GiB are there"
    ) as e:
        steps(allowed).plan([8000, 10], padded, frugal=False)
    assert e.value.fits is not None
    assert 6900 < e.value.fits <= 7000
    assert steps(allowed).plan([e.value.fits], padded, frugal=True).recompute


def test_where_not_even_the_adapter_fits_no_length_would() -> None:
    with pytest.raises(OutOfMemory) as refused:
        steps(PRIOR.lasting).plan([40], padded, frugal=False)
    assert refused.value.fits == 0


@pytest.mark.parametrize("frugal", [False, True])
def test_without_a_limit_it_is_as_it_was_asked_for(frugal: bool) -> None:
    plan = StepMemory(UNLIMITED, PRIOR, 2048).plan([9000, 9000], padded, frugal=frugal)
    assert plan == Plan(frugal, 2048)
    plan = StepMemory(UNLIMITED, PRIOR, None).plan([90, 90], padded, frugal=frugal)
    assert plan == Plan(frugal, 192)


@given(st.floats(0.2, 5), st.floats(0.2, 5))
def test_the_forecast_becomes_what_the_steps_take(fixed: float, token: float) -> None:
    memory = steps(0)
    for tokens in (300, 800, 1200, 500, 2000) * 3:
        taken = fixed * PRIOR.plain.fixed + token * PRIOR.plain.token * tokens
        memory.memory = Meter(0, int(taken))
        memory.measured(tokens, recompute=False)
    for tokens in (400, 4000):
        taken = fixed * PRIOR.plain.fixed + token * PRIOR.plain.token * tokens
        needed = memory._forecast.needed(tokens, recompute=False) - PRIOR.lasting
        assert needed == pytest.approx(MARGIN * taken, rel=0.02)


def test_after_a_failure_the_same_step_is_not_planned_again() -> None:
    memory = steps(room_for(1000))
    assert memory.plan([992], padded, frugal=False) == Plan(recompute=False, at_once=992)
    memory.failed(992, recompute=False)
    assert memory.plan([992], padded, frugal=False).recompute
    for _ in range(12):
        memory.failed(992, recompute=True)
    with pytest.raises(OutOfMemory):
        memory.plan([992], padded, frugal=False)


def test_one_failure_of_a_small_step_does_not_condemn_all() -> None:
    """Others may have had the memory."""
    memory = steps(room_for(10_000))
    memory.failed(100, recompute=False)
    assert not memory.plan([4000], padded, frugal=False).recompute


# What of a GPU is the trainer's.

L4 = 22 * GIB


def test_the_engine_keeps_its_claim_though_it_holds_less_between_its_steps() -> None:
    # The base and its keys and values are there; its activations are not.
    now = Occupation(free=12 * GIB, reserved=9 * GIB, allocated=9 * GIB)
    assert share_of_trainer(now, L4 // 2, 0, 0, 1) == 21 * GIB - L4 // 2


def test_the_trainers_own_base_is_no_part_of_the_claim() -> None:
    now = Occupation(free=5 * GIB, reserved=16 * GIB, allocated=16 * GIB)
    assert share_of_trainer(now, L4 // 2, 8 * GIB, 0, 1) == 2 * GIB


def test_an_engine_beyond_its_claim_keeps_what_it_has() -> None:
    now = Occupation(free=5 * GIB, reserved=16 * GIB, allocated=16 * GIB)
    assert share_of_trainer(now, L4 // 2, 0, GIB, 1) == 6 * GIB


def test_a_claim_that_nobody_knows_is_what_it_has_and_a_workspace() -> None:
    now = Occupation(free=8 * GIB, reserved=13 * GIB, allocated=12 * GIB)
    assert share_of_trainer(now, None, 0, 2 * GIB, 1) == 21 * GIB - 10 * GIB - WORKSPACE


@given(
    st.integers(0, 80), st.integers(0, 80), st.floats(0, 1), st.integers(0, 80), st.integers(1, 4)
)
def test_trainers_and_engine_never_have_more_than_there_is(
    free: int, reserved: int, share: float, base: int, trainers: int
) -> None:
    now = Occupation(free * GIB, reserved * GIB, reserved * GIB // 2)
    claimed = int(share * 80 * GIB)
    each = share_of_trainer(now, claimed, base * GIB, 0, trainers)
    assert each >= 0
    assert each == 0 or each * trainers + claimed + base * GIB <= (free + reserved) * GIB


# The arithmetic.

QWEN3_4B = Sizes(
    layers=36,
    width=2560,
    mlp_width=9728,
    heads=32,
    key_heads=8,
    head_size=128,
    head_norms=True,
    item=2,
    rank=256,
    adapted=7,
    parameters=36 * 256 * (5 * 2560 + 4096 + 9728 + 2 * 9728 + 2 * 2560 + 4096 + 2 * 1024),
    answers=12,
)


def test_qwen3_4b_at_rank_256() -> None:
    found = footprint(QWEN3_4B)
    assert found.parameters == 528_482_304
    assert found.lasting == pytest.approx(5.9 * GIB, rel=0.01)
    assert found.plain.token == pytest.approx(6.1 * MIB, rel=0.02)
    assert found.recomputed.token == pytest.approx(0.70 * MIB, rel=0.02)


@pytest.mark.parametrize(("cache", "share"), [(None, 0.3), (GIB, None)])
def test_the_engines_claim_is_its_share_unless_its_cache_has_bytes_of_its_own(
    cache: int | None, share: float | None
) -> None:
    engine = EngineConfig(gpu_memory=0.3, kv_cache_memory_bytes=cache)
    found = runtime._memory(Device("cuda", "bfloat16"), engine, lambda: 0, 1)
    assert isinstance(found, GpuMemory)
    assert found._share == share
    assert runtime._memory(Device("cpu", "bfloat16"), engine, lambda: 0, 1) is UNLIMITED
