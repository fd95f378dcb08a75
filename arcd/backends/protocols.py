"""What arcd asks of a trainer and of an engine: two protocols, and the messages they exchange.

A `Trainer` turns the lessons of a task into an adapter. An `Engine` turns questions into
completions, for several tasks in one batch, each with its own adapter. Both are called in the event
loop, work outside it, and stop within one step when they are cancelled.

    TrainRequest               -->  Trainer  -->  a TrainingStep for each step, Trained at the end
    Requests, Adapter or None  -->  Engine   -->  a Completion for each request

Everything that needs torch or vLLM is behind these two. Trainers: `trainer_pool` over one
`lora_trainer` (PyTorch and peft) for each training at once. Engines: `vllm.engine`. Without a
model: `fake`. Knows nothing of jobs, votes or schedules.
"""

import re
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
        return _adapter_name(self.serial)

    @classmethod
    def under(cls, folder: Path, serial: int) -> Self:
        """The adapter of this number in a folder that holds all adapters."""
        return cls(serial, folder / _adapter_name(serial))


WRITING = ".writing-"
"""What the name of a folder begins with in which an adapter is being written."""


def _adapter_name(serial: int) -> str:
    return f"adapter-{serial}"


def is_adapter_name(name: str) -> bool:
    """Whether a folder in a folder of adapters is one, or one that is being written."""
    return re.fullmatch("adapter-[0-9]+", name) is not None or name.startswith(WRITING)


# The trainer: lessons in, an adapter out.


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """An adapter to be trained: one pass over the lessons, in their order."""

    lessons: Sequence[Lesson]
    config: TrainConfig
    seed: int
    """Of the fresh adapter's random values."""
    serial: int
    """The number of the adapter."""
    frugal: bool = False
    """Whether activations are recomputed, which takes more time and less memory."""
    start: Path | None = None
    """The folder of an adapter to go on from, in place of a fresh one."""


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """Progress: step number `step` of `steps` is done; `loss` in nats per labelled token."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter, and what its training took."""

    adapter: Adapter
    steps: int
    tokens: int
    """Of all lessons."""
    seconds: float
    loss: float
    """Of the last step, in nats per labelled token; finite."""
    resident_bytes: int | None = None
    """What the process had in memory after it; None on a system that does not tell."""


class Trainer(Protocol):
    """Trains adapters on the resident base model, at most `capacity` of them at once."""

    capacity: int
    slots: anyio.Semaphore
    """`capacity` slots, given out in the order in which they are asked for. `train` is called with
    one held, and the slot is kept through all attempts at the same adapter."""

    @property
    def steps(self) -> int:
        """A count that rises only while every training under way makes steps: its heartbeat."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a training is under way, so that `steps` must rise."""
        ...

    async def train(
        self, wanted: TrainRequest, progress: Callable[[TrainingStep], None]
    ) -> Trained:
        """Train an adapter; when this returns, its folder is complete and on the disk.

        `progress` is called in the event loop, after each step. Raises OutOfMemory or another
        TrainerFailed if there is no adapter; one with a loss or weights that are not finite is
        none. A cancellation takes effect within a step and leaves nothing on the disk.
        """
        ...


# The engine: questions in, completions out.


@dataclass(frozen=True, slots=True)
class Request:
    """One sample of a question, or the likelihood of a given answer to it."""

    question: Question
    sample: int
    """The number of the sample among those of its test."""
    seed: int
    """Decides the sample if the temperature is not 0."""
    temperature: float = 0.0
    """0 takes the likeliest token each time (greedy)."""
    answer: tuple[int, ...] | None = None
    """If given, end token included, it is the completion; only its logprobs are computed."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request."""

    request: Request
    tokens: tuple[int, ...]
    """The end token included, if there is one."""
    logprobs: tuple[float, ...]
    """Of each token, in nats, at temperature 1 over the whole vocabulary."""
    finish: Literal["stop", "length"]
    """Whether the model ended the answer ("stop") or the limit of tokens did ("length")."""


@dataclass(frozen=True, slots=True)
class EngineUsage:
    """What some engine steps did together."""

    steps: int
    prompt: int
    """Prompt tokens read."""
    generated: int
    """Tokens generated."""
    seconds: float


class Engine(Protocol):
    """Samples completions, with the requests of all callers in one batch."""

    @property
    def steps(self) -> int:
        """Steps made so far: its heartbeat while it is `busy`."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a caller waits for completions, so that `steps` must rise."""
        ...

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        """Deliver each completion in the event loop when it is finished; return after the last.

        Without an adapter the base answers. The engine loads and unloads adapters by itself. A
        cancellation aborts the requests that are not finished. Raises SampleRefused if the engine
        does not take the adapter or a request, EngineFailed if it has stopped.
        """
        ...

    def usage(self) -> list[EngineUsage]:
        """What the steps did that no earlier call has returned, as far as it is known by now."""
        ...
