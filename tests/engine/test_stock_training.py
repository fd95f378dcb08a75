"""The baseline of `arcd bench` trains what arcd trains: the same loss on the same lessons."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from arcd.arc.tasks import load
from arcd.backends.stock.training import PeftTraining
from arcd.config import TrainConfig, resolve
from arcd.model.base_model import open_encoding
from arcd.model.device import Device
from arcd.model.lessons import Lessons, build_lessons
from arcd.pretrain.cell_model import CellModel

pytestmark = pytest.mark.engine

STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    CellModel(64, 2, 2048).export(folder)
    return folder


def opened(base: Path, config: TrainConfig, *, labelled_only: bool = False) -> PeftTraining:
    return PeftTraining(
        base,
        config,
        Device("cpu", "float32"),
        0,
        steps=STEPS,
        seed=1,
        threads=1,
        labelled_only=labelled_only,
    )


def taught(base: Path) -> tuple[TrainConfig, Lessons]:
    config = resolve(settings=[f"train.steps={STEPS}", "train.lr=0.01"])
    lessons = build_lessons(
        load("arc1-train:25ff71a9").tasks, config, open_encoding(base, "auto"), 2048
    )
    assert isinstance(lessons, Lessons)
    return config.train, lessons


def test_logits_of_labelled_tokens_give_the_same_losses(base: Path) -> None:
    config, lessons = taught(base)
    usual, labelled = (opened(base, config, labelled_only=few) for few in (False, True))
    for step in range(STEPS):
        batch = list(lessons[2 * step : 2 * step + 2])
        assert labelled.step(batch) == pytest.approx(usual.step(batch), rel=1e-4)


def test_a_merged_model_has_learnt_what_the_adapter_has(base: Path, tmp_path: Path) -> None:
    config, lessons = taught(base)
    first = opened(base, config)
    losses = [first.step(list(lessons[2 * step : 2 * step + 2])) for step in range(STEPS)]
    assert losses[-1] < losses[0]
    first.save_merged(tmp_path / "merged")
    # A fresh adapter changes nothing, so its first loss is that of the model.
    assert opened(tmp_path / "merged", config).step(list(lessons[:2])) < losses[0]
