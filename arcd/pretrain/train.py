"""Pretraining of arcd's own base model from scratch: resumable, on a CPU's cores or on a GPU.

A run is a folder, locked like a home, with one checkpoint, written to a temporary name and renamed.
Every batch is a pure function of (seed, worker, step), so a run that was killed goes on as if it
had not been. On a CPU, single-threaded workers that average their gradients beat threads inside one
process.
"""

import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from arcd.arc.tasks import Pair, Task, TaskSet
from arcd.arc.views import identity
from arcd.errors import ArcdError, BadBase, BadConfig, BadTask, TrainerFailed
from arcd.model.collate import collate
from arcd.model.encoding import PAD, CellEncoding
from arcd.model.prompts import IGNORED, Lesson, lesson
from arcd.pretrain.cell_model import CellModel
from arcd.pretrain.corpus import Corpus, batch, open_corpus
from arcd.pretrain.decontamination import EvaluationSet, all_pairs
from arcd.system.home_lock import HomeLock
from arcd.system.processes import cores, die_with_parent
from arcd.system.seeds import generator

CHECKPOINT = "checkpoint.pt"

CHANGEABLE = {"steps", "lr", "batch_tokens", "workers", "compiled"}
"""What of a recipe may change while a run goes on: how long, how fast, on which machine."""


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
    """Tokens of one worker's batch at most, padding included, unless a single lesson has more."""
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
    """Of generated examples of the training tasks that are not trained on."""
    unseen: float | None
    """Of the tests of tasks that are not trained on."""
    tokens: int
    """So far; as many of each worker as the first has had."""
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
    the first worker every `every` steps, after a checkpoint. A run may go on with more steps,
    another learning rate, other batches and workers, but not with another model or other data.

    Raises BadBase where the folder holds a run that cannot go on as this one, BadConfig where the
    recipe is impossible, BadTask where the data cannot be read or something in `unseen` is trained
    on, HomeInUse while another process trains in the folder, TrainerFailed where a worker dies or
    the gradient is not finite.
    """
    if recipe.width % 64:
        raise BadConfig(f"width {recipe.width}: not a multiple of 64")
    if recipe.workers > 1 and device != "cpu":
        raise BadConfig(f"{recipe.workers} workers: only on a CPU")
    with HomeLock.take(folder, private=False):
        corpus = open_corpus(rearc)
        _check_begun(folder, recipe, corpus)
        if unseen:
            _check_unseen(unseen, recipe, corpus)
        if recipe.workers == 1:
            _work(0, folder, recipe, corpus, device, report, every, unseen)
            return
        meeting = folder / "meeting"
        # Workers that met at the file of a run that was killed would wait for its dead.
        meeting.unlink(missing_ok=True)
        try:
            # Forked, so that the workers share the corpus; no thread has been started yet.
            start_processes(  # type: ignore[no-untyped-call]
                _join,
                (meeting, folder, recipe, corpus, device, report, every, unseen),
                recipe.workers,
                start_method="fork",
            )
        except ProcessException as error:
            # The last line of the worker's traceback, or what became of it.
            last = str(error).strip().splitlines()[-1]
            raise TrainerFailed(re.sub(r"^arcd\.errors\.\w+: ", "", last)) from error


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
    die_with_parent()  # they share its lock: one that stayed would keep the folder from the next
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
        measures = {
            "held out": held_out_lessons(corpus, recipe) if corpus.generated else [],
            "unseen": unseen_lessons(unseen, recipe) if unseen else [],
        }
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
            _save(folder, recipe, corpus, done, tokens, model, optimizers)
            loss = float(torch.stack(losses).mean())
            seconds = time.monotonic() - clock
            rates = (tokens - counted) / seconds
            found = (measured.get("held out"), measured.get("unseen"))
            report(Progress(done, recipe.steps, loss, *found, tokens, rates))
            losses.clear()
            clock, counted = time.monotonic(), tokens
    if worker == 0:
        _export(model, folder)


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
    try:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    except RuntimeError as error:
        # Before it gets into the weights, and with them into the only checkpoint.
        raise TrainerFailed("the gradient is not finite: try a lower --lr") from error
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
        worker_init_fn=_tie if prefetch else None,
    )


def _tie(worker: int) -> None:
    # It shares the lock of the run, and could wait for a dead reader for ever.
    die_with_parent()


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
    corpus: Corpus,
    step: int,
    tokens: int,
    model: CellModel,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    state = {
        "recipe": asdict(recipe),
        "examples": corpus.examples,
        "step": step,
        "tokens": tokens,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    temporary = folder / "checkpoint.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / CHECKPOINT)
    except (OSError, RuntimeError) as error:  # the latter is how torch says that a disk is full
        raise ArcdError(f"{folder / CHECKPOINT}: not written: {error}") from None


def _export(model: CellModel, folder: Path) -> None:
    """The model whole or not at all: it must not be mixed with one of fewer steps."""
    fresh = folder / "model.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    model.export(fresh)
    shutil.rmtree(folder / "model", ignore_errors=True)
    fresh.rename(folder / "model")


def _check_begun(folder: Path, recipe: Recipe, corpus: Corpus) -> None:
    """Before there are workers: what is raised in one reaches nobody as it is."""
    path = folder / CHECKPOINT
    if not path.exists():
        return
    try:
        state = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        begun = {**state["recipe"], "re-arc examples": state["examples"]}
    except (OSError, EOFError, RuntimeError, pickle.PickleError, KeyError, TypeError) as error:
        raise BadBase(f"{path}: not a checkpoint of a pretraining: {error}") from None
    wanted = {**asdict(recipe), "re-arc examples": corpus.examples}
    for key, value in begun.items():
        if key not in CHANGEABLE and wanted.get(key) != value:
            raise BadBase(f"{path}: was begun with {key}={value}, not {wanted.get(key)}")
    if state["step"] > recipe.steps:
        raise BadBase(f"{path}: is at step {state['step']} already, past {recipe.steps}")


def _check_unseen(unseen: TaskSet, recipe: Recipe, corpus: Corpus) -> None:
    own = tuple(Task(task_id, pool, ()) for task_id, pool in corpus.own.items())
    known = EvaluationSet([TaskSet("trained on", own, {})])
    for task in unseen.tasks:
        if task.id in known.ids or any(map(known.has, all_pairs(task, unseen))):
            raise BadTask(f"{unseen.name}: task {task.id}: is trained on, so it is not unseen")
    if not unseen_lessons(unseen, recipe):
        raise BadTask(f"{unseen.name}: no test with a solution that fits a lesson")


def _restore(
    folder: Path,
    recipe: Recipe,
    model: CellModel,
    optimizers: list[torch.optim.Optimizer],
    device: str,
) -> tuple[int, int]:
    """(next step, tokens so far) of the checkpoint in the folder, or of a new run."""
    path = folder / CHECKPOINT
    if not path.exists():
        return 0, 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"], state["tokens"]
