"""The LoRA trainer on a tiny model: resets, schedules, starts, cancellation."""

import json
from pathlib import Path

import anyio
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from arcd.backends import Trained, TrainingStep  # noqa: E402
from arcd.backends.lora import LoraTrainer, factor  # noqa: E402
from arcd.basemodel import Device, load_model, open_encoding  # noqa: E402
from arcd.cellmodel import CellModel  # noqa: E402
from arcd.config import TrainConfig, resolve  # noqa: E402
from arcd.errors import BadBase  # noqa: E402
from arcd.ledger import Ledger  # noqa: E402
from arcd.prompts import Lesson  # noqa: E402
from arcd.solver import build_lessons  # noqa: E402
from arcd.tasks import load  # noqa: E402

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

DEVICE = Device("cpu", "float32")
TASKS = {task.id: task for task in load("arc1-train:25ff71a9,d037b0a7").tasks}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    CellModel(64, 2, 2048).export(folder)
    return folder


def trainer(base: Path, folder: Path, **settings: object) -> LoraTrainer:
    config = TrainConfig(steps=6, lr=2e-2, rank=8, **settings)
    model = load_model(base, DEVICE)
    return LoraTrainer(model, base, folder, DEVICE, config, 0, Ledger())


def lessons(base: Path, task: str, steps: int = 6) -> list[Lesson]:
    config = resolve(settings=[f"train.steps={steps}"])
    built = build_lessons(TASKS[task], config, open_encoding(base, "auto"), 2048)
    assert isinstance(built, list)
    return built


def weights(trained: Trained) -> dict[str, "torch.Tensor"]:
    return load_file(trained.adapter.path / "adapter_model.safetensors")


def same(a: Trained, b: Trained) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def ignore(step: TrainingStep) -> None:
    pass


async def test_the_loss_falls_and_every_step_is_reported(base: Path, tmp_path: Path):
    steps: list[TrainingStep] = []
    trained = await trainer(base, tmp_path).train(lessons(base, "25ff71a9", 20), 1, steps.append)
    assert [s.step for s in steps] == list(range(1, 21))
    assert steps[-1].loss < 0.9 * steps[0].loss
    assert trained.loss == steps[-1].loss
    assert trained.tokens == sum(len(lesson.tokens) for lesson in lessons(base, "25ff71a9", 20))


async def test_nothing_of_a_task_is_left_for_the_next(base: Path, tmp_path: Path):
    used = trainer(base, tmp_path / "used")
    await used.train(lessons(base, "d037b0a7"), 1, ignore)
    second = await used.train(lessons(base, "25ff71a9"), 2, ignore)
    fresh = await trainer(base, tmp_path / "fresh").train(lessons(base, "25ff71a9"), 2, ignore)
    assert second.adapter.serial == 1
    assert same(second, fresh)


async def test_another_seed_gives_another_adapter(base: Path, tmp_path: Path):
    used = trainer(base, tmp_path)
    first = await used.train(lessons(base, "25ff71a9"), 1, ignore)
    second = await used.train(lessons(base, "25ff71a9"), 2, ignore)
    assert not same(first, second)


async def test_the_base_itself_is_never_trained(base: Path, tmp_path: Path):
    model = load_model(base, DEVICE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    used = LoraTrainer(model, base, tmp_path, DEVICE, TrainConfig(), 0, Ledger())
    await used.train(lessons(base, "25ff71a9"), 1, ignore)
    after = {name.replace(".base_layer", ""): v for name, v in model.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


async def test_recomputing_activations_changes_nothing_but_the_time(base: Path, tmp_path: Path):
    used = trainer(base, tmp_path)
    plain = await used.train(lessons(base, "25ff71a9"), 1, ignore)
    frugal = await used.train(lessons(base, "25ff71a9"), 1, ignore, frugal=True)
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(frugal)[name], rtol=1e-3, atol=1e-4)


async def test_a_given_adapter_is_where_training_starts(base: Path, tmp_path: Path):
    first = await trainer(base, tmp_path / "a").train(lessons(base, "25ff71a9", 20), 1, ignore)
    steps: list[TrainingStep] = []
    going_on = trainer(base, tmp_path / "b", start=first.adapter.path)
    await going_on.train(lessons(base, "25ff71a9"), 2, steps.append)
    fresh: list[TrainingStep] = []
    await trainer(base, tmp_path / "c").train(lessons(base, "25ff71a9"), 2, fresh.append)
    assert steps[0].loss < 0.95 * fresh[0].loss


async def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path):
    first = await trainer(base, tmp_path / "a").train(lessons(base, "25ff71a9"), 1, ignore)
    with pytest.raises(BadBase, match="another base, rank or set"):
        LoraTrainer(
            load_model(base, DEVICE),
            base,
            tmp_path / "b",
            DEVICE,
            TrainConfig(rank=16, start=first.adapter.path),
            0,
            Ledger(),
        )
    (first.adapter.path / "arcd.json").write_text(json.dumps({"base": "other"}))
    with pytest.raises(BadBase, match="an adapter of another base"):
        trainer(base, tmp_path / "b", start=first.adapter.path)


async def test_cancellation_ends_the_training_within_a_step_and_leaves_nothing(
    base: Path, tmp_path: Path
):
    used = trainer(base, tmp_path)
    steps: list[TrainingStep] = []
    with anyio.CancelScope() as scope:

        def stop(step: TrainingStep) -> None:
            steps.append(step)
            if step.step == 2:
                scope.cancel()

        await used.train(lessons(base, "25ff71a9", 50), 1, stop)
    assert scope.cancelled_caught
    assert len(steps) <= 3
    assert list(tmp_path.iterdir()) == []
    assert (await used.train(lessons(base, "25ff71a9"), 1, ignore)).adapter.serial == 0


async def test_a_base_without_the_target_modules_is_refused(base: Path, tmp_path: Path):
    with pytest.raises(BadBase, match="c_attn"):
        trainer(base, tmp_path, target_modules=("c_attn",))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_rise_to_the_full_rate_and_never_exceed_it(schedule: str):
    config = TrainConfig(schedule=schedule, warmup=0.1)
    shares = [factor(config, step, 100) for step in range(100)]
    assert shares[:10] == sorted(shares[:10])
    assert max(shares) == shares[10] == 1.0
    assert min(shares) > 0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert (shares[-1] < 0.05) == (schedule != "constant")
