"""Pretraining of arcd's own base model from scratch: resumable, on a CPU's cores or on a GPU.

`pretrain` locks the run's folder, starts the workers and trains; the first worker saves, measures
and reports. Every batch is a pure function of (seed, worker, step), so a run that was killed ends
with the same weights as one that was not. On a CPU, single-threaded workers that average their
gradients are faster than threads inside one process. Knows nothing of where the tasks come from.
"""

import re
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from arcd.decoder.row import in_a_row
from arcd.errors import TrainerFailed
from arcd.model.encoding import PAD
from arcd.model.prompts import Lesson
from arcd.pretrain import checkpoint
from arcd.pretrain.cell_model import CellModel
from arcd.pretrain.checkpoint import TrainingState
from arcd.pretrain.corpus import batch
from arcd.pretrain.run import Progress, Recipe, Run
from arcd.pretrain.validation import Validation, check_unseen
from arcd.system.home_lock import HomeLock
from arcd.system.processes import cores, die_with_parent

CHECKPOINTS_PER_VALIDATION = 5
"""Measuring takes about as long as some training steps, so not every checkpoint is measured."""

MAX_GRADIENT_NORM = 1.0
"""A larger gradient is scaled down to it: one odd batch cannot undo many steps."""

ADAMW_BETAS = (0.9, 0.95)
"""Usual for pretraining of language models (GPT-3, arXiv 2005.14165, appendix B)."""


def pretrain(run: Run) -> None:
    """Train, or go on training, in the run's folder; the finished model is in its `model`.

    A run may go on with more steps, another learning rate, other batches and workers, but not with
    another model or other data.

    Raises HomeInUse while another process trains in the folder, BadBase where the folder holds a
    run that cannot go on as this one, BadTask where something in `unseen` is trained on,
    TrainerFailed where a worker dies or the gradient is not finite, ArcdError where the disk is
    full.
    """
    with HomeLock.take(run.folder, private=False):
        # Checked before there are workers: an error in one arrives here as text only.
        checkpoint.check(run)
        if run.unseen:
            check_unseen(run.unseen, run)
        if run.recipe.workers == 1:
            _train(0, run)
        else:
            _start_workers(run)


def _start_workers(run: Run) -> None:
    """Train in as many processes as the recipe says. Raises TrainerFailed where one fails."""
    meeting = run.folder / "meeting"
    # The workers of a run that was killed are still written in it: new ones would wait for them.
    meeting.unlink(missing_ok=True)
    try:
        # Forked, so that the workers share the corpus; no thread has been started yet.
        start_processes(  # type: ignore[no-untyped-call]
            _join, (f"file://{meeting.absolute()}", run), run.recipe.workers, start_method="fork"
        )
    except ProcessException as error:
        # The last line of the worker's traceback, or how the worker ended.
        last = str(error).strip().splitlines()[-1]
        raise TrainerFailed(re.sub(r"^arcd\.errors\.\w+: ", "", last)) from error


def _join(worker: int, meeting: str, run: Run) -> None:
    """The body of one worker's process: meet the others, then train."""
    die_with_parent()  # a worker shares the folder's lock: one that stayed would keep it locked
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=worker, world_size=run.recipe.workers)
    try:
        _train(worker, run)
    finally:
        dist.destroy_process_group()


def _train(worker: int, run: Run) -> None:
    """Train from the checkpoint to the last step, with this worker's batches."""
    recipe = run.recipe
    torch.manual_seed(recipe.seed)  # the same first weights in every worker
    state = _beginning(run)
    checkpoint.restore(run, state)
    model = DistributedDataParallel(state.model) if recipe.workers > 1 else state.model
    reporter = _Reporter(run, state) if worker == 0 else None
    for lessons in _batches(run, worker, state.step):
        loss = _step(model, state, lessons, run)
        if reporter:
            reporter.after_step(loss)
    if worker == 0:
        checkpoint.export(state.model, run.folder)


def _beginning(run: Run) -> TrainingState:
    """The state before the first step."""
    recipe = run.recipe
    model = CellModel(recipe.width, recipe.layers, recipe.context, compiled=recipe.compiled)
    model = model.to(run.device)
    return TrainingState(model, _optimizers(model, recipe))


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
        torch.optim.AdamW(rest, recipe.lr, betas=ADAMW_BETAS, weight_decay=0.0),
    ]


def _step(model: torch.nn.Module, state: TrainingState, lessons: list[Lesson], run: Run) -> Tensor:
    """One optimizer step on one batch; the mean loss, still on the device."""
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = run.recipe.lr * run.recipe.lr_scale(state.step)
    loss: Tensor = model(in_a_row(lessons, PAD, run.device)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    try:
        torch.nn.utils.clip_grad_norm_(
            model.parameters(), MAX_GRADIENT_NORM, error_if_nonfinite=True
        )
    except RuntimeError as error:
        # Raised before the weights change, so the only checkpoint stays good.
        raise TrainerFailed("the gradient is not finite: try a lower --lr") from error
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    state.step += 1
    state.tokens += sum(len(lesson.tokens) for lesson in lessons) * run.recipe.workers
    return loss.detach()


class _Reporter:
    """After every `run.every` steps and after the last: measures, saves, reports."""

    def __init__(self, run: Run, state: TrainingState) -> None:
        self._run, self._state = run, state
        self._validation = Validation(run)
        self._losses: list[Tensor] = []
        self._restart_clock()

    def after_step(self, loss: Tensor) -> None:
        """Keep the loss; report if it is time."""
        self._losses.append(loss)
        run, step = self._run, self._state.step
        last = step == run.recipe.steps
        if last or step % run.every == 0:
            self._report(measure=last or step % (CHECKPOINTS_PER_VALIDATION * run.every) == 0)

    def _report(self, *, measure: bool) -> None:
        run, state = self._run, self._state
        held_out, unseen = self._validation.losses(state.model) if measure else (None, None)
        checkpoint.save(run, state)
        loss = float(torch.stack(self._losses).mean())
        speed = (state.tokens - self._tokens_before) / (time.monotonic() - self._since)
        steps = run.recipe.steps
        run.report(Progress(state.step, steps, loss, held_out, unseen, state.tokens, speed))
        self._losses.clear()
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since, self._tokens_before = time.monotonic(), self._state.tokens


class _Batches(Dataset[list[Lesson]]):
    """The batches of one worker by step."""

    def __init__(self, run: Run, worker: int) -> None:
        self._corpus, self._recipe, self._worker = run.corpus, run.recipe, worker

    def __getitem__(self, step: int) -> list[Lesson]:
        return batch(
            self._corpus,
            self._recipe.seed,
            self._worker,
            step,
            tokens=self._recipe.batch_tokens,
            limit=self._recipe.max_seq_len,
            composed=self._recipe.composed,
        )


def _batches(run: Run, worker: int, first: int) -> Iterator[list[Lesson]]:
    """A worker's batches from step `first` on.

    For a GPU they are built ahead of time in processes of their own, so that it does not wait.
    """
    prefetch = run.device != "cpu"
    yield from DataLoader(
        _Batches(run, worker),
        batch_size=None,
        sampler=range(first, run.recipe.steps),
        num_workers=cores() if prefetch else 0,
        worker_init_fn=_tie if prefetch else None,
    )


def _tie(worker: int) -> None:
    # It shares the lock of the run, and would wait for ever for a reader that was killed.
    die_with_parent()
