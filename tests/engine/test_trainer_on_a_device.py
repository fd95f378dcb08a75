"""What a trainer does on a GPU, as far as it can be seen without one.

The stream of its thread, waiting for the device, the kernels of attention, the scale of fp16.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from support.tiny_bases import (
    BASES,
    PLAIN,
    VOCABULARY,
    Letters,
    adapter_on,
    fill,
    gemma,
    learnt,
    lesson,
    write,
)

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from support.waits import META, Reads, uploads
from torch.nn import functional as F

from arcd.backends import streams
from arcd.backends.lora_adapter import LoraModel
from arcd.backends.lora_trainer import LoraTrainer
from arcd.backends.memory import GpuMemory
from arcd.backends.peft_lora import PeftLora
from arcd.backends.protocols import TrainingStep, TrainRequest
from arcd.backends.resident_base import ResidentBase
from arcd.config import TrainConfig
from arcd.decoder import attention
from arcd.errors import TrainerFailed
from arcd.model.base_model import load_model
from arcd.model.device import Device
from arcd.system.ledger import Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

FP32 = Device("cpu", "float32")
LORA = TrainConfig(steps=1, rank=8)
LESSONS = [lesson(75, 1), lesson(20, 2)]
KINDS = ["decoder", "peft", "peft gemma"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "qwen3": write(BASES["qwen3"], folder / "qwen3"),
        "gemma": write(gemma, folder / "gemma"),
    }


def model_of(
    kind: str, bases: dict[str, Path], device: Device = FP32, config: TrainConfig = LORA
) -> LoraModel:
    base = bases["gemma" if kind.endswith("gemma") else "qwen3"]
    if kind == "decoder":
        return ResidentBase(base, device, Letters()).lora(config)
    model = load_model(base, device)
    return PeftLora(model, config, device, Letters().pad, Letters().answer_tokens)


# Streams.


class FakeCuda:
    """Remembers what was asked of CUDA, and in which thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int]] = []
        for name in ("synchronize", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda name=name: self.note(name))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "Stream", lambda priority: f"stream {priority}")
        monkeypatch.setattr(torch.cuda, "set_stream", self.note)

    def note(self, call: str) -> None:
        self.calls.append((call, threading.get_ident()))


async def test_the_trainers_thread_has_its_stream_before_it_makes_a_tensor(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(streams.ONE_STREAM, raising=False)
    cuda = FakeCuda(monkeypatch)

    def model(config: TrainConfig) -> LoraModel:
        cuda.note("model")
        raise TrainerFailed("no GPU here")

    gpu = Device("cuda", "bfloat16", capability=(8, 9))
    used = LoraTrainer(model, bases["qwen3"], tmp_path, gpu, Ledger(), cores=lambda: 1)
    for _ in range(2):
        with pytest.raises(TrainerFailed, match="no GPU here"):
            await used.train(TrainRequest(LESSONS, LORA, 1, 0), lambda step: None)
    stream = f"stream {streams.TRAINER_PRIORITY}"
    # The base is there before another stream reads it.
    calls = ["synchronize", "empty_cache", stream, "model", "model"]
    assert [call for call, _ in cuda.calls] == calls
    threads = {thread for _, thread in cuda.calls}
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_on_a_cpu_nothing_is_asked_of_cuda(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(monkeypatch)
    resident = ResidentBase(bases["qwen3"], FP32, Letters())
    used = LoraTrainer(resident.lora, bases["qwen3"], tmp_path, FP32, Ledger(), cores=lambda: 1)
    await used.train(TrainRequest(LESSONS, LORA, 1, 0), lambda step: None)
    assert cuda.calls == []


# Waiting.


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_queued_without_waiting(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, recompute: bool
) -> None:
    model = model_of(kind, bases, META)
    with uploads(monkeypatch):
        model.loss(LESSONS, recompute=recompute)  # may need rotary positions that are not there yet
    with uploads(monkeypatch) as copies:
        model.loss(LESSONS, recompute=recompute).backward()  # type: ignore[no-untyped-call]
    assert copies == ["pinned"]
    assert all(tensor.grad is not None for tensor in model.tensors.values())
    with pytest.raises((NotImplementedError, RuntimeError)):
        next(iter(model.tensors.values())).sum().item()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_of_a_whole_step_the_host_reads_the_loss_alone(bases: dict[str, Path], dtype: Any) -> None:
    device = Device("cpu", dtype)
    adapter = adapter_on(model_of("decoder", bases, device), LORA, device)
    adapter.reset(seed=1)
    for _ in range(2):
        with Reads() as seen:
            loss = adapter.step(LESSONS, 1e-3, PLAIN)
            assert seen.reads == []
            loss.read()
        assert seen.reads == ["aten._local_scalar_dense"]


async def test_on_a_gpu_a_loss_is_read_when_the_next_step_is_queued(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the last one, too: each step is told, in order, with its own loss."""
    from arcd.backends.lora_adapter import TrainableAdapter
    from arcd.backends.loss import Loss

    done: list[str] = []
    step, read = TrainableAdapter.step, Loss.read

    def stepped(self: TrainableAdapter, *args: Any) -> Loss:
        done.append("step")
        return step(self, *args)

    def was_read(self: Loss) -> float:
        done.append("read")
        return read(self)

    monkeypatch.setattr(TrainableAdapter, "step", stepped)
    monkeypatch.setattr(Loss, "read", was_read)
    resident = ResidentBase(bases["qwen3"], FP32, Letters())
    told: dict[str, list[tuple[int, int, float]]] = {}
    for kind in ("cpu", "gpu"):
        folder = tmp_path / kind
        used = LoraTrainer(resident.lora, bases["qwen3"], folder, FP32, Ledger(), cores=lambda: 1)
        if kind == "gpu":
            monkeypatch.setattr(used, "_lag", 1)
        told[kind] = []
        steps = told[kind]

        def tell(now: TrainingStep, steps: list[tuple[int, int, float]] = steps) -> None:
            steps.append((now.step, now.steps, now.loss))

        trained = await used.train(TrainRequest(LESSONS * 3, LORA, 1, 0), tell)
        assert (trained.steps, trained.loss) == (3, steps[-1][2])
        assert trained.tokens == 3 * 95
    assert told["cpu"] == told["gpu"]
    assert [number for number, _, _ in told["gpu"]] == [1, 2, 3]
    assert done == ["step", "read"] * 3 + ["step", "step", "read", "step", "read", "read"]


# Logits.


@pytest.mark.parametrize("kind", KINDS)
def test_no_logits_of_the_whole_vocabulary_are_made(bases: dict[str, Path], kind: str) -> None:
    model = model_of(kind, bases)
    with Reads() as seen:
        model.loss(LESSONS, recompute=False).backward()  # type: ignore[no-untyped-call]
    assert len(Letters().answer_tokens) in seen.widths
    assert VOCABULARY not in seen.widths


def test_the_table_of_outputs_is_back_after_each_loss(bases: dict[str, Path]) -> None:
    model = model_of("peft gemma", bases)
    assert isinstance(model, PeftLora)
    outputs = model._peft.get_output_embeddings()
    model.loss(LESSONS, recompute=False)
    assert model._peft.get_output_embeddings() is outputs


def test_a_table_of_outputs_with_an_adapter_is_used_whole(bases: dict[str, Path]) -> None:
    config = LORA.model_copy(update={"target_modules": ("q_proj", "lm_head")})
    whole = model_of("peft", bases, config=config)
    rows = model_of("peft", bases, config=LORA.model_copy(update={"target_modules": ("q_proj",)}))
    fill(rows)
    with torch.no_grad():
        for name, tensor in rows.tensors.items():
            whole.tensors[name].copy_(tensor)
    # Its adapter is still without effect.
    assert learnt(whole, LESSONS)[0] == pytest.approx(learnt(rows, LESSONS)[0], abs=1e-5)
    assert any("lm_head" in name for name in whole.tensors)


# Attention.


@pytest.mark.parametrize(("capability", "grouped"), [((7, 5), False), ((8, 0), True), (None, True)])
def test_before_ampere_keys_are_repeated_for_the_heads_that_share_them(
    bases: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    grouped: bool,
) -> None:
    asked: list[bool] = []
    sdpa = F.scaled_dot_product_attention

    def counted(q: "torch.Tensor", k: "torch.Tensor", *args: Any, **more: Any) -> "torch.Tensor":
        asked.append(more.get("enable_gqa", False))
        assert more.get("enable_gqa", False) or q.shape[-3] == k.shape[-3]
        return sdpa(q, k, *args, **more)

    device = Device("cpu", "float32", capability=capability)
    usual = model_of("peft", bases)
    model = model_of("peft", bases, device)
    fill(usual, model)
    (true, _), _ = learnt(usual, LESSONS), None
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    loss, _ = learnt(model, LESSONS)
    assert loss == pytest.approx(true, abs=1e-5)
    assert asked == [grouped] * 2


def test_the_decoder_never_asks_for_grouped_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    sdpa = F.scaled_dot_product_attention

    def counted(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor", **more: Any) -> Any:
        asked.append(more)
        assert q.shape == k.shape
        return sdpa(q, k, v, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    q, k, v = (torch.empty(heads, 50, 16, device="meta") for heads in (4, 2, 2))
    found = attention.attend(q, k, v, [(0, 30), (30, 50)])
    assert found.shape == (50, 64)
    assert asked == [{"is_causal": True}] * 2


# The scale of fp16.


def scale(adapter: Any) -> float:
    return cast(float, adapter._scaler.get_scale())


def test_the_scale_of_a_good_training_is_that_of_the_next(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    half = Device("cpu", "float16")
    adapter = adapter_on(model_of("decoder", bases, half), LORA, half)

    def train(seed: int, scale: float) -> None:
        adapter.reset(seed)
        adapter.step(LESSONS, 1e-3, PLAIN)
        adapter._scaler.update(scale)

    train(1, 2**-40)
    adapter.reset(seed=2)
    # That training diverged: it halved the scale at each of its steps, and was not saved.
    assert scale(adapter) == 65536
    train(2, 64.0)
    adapter.save(tmp_path)
    for seed in (3, 4):
        adapter.reset(seed)
        assert scale(adapter) == 64
        train(seed, 2**-40)


# What a GPU's memory is asked.


def test_memory_is_measured_by_step_unless_trainers_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts: dict[str, int] = {"allocated": 5, "peak": 0, "released": 0}
    peaks: Iterator[int] = iter([9, 4])
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "memory_allocated", lambda: counts["allocated"])
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda: counts.update(peak=next(peaks)))
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda: counts["allocated"] + counts["peak"])
    monkeypatch.setattr(cuda, "empty_cache", lambda: counts.update(released=1))
    monkeypatch.setattr(cuda, "memory_reserved", lambda: 20)
    monkeypatch.setattr(cuda, "mem_get_info", lambda: (70, 100))
    memory = GpuMemory(0.5, lambda: 8, 1)
    for peak in (9, 4):
        memory.start()
        assert memory.peak() == peak
    assert memory.allowance(own=3) == 90 - 58
    assert GpuMemory(0.5, lambda: 8, 2).allowance(own=3) == 16
    assert GpuMemory(0.5, lambda: 8, 2).peak() is None
    memory.release()
    assert counts["released"] == 1
