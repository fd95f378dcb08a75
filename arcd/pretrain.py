"""Pretraining of arcd's own base model from scratch: resumable, on a CPU's cores or on a GPU.

A run is a folder, locked like a home, with one checkpoint, written to a temporary name and renamed.
Every batch is a pure function of (seed, worker, step), so a run that was killed goes on as if it
had not been. On a CPU, single-threaded workers that average their gradients beat threads inside one
process.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from arcd.cellmodel import CellModel
from arcd.corpus import Corpus, batch, open_corpus
from arcd.encoding import PAD, CellEncoding
from arcd.errors import BadBase
from arcd.processes import HomeLock, cores
from arcd.prompts import IGNORED, Lesson, lesson
from arcd.seeds import generator
from arcd.tasks import Pair, TaskSet
from arcd.tensors import collate
from arcd.views import identity


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data."""

    steps: int
    width: int = 256
    layers: int = 6
    context: int = 4096
    """Positions that the model is made for."""
    max_seq_len: int = 3072
    """Tokens of a lesson at most."""
    composed: float = 0.5
    """Share of the lessons that are of composed tasks."""
    batch_tokens: int = 4096
    """Tokens of one worker's batch at most, padding included."""
    workers: int = 1
    lr: float = 4e-3
    warmup: int = 100
    decay: float = 0.4
    """Last share of the steps, in which the learning rate falls linearly to zero."""
    weight_decay: float = 0.05
    seed: int = 0
    compiled: bool = False
    """Whether the layers are compiled, which needs a C++ compiler."""


@dataclass(frozen=True)
class Progress:
    """One line of a pretraining: losses in nats, per token in training, per grid else."""

    step: int
    steps: int
    loss: float
    held_out: float | None
    """Of examples of the training tasks that are not trained on."""
    unseen: float | None
    """Of the tests of tasks that are not trained on."""
    tokens: int
    tokens_per_second: float


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step as a share of the highest: warm-up, plateau, fall to zero."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    fall = (recipe.steps - step) / max(1.0, recipe.steps * recipe.decay)
    return max(0.0, min(rise, fall))


def pretrain(
    folder: Path,
    recipe: Recipe,
    rearc: Path | None,
    device: str,
    report: Callable[[Progress], None],
    every: int = 100,
    unseen: TaskSet | None = None,
) -> None:
    """Train, or go on training, in `folder`; the finished model is in `folder/model`.

    `unseen` are tasks with solutions that are measured and never trained on. `report` is called in
    the first worker every `every` steps, each followed by a checkpoint. Raises BadBase where the
    folder holds a run of another shape, HomeInUse while another process trains in it.
    """
    with HomeLock.take(folder):
        _check_shape(folder, recipe)
        corpus = open_corpus(rearc)
        if recipe.workers == 1:
            _work(0, folder, recipe, corpus, device, report, every, unseen)
            return
        meeting = folder / "meeting"
        # Workers that met at the file of a run that was killed would wait for its dead.
        meeting.unlink(missing_ok=True)
        # Forked, so that the workers share the corpus, and the lock if this process is killed; no
        # thread has been started yet.
        start_processes(  # type: ignore[no-untyped-call]
            _join,
            (meeting, folder, recipe, corpus, device, report, every, unseen),
            recipe.workers,
            start_method="fork",
        )


def _join(
    worker: int,
    meeting: Path,
    folder: Path,
    recipe: Recipe,
    corpus: Corpus,
    device: str,
    report: Callable[[Progress], None],
    every: int,
    unseen: TaskSet | None,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting.absolute()}", rank=worker, world_size=recipe.workers
    )
    try:
        _work(worker, folder, recipe, corpus, device, report, every, unseen)
    finally:
        dist.destroy_process_group()


def _work(
    worker: int,
    folder: Path,
    recipe: Recipe,
    corpus: Corpus,
    device: str,
    report: Callable[[Progress], None],
    every: int,
    unseen: TaskSet | None,
) -> None:
    torch.manual_seed(recipe.seed)  # the same first weights in every worker
    model = CellModel(recipe.width, recipe.layers, recipe.context, compiled=recipe.compiled).to(
        device
    )
    optimizers = _optimizers(model, recipe)
    first, tokens = _restore(folder, recipe, model, optimizers, device)
    parallel = DistributedDataParallel(model) if recipe.workers > 1 else model
    measures: dict[str, list[Lesson]] = {}
    if worker == 0:
        measures = {"held out": held_out_lessons(corpus, recipe)}
        measures["unseen"] = unseen_lessons(unseen, recipe) if unseen else []
    losses: list[Tensor] = []
    clock, counted = time.monotonic(), tokens
    batches = _batches(corpus, recipe, worker, first, prefetch=device != "cpu")
    for step, (lessons, lesson_tokens) in enumerate(batches, first):
        losses.append(_step(parallel, optimizers, lessons, rate(recipe, step), recipe, device))
        tokens += lesson_tokens * recipe.workers
        done = step + 1
        if worker == 0 and (done % every == 0 or done == recipe.steps):
            measured = {
                name: _nats(model, lessons, device)
                for name, lessons in measures.items()
                if done % (5 * every) == 0 or done == recipe.steps
            }
            _save(folder, recipe, done, tokens, model, optimizers)
            loss = float(torch.stack(losses).mean())
            seconds = time.monotonic() - clock
            rates = (tokens - counted) / seconds
            found = (measured.get("held out"), measured.get("unseen"))
            report(Progress(done, recipe.steps, loss, *found, tokens, rates))
            losses.clear()
            clock, counted = time.monotonic(), tokens
    if worker == 0:
        model.export(folder / "model")


def _step(
    model: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    lessons: list[Lesson],
    share: float,
    recipe: Recipe,
    device: str,
) -> Tensor:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * share
    loss: Tensor = model(*collate(lessons, PAD, device)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss.detach()


def _optimizers(model: CellModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the backbone, AdamW for the rest.

    Step for step Muon was well ahead of AdamW alone (see the card of the base model).
    """
    matrices = [p for p in model.backbone.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return [
        torch.optim.Muon(
            matrices, recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, recipe.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


class _Steps(Dataset[tuple[list[Lesson], int]]):
    """The batches of one worker by step."""

    def __init__(self, corpus: Corpus, recipe: Recipe, worker: int) -> None:
        self._corpus, self._recipe, self._worker = corpus, recipe, worker

    def __getitem__(self, step: int) -> tuple[list[Lesson], int]:
        recipe = self._recipe
        lessons = batch(
            self._corpus,
            recipe.seed,
            self._worker,
            step,
            tokens=recipe.batch_tokens,
            limit=recipe.max_seq_len,
            composed=recipe.composed,
        )
        return lessons, sum(len(lesson.tokens) for lesson in lessons)


def _batches(
    corpus: Corpus, recipe: Recipe, worker: int, first: int, *, prefetch: bool
) -> Iterator[tuple[list[Lesson], int]]:
    """From step `first` on; ahead of time in processes of their own where a GPU would wait."""
    yield from DataLoader(
        _Steps(corpus, recipe, worker),
        batch_size=None,
        sampler=range(first, recipe.steps),
        num_workers=cores() if prefetch else 0,
    )


def held_out_lessons(corpus: Corpus, recipe: Recipe) -> list[Lesson]:
    """Of held-out examples, always the same."""
    rng = generator(recipe.seed, "held out")
    return [corpus.lesson(rng, recipe.max_seq_len, held_out=True) for _ in range(64)]


def unseen_lessons(tasks: TaskSet, recipe: Recipe) -> list[Lesson]:
    """The tests of these tasks, as far as they fit."""
    found = []
    for task in tasks.tasks:
        for query, output in zip(task.tests, tasks.solutions.get(task.id, ()), strict=False):
            whole = replace(task, train=(*task.train, Pair(query, output)))
            target, rng = len(task.train), generator(recipe.seed, "unseen", task.id)
            view = identity(whole)
            made = lesson(whole, target, view, CellEncoding(), recipe.max_seq_len, rng)
            if isinstance(made, Lesson):
                found.append(made)
    return found


@torch.no_grad()
def _nats(model: CellModel, lessons: list[Lesson], device: str) -> float | None:
    """For each target grid, on the average."""
    total = 0.0
    for each in lessons:
        before = (i for i in range(len(each.labels), 0, -1) if each.labels[i - 1] == IGNORED)
        answer = next(before)
        labels = (*[IGNORED] * answer, *each.labels[answer:])
        tokens, wanted = torch.tensor([each.tokens]), torch.tensor([labels])
        total += float(model(tokens.to(device), wanted.to(device)).sum())
    return total / len(lessons) if lessons else None


def _save(
    folder: Path,
    recipe: Recipe,
    step: int,
    tokens: int,
    model: CellModel,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    state = {
        "recipe": asdict(recipe),
        "step": step,
        "tokens": tokens,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    temporary = folder / "checkpoint.tmp"
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "checkpoint.pt")


def _check_shape(folder: Path, recipe: Recipe) -> None:
    """Before there are workers: what is raised in one reaches nobody as it is."""
    path = folder / "checkpoint.pt"
    if path.exists():
        begun = torch.load(path, mmap=True, map_location="cpu", weights_only=True)["recipe"]
        for key in ("width", "layers"):
            if begun[key] != getattr(recipe, key):
                raise BadBase(f"{path}: was begun with {key}={begun[key]}")


def _restore(
    folder: Path,
    recipe: Recipe,
    model: CellModel,
    optimizers: list[torch.optim.Optimizer],
    device: str,
) -> tuple[int, int]:
    """(next step, tokens so far) of the checkpoint in the folder, or of a new run."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0, 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["tokens"]
