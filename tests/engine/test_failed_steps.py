"""A step of training that fails: what it leaves, and when it is made again."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.small import solutions, task
from support.tiny_bases import BASES, PLAIN, Letters, adapter_on, lesson, write
from support.works import Progress

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from arcd.backends.decoder_lora import DecoderLora
from arcd.backends.fake import FakeEngine, FakeTrainer
from arcd.backends.lora_adapter import LoraModel, TrainableAdapter
from arcd.backends.lora_trainer import LoraTrainer
from arcd.backends.memory import Unlimited
from arcd.backends.protocols import Trained, TrainRequest
from arcd.backends.resident_base import ResidentBase
from arcd.backends.runtime import Runtime
from arcd.config import TrainConfig, resolve
from arcd.decoder import layers
from arcd.decoder.elementwise import EAGER, Elementwise
from arcd.errors import DeviceLost, OutOfMemory, TrainerFailed
from arcd.model.device import Device
from arcd.model.encoding import CellEncoding
from arcd.model.prompts import Lesson
from arcd.solver.assignment import Assignment
from arcd.solver.solve import solve
from arcd.system.ledger import Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

FP32 = Device("cpu", "float32")
LORA = TrainConfig(steps=1, rank=8)
LESSONS = [lesson(30, 1), lesson(20, 2)]


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> ResidentBase:
    folder = write(BASES["llama"], tmp_path_factory.mktemp("base"))
    found = ResidentBase(folder, FP32, Letters())
    found.load()
    return found


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


Left = list[weakref.ref["torch.Tensor"]]

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Left:
    """The activations of steps that run out of memory in the backward pass."""
    kept: Left = []
    layer = layers._layer

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: "torch.Tensor") -> "torch.Tensor":
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: "torch.Tensor") -> "torch.Tensor":
            raise torch.OutOfMemoryError(FULL)

    def recorded(*arguments: Any) -> "tuple[torch.Tensor, torch.Tensor]":
        hidden, more = layer(*arguments)
        kept.append(weakref.ref(hidden))
        kept.append(weakref.ref(more))
        applied: torch.Tensor = Fails.apply(more)  # type: ignore[no-untyped-call]
        return hidden, applied

    monkeypatch.setattr(layers, "_layer", recorded)
    return kept


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("frugal", [False, True])
async def test_a_failed_step_leaves_none_of_its_activations(
    resident: ResidentBase, tmp_path: Path, left: Left, frugal: bool
) -> None:
    """While its error is at hand, and without waiting for the collector: the next try needs them.

    In autograd, in the trainer's thread, in the future that brings the error to the event loop.
    """
    used = LoraTrainer(resident.lora, resident._path, tmp_path, FP32, Ledger(), cores=lambda: 1)
    with pytest.raises(OutOfMemory):
        await used.train(TrainRequest(LESSONS, LORA, 1, 0, frugal), lambda step: None)
    assert len(left) > 3
    assert [each() for each in left] == [None] * len(left)
    assert used._tensors is not None
    assert all(tensor.grad is None for tensor in used._tensors._parameters)
    assert not used._tensors._optimizer.state


@pytest.mark.usefixtures("no_collector")
async def test_nothing_of_a_failed_training_is_left_while_the_solver_tries_less(
    resident: ResidentBase, tmp_path: Path, left: Left
) -> None:
    used = LoraTrainer(resident.lora, resident._path, tmp_path, FP32, Ledger(), cores=lambda: 1)
    seen: list[int] = []

    @dataclass
    class Watched(FakeTrainer):
        async def train(self, wanted: TrainRequest, progress: Progress) -> Trained:
            seen.append(sum(each() is not None for each in left))
            mine = replace(wanted, lessons=LESSONS, config=LORA)
            return await used.train(mine, progress)

    shown = task(pairs=16)
    engine = FakeEngine(CellEncoding(), solutions([shown]), {})
    runtime = Runtime(Watched(), engine, CellEncoding(), Ledger(), serial=count().__next__)
    config = resolve(settings=["train.steps=4"])
    verdict = await solve(Assignment(shown, config), runtime, lambda event: None)
    assert verdict.adapter is None
    assert seen == [0, 0, 0, 0]
    assert len(left) > 4 * 3


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError(FULL)


@pytest.mark.parametrize("where", ["model", "reset"])
async def test_out_of_memory_where_tensors_are_first_made_is_told_as_such_and_leaves_none(
    resident: ResidentBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def model(config: TrainConfig) -> LoraModel:
        found = resident.lora(config)
        made.extend(map(weakref.ref, found.tensors.values()))
        if where == "model":
            raise torch.OutOfMemoryError(FULL)
        return found

    used = LoraTrainer(model, resident._path, tmp_path, FP32, Ledger(), cores=lambda: 1)
    with monkeypatch.context() as patched:
        if where == "reset":
            patched.setattr(TrainableAdapter, "reset", full)
        with pytest.raises(OutOfMemory):
            await used.train(TrainRequest(LESSONS, LORA, 1, 0), lambda step: None)
    assert made
    assert all(each() is None for each in made)


async def test_an_error_that_leaves_the_gpu_unusable_is_no_failed_training(
    resident: ResidentBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: DecoderLora, batch: Sequence[Lesson], *, recompute: bool) -> "torch.Tensor":
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might")

    monkeypatch.setattr(DecoderLora, "loss", lost)
    used = LoraTrainer(resident.lora, resident._path, tmp_path, FP32, Ledger(), cores=lambda: 1)
    with pytest.raises(DeviceLost, match=r"in this process: CUDA error: device-side assert .*d$"):
        await used.train(TrainRequest(LESSONS, LORA, 1, 0), lambda step: None)


@dataclass
class Meter(Unlimited):
    """A memory in which a step with so many bytes more than before it does not fit."""

    allowed: int
    taken: int = 0

    def allowance(self, own: int) -> int:  # type: ignore[override]
        return self.allowed

    def peak(self) -> int:  # type: ignore[override]
        return self.taken


async def test_a_training_that_cannot_fit_is_refused_before_its_first_step(
    resident: ResidentBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[bool] = []
    loss = DecoderLora.loss

    def counted(self: DecoderLora, batch: Sequence[Lesson], *, recompute: bool) -> "torch.Tensor":
        computed.append(recompute)
        return loss(self, batch, recompute=recompute)

    monkeypatch.setattr(DecoderLora, "loss", counted)
    footprint = resident.lora(LORA).footprint
    memory = Meter(1 << 30)
    used = LoraTrainer(
        resident.lora, resident._path, tmp_path, FP32, Ledger(), cores=lambda: 1, memory=memory
    )

    async def train(serial: int) -> None:
        await used.train(TrainRequest(LESSONS * 2, LORA, 1, serial), lambda step: None)

    await train(0)
    assert computed == [False, False]
    # What the steps took is remembered: ten times what arithmetic says.
    plain = footprint.plain
    memory.taken = int(10 * (plain.fixed + plain.token * 64))
    for serial in range(1, 4):
        await train(serial)
    computed.clear()
    memory.allowed = int(footprint.lasting + 5 * (plain.fixed + plain.token * 64))
    await train(4)
    assert computed == [True, True]
    # A step that does not fit though it was forecast to is not tried so again.
    memory.allowed = int(footprint.lasting + 15 * (plain.fixed + plain.token * 64))
    computed.clear()
    with monkeypatch.context() as patched:
        patched.setattr(DecoderLora, "loss", full)
        with pytest.raises(OutOfMemory):
            await train(5)
    await train(6)
    assert computed == [False] * 4, "its lessons go one at a time"
    memory.allowed = footprint.lasting + 1
    computed.clear()
    with pytest.raises(OutOfMemory, match=r"a lesson of 30 tokens needs .* GiB") as refused:
        await train(7)
    assert refused.value.fits == 0
    assert computed == []


def failing(error: RuntimeError) -> Elementwise:
    """Functions that were compiled, of which one fails."""

    def gate(gate_up: "torch.Tensor") -> "torch.Tensor":
        raise error

    return replace(EAGER, gate=gate)


def adapter(resident: ResidentBase, functions: Callable[[], Elementwise]) -> TrainableAdapter:
    assert resident._frozen is not None
    made = adapter_on(DecoderLora(resident._frozen, LORA, functions), LORA, FP32)
    made.reset(seed=1)
    return made


def test_where_the_compiler_fails_the_step_is_made_without(
    resident: ResidentBase, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    plain = adapter(resident, lambda: EAGER)
    broken = adapter(resident, lambda: failing(InvalidCxxCompiler()))
    for _ in range(2):
        losses = [each.step(LESSONS, 1e-2, PLAIN).read() for each in (broken, plain)]
        assert losses[0] == losses[1]
    assert [record.message[:25] for record in caplog.records] == ["compiled functions failed"]


def test_any_other_error_in_a_compiled_function_fails_the_training(
    resident: ResidentBase,
) -> None:
    broken = adapter(resident, lambda: failing(RuntimeError("shapes differ")))
    with pytest.raises(TrainerFailed, match="shapes differ"):
        broken.step(LESSONS, 1e-2, PLAIN)
