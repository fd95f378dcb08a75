"""A step of training that fails: what it leaves, and when it is made again."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.tiny_bases import BASES, Letters, lesson, write

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from arcd.backends.decoder_lora import DecoderLora
from arcd.backends.lora_adapter import TrainableAdapter
from arcd.backends.lora_trainer import LoraTrainer
from arcd.backends.protocols import TrainRequest
from arcd.backends.resident_base import ResidentBase
from arcd.config import TrainConfig
from arcd.decoder.elementwise import EAGER, Elementwise
from arcd.errors import OutOfMemory, TrainerFailed
from arcd.model.device import Device
from arcd.system.ledger import Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

FP32 = Device("cpu", "float32")
LORA = TrainConfig(steps=1, rank=8)
LESSONS = [lesson(30, 1), lesson(20, 2)]


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> ResidentBase:
    folder = write(BASES["llama"], tmp_path_factory.mktemp("base"))
    return ResidentBase(folder, FP32, Letters())


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_a_failed_step_leaves_none_of_its_activations(
    resident: ResidentBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the garbage collector: the next try needs their memory."""
    left: list[weakref.ref[torch.Tensor]] = []
    loss = DecoderLora.loss

    def full(self: DecoderLora, batch: Sequence[object], *, recompute: bool) -> "torch.Tensor":
        found = loss(self, batch, recompute=recompute)  # type: ignore[arg-type]
        left.append(weakref.ref(found))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(DecoderLora, "loss", full)
    used = LoraTrainer(resident.lora, resident._path, tmp_path, FP32, Ledger(), cores=lambda: 1)
    try:
        await used.train(TrainRequest(LESSONS, LORA, 1, 0), lambda step: None)
    except OutOfMemory:
        assert [each() for each in left] == [None]
    assert len(left) == 1


def failing(error: RuntimeError) -> Elementwise:
    """Functions that were compiled, of which one fails."""

    def gate(gate_up: "torch.Tensor") -> "torch.Tensor":
        raise error

    return replace(EAGER, gate=gate)


def adapter(resident: ResidentBase, functions: Callable[[], Elementwise]) -> TrainableAdapter:
    assert resident._frozen is not None
    made = TrainableAdapter(
        DecoderLora(resident._frozen, LORA, functions), Path("base"), LORA, FP32
    )
    made.reset(seed=1)
    return made


def test_where_the_compiler_fails_the_step_is_made_without(
    resident: ResidentBase, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    plain = adapter(resident, lambda: EAGER)
    broken = adapter(resident, lambda: failing(InvalidCxxCompiler()))
    for _ in range(2):
        assert broken.step(LESSONS, 1e-2) == plain.step(LESSONS, 1e-2)
    assert [record.message[:25] for record in caplog.records] == ["compiled functions failed"]


def test_any_other_error_in_a_compiled_function_fails_the_training(
    resident: ResidentBase,
) -> None:
    broken = adapter(resident, lambda: failing(RuntimeError("shapes differ")))
    with pytest.raises(TrainerFailed, match="shapes differ"):
        broken.step(LESSONS, 1e-2)
