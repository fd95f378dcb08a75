"""What a run keeps in its folder: one checkpoint while it goes on, the model at the end.

Both are written to a temporary name and renamed, so that a process that is killed leaves the old
one or the new one. Knows nothing of how the weights are learnt.
"""

import os
import pickle
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from arcd.errors import ArcdError, BadBase
from arcd.pretrain.cell_model import CellModel
from arcd.pretrain.run import CHANGEABLE, Run

CHECKPOINT_FILE = "checkpoint.pt"
MODEL_FOLDER = "model"


@dataclass
class TrainingState:
    """Everything that training changes; a checkpoint holds all of it."""

    model: CellModel
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    """Steps done, which is also the next step's number."""
    tokens: int = 0
    """See `Progress.tokens`."""


def save(run: Run, state: TrainingState) -> None:
    """Write the checkpoint, durable when it returns. Raises ArcdError where the disk refuses."""
    value = {
        "recipe": asdict(run.recipe),
        "examples": run.corpus.examples,
        "step": state.step,
        "tokens": state.tokens,
        "model": state.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
    }
    path, temporary = run.folder / CHECKPOINT_FILE, run.folder / "checkpoint.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError where the disk is full
        raise ArcdError(f"{path}: not written: {error}") from None


def restore(run: Run, state: TrainingState) -> None:
    """Bring the state to the run's checkpoint; a run without one stays at its beginning."""
    path = run.folder / CHECKPOINT_FILE
    if not path.exists():
        return
    saved = torch.load(path, map_location=run.device, weights_only=True)
    state.model.load_state_dict(saved["model"])
    for optimizer, value in zip(state.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(value)
    state.step, state.tokens = saved["step"], saved["tokens"]


def check(run: Run) -> None:
    """Raise BadBase where the folder's checkpoint is of another run, or is no checkpoint.

    Only fields in `CHANGEABLE` may differ, and the run may not be past its last step.
    """
    path = run.folder / CHECKPOINT_FILE
    if not path.exists():
        return
    try:
        saved = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        begun = {**saved["recipe"], "re-arc examples": saved["examples"]}
    except (OSError, EOFError, RuntimeError, pickle.PickleError, KeyError, TypeError) as error:
        raise BadBase(f"{path}: not a checkpoint of a pretraining: {error}") from None
    wanted = {**asdict(run.recipe), "re-arc examples": run.corpus.examples}
    for key, value in begun.items():
        if key not in CHANGEABLE and wanted.get(key) != value:
            raise BadBase(f"{path}: was begun with {key}={value}, not {wanted.get(key)}")
    if saved["step"] > run.recipe.steps:
        raise BadBase(f"{path}: is at step {saved['step']} already, past {run.recipe.steps}")


def export(model: CellModel, folder: Path) -> None:
    """Write the finished model; files of an earlier model in the folder are removed first.

    A folder that held files of two models would load as neither.
    """
    fresh, final = folder / "model.tmp", folder / MODEL_FOLDER
    shutil.rmtree(fresh, ignore_errors=True)
    model.export(fresh)
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)
