"""What arcd asks of a trainer and of an engine; everything heavy stands behind these two.

A `Trainer` turns the lessons of a task into an adapter. An `Engine` turns questions into
completions, for several tasks at once. Both are used from the event loop and must be cancellable
within one step. Implementations: `fake` (deterministic, no model), `lora` (PyTorch and peft),
`pool` (several trainers as one), `vllm_engine` (vLLM).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self

import anyio

from arcd.config import TrainConfig
from arcd.model.prompts import Lesson, Question


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained adapter: a PEFT folder under a serial number that never repeats."""

    serial: int
    path: Path

    @property
    def name(self) -> str:
        """The name it is served under; as unique as the serial."""
        return f"adapter-{self.serial}"

    @classmethod
    def under(cls, folder: Path, serial: int) -> Self:
        """The adapter of this number where a folder keeps all of them."""
        return cls(serial, folder / f"adapter-{serial}")


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter with how it came about; `loss` is that of the last step, in nats per token.

    `resident_bytes` is what the process had in memory after it; None where that cannot be told.
    """

    adapter: Adapter
    steps: int
    tokens: int
    seconds: float
    loss: float
    resident_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """Progress: step number `step` of `steps` is done; `loss` in nats per token."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Request:
    """One sample of a question; `seed` decides it where the temperature is not 0 (greedy).

    With an `answer`, its end token included, nothing is sampled: that is the completion, and how
    likely it is in its logprobs.
    """

    question: Question
    sample: int
    seed: int
    temperature: float = 0.0
    answer: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request: its tokens, the end token included, and the logprob of each in nats.

    `finish` is "stop" where the model ended the answer and "length" where the limit did.
    """

    request: Request
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What is to be trained, and how: lessons in their order, from an adapter begun by `seed`.

    The adapter gets the number `serial`; `frugal` trades time for memory. Instead of a fresh one it
    may go on from the folder `start`.
    """

    lessons: Sequence[Lesson]
    config: TrainConfig
    seed: int
    serial: int
    frugal: bool = False
    start: Path | None = None


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What some engine steps did together: prompt tokens read, tokens generated, seconds."""

    steps: int
    prompt: int
    generated: int
    seconds: float


class Trainer(Protocol):
    """Trains adapters on the resident base model, at most `capacity` of them at once."""

    capacity: int
    slots: anyio.Semaphore
    """`capacity` slots, given out in the order of asking. Who trains holds one of them, through all
    attempts at the same adapter."""

    @property
    def steps(self) -> int:
        """Steps made so far. It goes on only if every training under way goes on."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a training is under way, so that steps must be seen."""
        ...

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        """The adapter after one pass over the lessons; on the disk, whole, when this returns.

        `progress` is called in the event loop. Raises OutOfMemory or another TrainerFailed where
        no adapter came about; cancellation takes effect within a step and leaves nothing behind.
        """
        ...


class Engine(Protocol):
    """Samples completions, batching the requests of all callers."""

    @property
    def steps(self) -> int:
        """Steps made so far: its heartbeat while it is `busy`."""
        ...

    @property
    def busy(self) -> bool:
        """Whether somebody waits for completions, so that steps must be seen."""
        ...

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        """Deliver each completion in the event loop when it finishes; return after the last.

        Without an adapter the base answers. The adapter is loaded and unloaded by the engine.
        Cancellation aborts what is open. Raises SampleRefused where the engine does not take the
        adapter or a request, EngineFailed if it stopped.
        """
        ...

    def usage(self) -> list[EngineUsage]:
        """What the steps did that were not told yet, as soon as it is known."""
        ...
