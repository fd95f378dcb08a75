"""The checks of `arcd doctor --thorough` on fakes: all is well, and with a fault put in."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count

import anyio
import pytest
from support import virtual
from support.doctoring import CPU, GPU, Engine, Hindered, Trainer, engine_of, workbench

from arcd.backends.protocols import Adapter
from arcd.cli.checks import memory, part, speed
from arcd.cli.checks.memory import adapters_in_and_out, out_of_memory
from arcd.cli.checks.parity import Compared, parity, parity_finding, tolerance
from arcd.cli.checks.speed import Overlap, speed_finding, streams_finding
from arcd.cli.checks.workbench import Workbench
from arcd.cli.finding import Finding
from arcd.errors import EngineFailed, SampleRefused
from arcd.model.device import Device

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> virtual.Backend:
    return virtual.BACKEND


# Parity.


async def test_trainer_and_engine_that_agree_are_ok() -> None:
    found = await parity(workbench())
    assert found.ok, found
    assert found.data["differences"] == {"base": 0.0, "adapter 1": 0.0, "adapter 2": 0.0}
    assert min(found.data["effects"].values()) > 1


@pytest.mark.parametrize(
    "served",
    [
        pytest.param(lambda adapter: None, id="the base in place of each adapter"),
        pytest.param(
            lambda adapter: adapter and Adapter(1 - adapter.serial, adapter.path),
            id="the other adapter",
        ),
        pytest.param(
            lambda adapter: None if adapter and adapter.serial else adapter,
            id="one adapter missing",
        ),
    ],
)
async def test_an_engine_that_serves_another_adapter_is_found_out(served: object) -> None:
    bench = workbench()
    engine_of(bench).serves = served  # type: ignore[assignment]
    found = await parity(bench)
    assert not found.ok
    assert "what was trained and what is served differ" in found.advice


async def test_a_trainer_with_another_base_is_found_out() -> None:
    found = await parity(workbench(trainer=Trainer(error=0.3)))
    assert not found.ok
    assert "differ by more than expected" in found.advice


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_is_not_parity(number: float) -> None:
    same, off = Compared([1.0], [1.0]), Compared([number], [1.0])
    assert not parity_finding({"base": same, "adapter 1": off}, 0.2).ok
    assert not parity_finding({"base": off, "adapter 1": same}, 0.2).ok


def test_adapters_that_change_nothing_prove_nothing() -> None:
    same = Compared([1.0], [1.0])
    found = parity_finding({"base": same, "adapter 1": same}, 0.2)
    assert not found.ok
    assert "change too little" in found.advice


@pytest.mark.parametrize(("apart", "ok"), [(0.14, True), (0.4, True), (0.6, False)])
def test_an_adapter_may_be_off_by_a_small_part_of_what_it_changes(apart: float, ok: bool) -> None:
    """The logits of a large model are coarse, and an adapter that changes much is off by more."""
    base, adapter = Compared([1.0], [1.0]), Compared([6.0], [6.0 + apart])
    assert parity_finding({"base": base, "adapter 1": adapter}, 0.15).ok is ok
    off = Compared([1.0], [1.0 + apart])
    assert parity_finding({"base": off, "adapter 1": adapter}, 0.15).ok is (apart < 0.15)


def test_the_tolerance_is_that_of_the_coarser_number_format() -> None:
    assert tolerance(Device("cpu", "float32")) == 0.03
    assert tolerance(Device("cuda", "float32", "", (8, 0))) == tolerance(GPU) == 0.15
    assert tolerance(Device("cuda", "float16", "", (7, 5))) == 0.05


# Speed.


async def test_lanes_that_do_not_hinder_each_other_gain_twice() -> None:
    found = await speed.speed(workbench(device=GPU))
    assert found.ok, found
    assert found.data["gain"] == pytest.approx(2.0, rel=0.05)
    alone = found.data["sampling"]["alone"]
    assert alone["32"] > alone["8"] > alone["1"] > 0
    assert "(not compiled)" in found.value


async def test_lanes_that_take_turns_are_found_out_on_a_gpu() -> None:
    bench = workbench(device=GPU, trainer=Trainer(beside=2.5), engine=Hindered)
    found = await speed.speed(bench)
    assert not found.ok
    assert found.data["gain"] == pytest.approx(0.95, abs=0.08)
    assert "take turns on this GPU" in found.advice


@pytest.mark.parametrize(
    ("device", "beside", "ok"), [(CPU, 0.35, False), (CPU, 0.45, True), (GPU, 0.45, False)]
)
def test_a_gain_that_is_too_small_says_what_to_do(device: Device, beside: float, ok: bool) -> None:
    found = speed_finding(Overlap(1.0, beside, 1.0, beside), {8: 1.0}, None, device)
    assert found.ok is ok
    assert bool(found.advice) is not ok


async def test_a_trainer_that_stops_is_no_endless_check() -> None:
    bench = workbench(trainer=Trainer(broken=frozenset({"6d75e8bb"})))
    told: list[Finding] = []
    assert not await part.made(bench, ["speed"], told.append, 100.0)
    assert [finding.ok for finding in told] == [False]
    assert "TrainerFailed" in told[0].value


def test_streams_are_compared() -> None:
    assert streams_finding(1.5, 1.1).ok
    worse = streams_finding(1.1, 1.5)
    assert not worse.ok
    assert "ARCD_ONE_STREAM=1" in worse.advice
    assert not streams_finding(None, 1.0).ok
    assert not streams_finding(1.0, None).ok


async def test_the_trainer_is_measured_when_its_functions_are_compiled() -> None:
    bench = workbench()
    begun = anyio.current_time()
    bench.compiled = lambda: anyio.current_time() - begun > 6.0
    assert await speed.compiled(bench) is True
    bench.compiled = lambda: False
    assert await speed.compiled(bench) is False


# Memory.


def growing(**steps: int) -> Callable[[], Mapping[str, int]]:
    """Memory that grows by so many bytes from look to look, by its place."""
    looks = count()

    def memory() -> Mapping[str, int]:
        look = next(looks)
        return {place: (100 << 20) + look * step for place, step in steps.items()}

    return memory


@pytest.mark.parametrize(
    ("steps", "ok"),
    [
        pytest.param({"process": 0}, True, id="flat"),
        pytest.param({"process": 3 << 20}, False, id="a leak on a CPU"),
        pytest.param({"process": 0, "tensors": 1 << 20}, False, id="a leak on a GPU"),
        pytest.param({"process": 3 << 20, "tensors": 0}, False, id="a leak in RAM beside a GPU"),
        pytest.param({"process": 1 << 20, "tensors": 1 << 10}, True, id="some bytes"),
    ],
)
async def test_adapters_that_stay_in_memory_are_found_out(steps: dict[str, int], ok: bool) -> None:
    found = await adapters_in_and_out(workbench(memory=growing(**steps)))
    assert found.ok is ok, found
    assert bool(found.advice) is not ok
    assert [len(sizes) for sizes in found.data["used"].values()] == [memory.ADAPTERS] * len(steps)


def pressed(bench: Workbench, *faults: Exception) -> Workbench:
    """Calls raise these as soon as the engine has no memory."""

    @contextmanager
    def pressure() -> Iterator[str]:
        engine_of(bench).faults.extend(faults)
        yield "a fault"

    bench.pressure = pressure
    return bench


async def test_an_engine_that_refuses_and_lives_on_is_ok() -> None:
    found = await out_of_memory(pressed(workbench(), SampleRefused("the device was full")))
    assert found.ok, found
    assert found.value == (
        "a fault: refused (the device was full); the retry succeeded, 17 of 17 answers as before"
    )


async def test_an_engine_that_begins_again_with_fewer_requests_is_ok() -> None:
    bench = pressed(workbench())
    fallbacks = count()
    bench.fallbacks = lambda: 3 * next(fallbacks)
    found = await out_of_memory(bench)
    assert found.ok
    assert "sampling succeeded after 3 fall-backs" in found.value
    assert (found.data["tried"], found.data["fallbacks"]) == (True, 3)


async def test_one_that_needed_no_memory_was_not_tried() -> None:
    found = await out_of_memory(pressed(workbench()))
    assert found.value.startswith("not tried: the engine needed no memory (a fault)")
    assert (found.data["tried"], found.data["fallbacks"]) == (False, 0)


@pytest.mark.parametrize("kind", [EngineFailed, SampleRefused])
async def test_one_that_does_not_survive_is_found_out(
    kind: type[EngineFailed | SampleRefused],
) -> None:
    found = await out_of_memory(pressed(workbench(), kind("gone"), kind("still gone")))
    assert not found.ok
    assert "the retry failed: still gone" in found.value
    assert "engine.gpu_memory" in found.advice


# Checks that raise, and checks that hang.


async def test_a_check_that_raises_anything_ends_in_a_finding() -> None:
    bench = pressed(workbench(), RuntimeError("CUDA error: an illegal memory access\nwas met"))
    told: list[Finding] = []
    assert not await part.made(bench, ["out of memory", "adapters"], told.append, 1e6)
    assert [(finding.name, finding.ok, finding.value) for finding in told] == [
        ("out of memory", False, "RuntimeError: CUDA error: an illegal memory access was met")
    ]
    assert told[0].advice


async def test_a_check_that_hangs_ends_in_a_finding() -> None:
    class Hangs(Engine):
        async def sample(self, *_: object) -> None:
            await anyio.sleep(1e8)

    told: list[Finding] = []
    assert not await part.made(workbench(engine=Hangs), ["adapters"], told.append, 50.0)
    assert (told[0].ok, told[0].value) == (False, "no result in time")
    assert "--seconds" in told[0].advice


async def test_checks_that_find_something_do_not_keep_the_others_from_being_made() -> None:
    told: list[Finding] = []
    bench = workbench(memory=growing(process=64 << 20))
    assert await part.made(bench, ["adapters", "out of memory"], told.append, 1e6)
    assert [(finding.name, finding.ok) for finding in told] == [
        ("adapters", False),
        ("out of memory", True),
    ]
