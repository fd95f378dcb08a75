"""The LoRA trainer on a tiny model: resets, schedules, starts, shapes, cancellation."""

import asyncio
import errno
import math
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import anyio
import anyio.to_thread
import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from safetensors import SafetensorError
from safetensors.torch import load_file

from arcd.arc.tasks import load
from arcd.backends.decoder_lora import DecoderLora
from arcd.backends.lora_adapter import TrainableAdapter
from arcd.backends.lora_trainer import LoraTrainer, TrainingHandle, learning_rate_factor
from arcd.backends.loss import Loss
from arcd.backends.memory_forecast import Plan
from arcd.backends.protocols import Adapter, Trained, TrainingStep, TrainRequest
from arcd.backends.resident_base import ResidentBase
from arcd.backends.trainer_pool import TrainerPool
from arcd.config import TrainConfig, resolve
from arcd.errors import DiskFull, OutOfMemory, StoreFailed, TrainerFailed
from arcd.model.base_model import open_encoding
from arcd.model.device import Device
from arcd.model.encoding import CellEncoding
from arcd.model.lessons import build_lessons
from arcd.model.prompts import Lesson, TooLong
from arcd.pretrain.cell_model import CellModel
from arcd.system.ledger import Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

DEVICE = Device("cpu", "float32")
TASKS = {task.id: task for task in load("arc1-train:25ff71a9,d037b0a7").tasks}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    CellModel(64, 2, 2048).export(folder)
    return folder


def trainer(base: Path, folder: Path) -> LoraTrainer:
    resident = ResidentBase(base, DEVICE, CellEncoding())
    return LoraTrainer(resident.lora, base, folder, DEVICE, Ledger(), cores=lambda: 1)


def frozen(resident: ResidentBase) -> "list[torch.Tensor]":
    """All weights of the base."""
    assert resident._frozen is not None
    weights = resident._frozen.weights
    return [weights.embedding, weights.final_norm] + [
        tensor
        for layer in weights.layers
        for tensor in (layer.attention_norm, layer.mlp_norm, *(s.weight for s in layer.stacks))
    ]


Schedule = Literal["constant", "linear", "cosine"]


class Settings(TypedDict, total=False):
    """What the tests change of a TrainConfig, beside the steps."""

    batch_size: int
    lr: float
    schedule: Schedule
    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    dropout: float
    start: Path


def wanted(
    base: Path,
    task: str = "25ff71a9",
    *,
    steps: int = 6,
    seed: int = 1,
    serial: int = 0,
    frugal: bool = False,
    **settings: Unpack[Settings],
) -> TrainRequest:
    asked: Settings = {"lr": 2e-2, "rank": 8, **settings}
    config = TrainConfig(steps=steps, **asked)
    return TrainRequest(lessons(base, task, steps), config, seed, serial, frugal)


def lessons(base: Path, task: str, steps: int) -> list[Lesson]:
    config = resolve(settings=[f"train.steps={steps}"])
    built = build_lessons([TASKS[task]], config, open_encoding(base, "auto"), 2048)
    assert not isinstance(built, TooLong)
    return list(built)


def weights(trained: Trained) -> "dict[str, torch.Tensor]":
    file = trained.adapter.path / "adapter_model.safetensors"
    found: dict[str, torch.Tensor] = load_file(file)
    return found


def same(a: Trained, b: Trained) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def ignore(step: TrainingStep) -> None:
    pass


def recorded_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of each step that is made from now on."""
    threads: list[int] = []
    step = TrainableAdapter.step

    def counted(self: TrainableAdapter, batch: Sequence[Lesson], lr: float, plan: Plan) -> Loss:
        threads.append(threading.get_ident())
        return step(self, batch, lr, plan)

    monkeypatch.setattr(TrainableAdapter, "step", counted)
    return threads


async def test_the_loss_falls_and_every_step_is_reported(base: Path, tmp_path: Path) -> None:
    steps: list[TrainingStep] = []
    request = wanted(base, steps=30)
    used = TrainerPool([trainer(base, tmp_path)])
    trained = await used.train(request, steps.append)
    assert [s.step for s in steps] == list(range(1, 31))
    assert steps[-1].loss < 0.9 * steps[0].loss
    assert trained.loss == steps[-1].loss
    assert trained.tokens == sum(len(lesson.tokens) for lesson in request.lessons)
    assert (used.steps, used.busy) == (30 + 1, False), "its end counts, too"


@pytest.mark.parametrize(
    ("wrong", "reason", "asked"),
    [
        (lambda loss: loss * math.nan, "the loss became nan in training", 6),
        # The derivative of the root at 0 is infinite, and 0 times that is NaN.
        (lambda loss: loss + (loss * 0).sqrt(), "its weights became infinite or NaN", 3),
    ],
)
async def test_a_training_that_computes_no_numbers_leaves_no_adapter(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: "Callable[[torch.Tensor], torch.Tensor]",
    reason: str,
    asked: int,
) -> None:
    steps: list[TrainingStep] = []
    loss = DecoderLora.loss

    def broken(self: DecoderLora, batch: Sequence[Lesson], *, recompute: bool) -> "torch.Tensor":
        found = loss(self, batch, recompute=recompute)
        return wrong(found) if len(steps) == 2 else found

    used = trainer(base, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(DecoderLora, "loss", broken)
        patch.setattr(TrainingHandle, "tell", lambda self, step: steps.append(step))
        with pytest.raises(TrainerFailed, match=reason):
            await used.train(wanted(base, steps=asked), ignore)
    assert len(steps) == 3
    assert list(tmp_path.iterdir()) == []
    assert math.isfinite((await used.train(wanted(base), ignore)).loss)


async def test_an_adapter_has_the_number_it_was_asked_for(base: Path, tmp_path: Path) -> None:
    trained = await trainer(base, tmp_path).train(wanted(base, serial=41), ignore)
    assert trained.adapter.serial == 41
    assert trained.adapter.path == tmp_path / "adapter-41"


async def test_nothing_of_a_task_is_left_for_the_next(base: Path, tmp_path: Path) -> None:
    used = trainer(base, tmp_path / "used")
    await used.train(wanted(base, "d037b0a7"), ignore)
    second = await used.train(wanted(base, seed=2, serial=1), ignore)
    fresh = await trainer(base, tmp_path / "fresh").train(wanted(base, seed=2), ignore)
    assert same(second, fresh)


@pytest.mark.parametrize(
    "settings",
    [{"rank": 16}, {"target_modules": ("q_proj",)}, {"alpha": 4.0}, {"dropout": 0.1}],
    ids=lambda settings: next(iter(settings)),
)
async def test_nothing_of_a_job_with_other_tensors_is_left_for_the_next(
    base: Path, tmp_path: Path, settings: Settings
) -> None:
    used = trainer(base, tmp_path / "used")
    await used.train(wanted(base, "d037b0a7", **settings), ignore)
    second = await used.train(wanted(base, serial=1), ignore)
    fresh = await trainer(base, tmp_path / "fresh").train(wanted(base), ignore)
    assert same(second, fresh)


async def test_jobs_that_differ_in_their_course_alone_share_the_tensors(
    base: Path, tmp_path: Path
) -> None:
    used = trainer(base, tmp_path / "used")
    await used.train(wanted(base, lr=1e-3, schedule="constant"), ignore)
    second = await used.train(wanted(base, serial=1, batch_size=1), ignore)
    fresh = await trainer(base, tmp_path / "fresh").train(wanted(base, batch_size=1), ignore)
    assert same(second, fresh)


async def test_another_seed_gives_another_adapter(base: Path, tmp_path: Path) -> None:
    used = trainer(base, tmp_path)
    first = await used.train(wanted(base), ignore)
    second = await used.train(wanted(base, seed=2, serial=1), ignore)
    assert not same(first, second)


@pytest.mark.parametrize("frugal", [False, True])
async def test_the_same_request_gives_the_same_adapter_whatever_other_threads_draw(
    base: Path, tmp_path: Path, frugal: bool
) -> None:
    """Masks of dropout are the request's own."""
    used = trainer(base, tmp_path)
    quiet = await used.train(wanted(base, steps=3, dropout=0.3, frugal=frugal), ignore)
    over = threading.Event()

    def draw() -> None:
        while not over.wait(0.0005):
            torch.rand(10)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        busy = wanted(base, steps=3, serial=1, dropout=0.3, frugal=frugal)
        disturbed = await used.train(busy, ignore)
    finally:
        over.set()
        thread.join()
    assert same(quiet, disturbed)
    plain = await used.train(wanted(base, steps=3, serial=2, frugal=frugal), ignore)
    assert not same(quiet, plain)


async def test_the_base_itself_is_never_trained(base: Path, tmp_path: Path) -> None:
    resident = ResidentBase(base, DEVICE, CellEncoding())
    resident.load()
    before = [tensor.clone() for tensor in frozen(resident)]
    used = LoraTrainer(resident.lora, base, tmp_path, DEVICE, Ledger(), cores=lambda: 1)
    await used.train(wanted(base), ignore)
    await used.train(wanted(base, serial=1, rank=16), ignore)
    assert len(before) == 2 + 2 * (2 + 4)
    assert all(map(torch.equal, before, frozen(resident)))


async def test_recomputing_activations_changes_nothing_but_the_time(
    base: Path, tmp_path: Path
) -> None:
    used = trainer(base, tmp_path)
    plain = await used.train(wanted(base), ignore)
    frugal = await used.train(wanted(base, serial=1, frugal=True), ignore)
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(frugal)[name], rtol=1e-3, atol=1e-4)


async def test_a_given_adapter_is_where_training_starts(base: Path, tmp_path: Path) -> None:
    first = await trainer(base, tmp_path / "a").train(wanted(base, steps=20), ignore)
    steps: list[TrainingStep] = []
    going_on = wanted(base, seed=2, start=first.adapter.path)
    await trainer(base, tmp_path / "b").train(going_on, steps.append)
    fresh: list[TrainingStep] = []
    await trainer(base, tmp_path / "c").train(wanted(base, seed=2), fresh.append)
    assert steps[0].loss < 0.95 * fresh[0].loss


async def test_a_start_that_does_not_fit_fails_its_task_alone(base: Path, tmp_path: Path) -> None:
    first = await trainer(base, tmp_path / "a").train(wanted(base), ignore)
    used = trainer(base, tmp_path / "b")
    with pytest.raises(TrainerFailed, match="another base, rank or set"):
        await used.train(wanted(base, rank=16, start=first.adapter.path), ignore)
    with pytest.raises(TrainerFailed, match="no adapter in it"):
        await used.train(wanted(base, target_modules=("q_proj",), start=tmp_path), ignore)
    assert same(await used.train(wanted(base), ignore), first)


async def test_a_training_that_is_cancelled_at_its_very_end_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = trainer(base, tmp_path)
    save, loop, scope = used._save, asyncio.get_running_loop(), anyio.CancelScope()
    saved: list[Path] = []

    def save_and_cancel(trained: TrainableAdapter, serial: int) -> Adapter:
        adapter = save(trained, serial)
        saved.append(adapter.path)
        cancelled = threading.Event()

        def cancel() -> None:
            scope.cancel()
            cancelled.set()

        loop.call_soon_threadsafe(cancel)
        cancelled.wait()
        return adapter

    monkeypatch.setattr(used, "_save", save_and_cancel)
    with scope:
        await used.train(wanted(base), ignore)
    assert scope.cancelled_caught
    assert [path.parent for path in saved] == [tmp_path]
    assert list(tmp_path.iterdir()) == []


async def test_cancellation_ends_the_training_within_a_step_and_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However busy the event loop is: a step waits until it has dealt with the one before."""
    made: list[int] = []
    may_go_on = threading.Semaphore(1)
    step = TrainableAdapter.step

    def patient(self: TrainableAdapter, batch: Sequence[Lesson], lr: float, plan: Plan) -> Loss:
        may_go_on.acquire(timeout=5)
        made.append(len(made) + 1)
        return step(self, batch, lr, plan)

    loop = asyncio.get_running_loop()

    def go_on(rounds_of_the_loop: int = 10) -> None:
        if rounds_of_the_loop:
            loop.call_soon(go_on, rounds_of_the_loop - 1)
        else:
            may_go_on.release()

    used = TrainerPool([trainer(base, tmp_path)])
    with anyio.CancelScope() as scope, monkeypatch.context() as patched:
        patched.setattr(TrainableAdapter, "step", patient)

        def stop(step: TrainingStep) -> None:
            if step.step == 2:
                scope.cancel()
            go_on()

        await used.train(wanted(base, steps=50), stop)
    assert scope.cancelled_caught
    assert len(made) <= 3
    assert list(tmp_path.iterdir()) == []
    assert not used.busy
    assert (await used.train(wanted(base), ignore)).adapter.path.is_dir()


async def test_what_goes_wrong_where_progress_is_told_ends_the_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(step: TrainingStep) -> None:
        raise StoreFailed("the disk is full")

    steps = recorded_steps(monkeypatch)
    used = trainer(base, tmp_path)
    with pytest.raises(StoreFailed, match="the disk is full"):
        await used.train(wanted(base, steps=50), full)
    assert len(steps) < 50
    assert (await used.train(wanted(base), ignore)).adapter.path.is_dir()


async def test_all_trainings_are_in_one_thread_whoever_else_needs_threads(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP keeps a team for each that has ever had one; too many make all of them slow."""
    threads = recorded_steps(monkeypatch)
    used = trainer(base, tmp_path)
    async with anyio.create_task_group() as others:
        for serial in range(3):
            others.start_soon(anyio.to_thread.run_sync, time.sleep, 0.01)
            await used.train(wanted(base, steps=2, serial=serial), ignore)
    assert len(threads) == 6
    assert len(set(threads)) == 1


async def test_target_modules_that_the_base_lacks_fail_their_task_alone(
    base: Path, tmp_path: Path
) -> None:
    used = trainer(base, tmp_path)
    with pytest.raises(TrainerFailed, match="c_attn"):
        await used.train(wanted(base, target_modules=("c_attn",)), ignore)
    assert (await used.train(wanted(base), ignore)).adapter.path.is_dir()


async def test_a_place_for_adapters_that_cannot_be_fails_the_task_alone(
    base: Path, tmp_path: Path
) -> None:
    place = tmp_path / "adapters"
    place.write_text("")
    used = trainer(base, place)
    with pytest.raises(TrainerFailed, match="File exists"):
        await used.train(wanted(base), ignore)
    place.unlink()
    assert (await used.train(wanted(base), ignore)).adapter.path.is_dir()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("IoError(Os { code: 28, kind: StorageFull })"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
    ids=str,
)
async def test_a_full_disk_is_told_from_other_failures_and_leaves_nothing_half_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def half(self: TrainableAdapter, folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_text("half")
        raise error

    used = trainer(base, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(TrainableAdapter, "save", half)
        with pytest.raises(DiskFull, match=r"no room for an adapter of \d"):
            await used.train(wanted(base), ignore)
    assert list(tmp_path.iterdir()) == []
    assert (await used.train(wanted(base), ignore)).adapter.path.is_dir()


async def test_without_room_for_its_adapter_nothing_is_trained(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, steps = trainer(base, tmp_path), recorded_steps(monkeypatch)
    saved = (await used.train(wanted(base), ignore)).adapter.path / "adapter_model.safetensors"
    usage = shutil.disk_usage(tmp_path)
    done = len(steps)
    size = saved.stat().st_size
    with monkeypatch.context() as patched:
        # The file has a header beside the weights.
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size * 9 // 10))
        with pytest.raises(DiskFull):
            await used.train(wanted(base, serial=1), ignore)
        assert len(steps) == done
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
        await used.train(wanted(base, serial=1), ignore)


async def test_a_step_that_failed_leaves_no_scaler_that_refuses_the_next(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Device("cpu", "float16")
    resident = ResidentBase(base, half, CellEncoding())
    used = LoraTrainer(resident.lora, base, tmp_path, half, Ledger(), cores=lambda: 1)
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", _full)
        with pytest.raises(OutOfMemory):
            await used.train(wanted(base), ignore)
    assert (await used.train(wanted(base), ignore)).adapter.path.is_dir()


def _full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_rise_to_the_full_rate_and_never_exceed_it(schedule: Schedule) -> None:
    config = TrainConfig(schedule=schedule, warmup=0.1)
    factors = [learning_rate_factor(config, step, 100) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == factors[10] == 1.0
    assert min(factors) > 0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert (factors[-1] < 0.05) == (schedule != "constant")
