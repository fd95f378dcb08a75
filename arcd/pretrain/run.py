"""A pretraining run as values: its recipe, what it works with, what it reports.

Knows nothing of how a run is carried out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from arcd.arc.tasks import TaskSet
from arcd.errors import BadConfig
from arcd.pretrain.corpus import Corpus

WIDTH_UNIT = 64
"""A width is a multiple of this, the smaller of the two head sizes of `CellModel`."""

CHANGEABLE = frozenset({"steps", "lr", "batch_tokens", "workers", "compiled"})
"""Fields of a recipe that may change when a run goes on: how long, how fast, on which machine."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the data."""

    steps: int
    """Optimizer steps of the whole run."""
    width: int = 256
    """Size of a hidden state."""
    layers: int = 6
    """Decoder layers."""
    context: int = 4096
    """Tokens that the model has positions for."""
    max_seq_len: int = 3072
    """Tokens of a lesson at most."""
    composed: float = 0.5
    """Probability that a lesson is of a composed task."""
    batch_tokens: int = 4096
    """Tokens of one worker's batch at most, padding included, unless a single lesson has more."""
    workers: int = 1
    """Processes that average their gradients."""
    lr: float = 4e-3
    """Highest learning rate."""
    warmup: int = 100
    """Steps at the beginning in which the learning rate rises linearly."""
    decay: float = 0.4
    """Share of the steps, at the end, in which the learning rate falls linearly to zero."""
    weight_decay: float = 0.05
    """Of the backbone's matrices; the other weights do not decay."""
    seed: int = 0
    """Decides the first weights and every batch."""
    compiled: bool = False
    """Whether the layers are compiled, which needs a C++ compiler."""

    def __post_init__(self) -> None:
        if self.width % WIDTH_UNIT:
            raise BadConfig(f"width {self.width}: not a multiple of {WIDTH_UNIT}")

    def lr_scale(self, step: int) -> float:
        """Learning rate of a step as a share of the highest: warm-up, plateau, fall to zero."""
        rise = min(1.0, (step + 1) / self.warmup)
        fall = (self.steps - step) / max(1.0, self.steps * self.decay)
        return max(0.0, min(rise, fall))


@dataclass(frozen=True)
class Progress:
    """One report of a run. Losses are in nats: per token in training, per grid in the others."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    loss: float
    """Mean over the steps since the last report."""
    held_out: float | None
    """On generated examples of the training tasks that are kept from training."""
    unseen: float | None
    """On the tests of tasks that are not trained on."""
    tokens: int
    """Trained on so far by all workers, estimated as what the first had times their number."""
    tokens_per_second: float
    """Since the last report, of all workers."""


@dataclass(frozen=True)
class Run:
    """One pretraining: where, how, on what. Raises BadConfig for several workers on a GPU."""

    folder: Path
    """Holds the checkpoint and, at the end, the model."""
    recipe: Recipe
    corpus: Corpus
    device: str
    """A device of torch: `cpu` or `cuda`."""
    report: Callable[[Progress], None]
    """Called in the first worker, after each checkpoint."""
    every: int = 100
    """Steps from one checkpoint to the next."""
    unseen: TaskSet | None = None
    """Tasks with solutions that are measured and never trained on."""

    def __post_init__(self) -> None:
        if self.recipe.workers > 1 and self.device != "cpu":
            raise BadConfig(f"{self.recipe.workers} workers: only on a CPU")
