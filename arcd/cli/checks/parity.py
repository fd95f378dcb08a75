"""Parity: trainer and engine have the same base and the same adapters.

Both are asked how much likelier one token is than another at the same place of an answer. The
trainer's probabilities are over the tokens that an answer can have, the engine's over the whole
vocabulary; in the difference of two logprobs that cancels out. The trainer tells it as the losses
of a training whose learning rate is too small to change anything.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import anyio

from arcd.arc.grids import COLOURS, Grid
from arcd.arc.tasks import Task
from arcd.arc.views import identity
from arcd.backends.protocols import Adapter, Request, TrainingStep
from arcd.cli.checks.workbench import TAUGHT, Workbench, task_of
from arcd.cli.finding import Finding
from arcd.errors import ArcdError
from arcd.model.device import Device, DTypeName
from arcd.model.encoding import Encoding
from arcd.model.prompts import IGNORED, Lesson, Question, lesson
from arcd.system.seeds import generator

NO_LR = 1e-30
"""A learning rate with which fp32 weights stay what they are."""

TARGETS = 2
"""Demonstration pairs of a task that are asked for."""

PLACES = 2
"""Places in each answer at which two tokens are compared."""

TOLERANCES: Mapping[DTypeName, float] = {"float32": 0.03, "float16": 0.05, "bfloat16": 0.15}
"""Largest mean difference, in nats, by the coarser of the two number formats.

With arcd's own base it was 0.009 in fp32 and 0.03 to 0.05 in bf16. Without one target module of an
adapter it was 0.10 (k_proj) to 0.31 (o_proj) in fp32, without the adapter 0.86. In bf16 a large
model's logits are further apart, so there a single module may be missed, and never an adapter."""

SEEN = 3.0
"""A trial adapter must change the comparisons by so many times the tolerance: else nobody would see
that it is missing."""


SMALL_PART = 0.1
"""Share of an adapter's effect by which it may differ where that is more than the tolerance: a
missing module is a larger part of it, whatever the size of the logits."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Two tokens that could stand at a place of an answer."""

    task: Task
    before: tuple[int, ...]
    """All tokens before the place."""
    true: int
    other: int

    @property
    def ends(self) -> tuple[int, int]:
        """Both tokens, the true one first."""
        return self.true, self.other


@dataclass(frozen=True, slots=True)
class Compared:
    """By how many nats the true token of each choice is likelier than the other one."""

    trainer: Sequence[float]
    engine: Sequence[float]

    @property
    def difference(self) -> float:
        """Mean absolute difference between trainer and engine."""
        return distance(self.trainer, self.engine)


async def parity(bench: Workbench) -> Finding:
    """Compare base and two adapters: in the trainer one by one, in the engine in one batch."""
    first, second = await bench.adapters()
    choices = [each for name in TAUGHT for each in choices_of(task_of(name), bench)]
    served: dict[str, Adapter | None] = {"base": None, "adapter 1": first, "adapter 2": second}
    trained = {name: await trainer_says(bench, choices, each) for name, each in served.items()}
    sampled: dict[str, Sequence[float]] = {}

    async def ask(name: str) -> None:
        sampled[name] = await engine_says(bench, choices, served[name])

    async with anyio.create_task_group() as batch:
        for name in served:
            batch.start_soon(ask, name)
    compared = {name: Compared(trained[name], sampled[name]) for name in served}
    return parity_finding(compared, tolerance(bench.device))


def parity_finding(compared: Mapping[str, Compared], limit: float) -> Finding:
    """What follows from the comparisons of "base" and of each adapter, by name."""
    differences = {name: each.difference for name, each in compared.items()}
    base = compared["base"]
    effects = {
        name: distance(each.trainer, base.trainer)
        for name, each in compared.items()
        if name != "base"
    }
    told = ", ".join(f"{name} {value:.4f}" for name, value in differences.items())
    least = min(effects.values())
    value = f"{told} nats apart (at most {limit}); an adapter changes {least:.2f} or more"
    data = {"differences": differences, "effects": effects, "limit": limit}
    off = [
        name
        for name, apart in differences.items()
        if not math.isfinite(apart) or apart > max(limit, SMALL_PART * effects.get(name, 0.0))
    ]
    if off:
        return Finding("parity", value, ok=False, advice=_advice(off), data=data)
    if not least >= SEEN * limit:
        weak = "the trial adapters change too little to tell whether they are served: report this"
        return Finding("parity", value, ok=False, advice=weak, data=data)
    return Finding("parity", value, data=data)


def _advice(off: Sequence[str]) -> str:
    if "base" in off:
        return (
            "the bases of trainer and engine differ by more than expected: some tenths of a nat "
            "may be the number format of a large model, more is an error; report this document"
        )
    return (
        "the base agrees, what was trained and what is served differ by more than expected: "
        "answers may be poor; report this document"
    )


def tolerance(device: Device) -> float:
    """The largest difference to be expected of a device's number formats."""
    return max(TOLERANCES[device.dtype], TOLERANCES[device.serving_dtype])


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean absolute difference; NaN if any number is none."""
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))


def choices_of(task: Task, bench: Workbench) -> Iterator[Choice]:
    """Choices in the answers to some demonstration pairs; the other token is another colour's.

    Raises ArcdError where a lesson does not fit the context.
    """
    encoding, rng = bench.runtime.encoding, generator(0, task.id, "parity")
    limit = min(bench.config.train.max_seq_len, bench.config.engine.max_model_len - 1)
    for target, pair in enumerate(task.train[:TARGETS]):
        found = lesson(task, target, identity(task), encoding, limit, rng)
        if not isinstance(found, Lesson):
            raise ArcdError(str(found))
        places = list(_places(pair.output, encoding))
        begin = len(found.tokens) - len(encoding.answer(pair.output))
        for place, true, other in places[:: max(1, len(places) // PLACES)][:PLACES]:
            yield Choice(task, found.tokens[: begin + place], true, other)


def _places(grid: Grid, encoding: Encoding) -> Iterator[tuple[int, int, int]]:
    """Where the answer would be another if each cell had the next colour."""
    painted = tuple(tuple((cell + 1) % COLOURS for cell in row) for row in grid)
    pairs = zip(encoding.answer(grid), encoding.answer(painted), strict=False)
    return ((place, *tokens) for place, tokens in enumerate(pairs) if tokens[0] != tokens[1])


async def trainer_says(
    bench: Workbench, choices: Sequence[Choice], adapter: Adapter | None
) -> list[float]:
    """For each choice the nats by which the true token is likelier; without an adapter, the base's.

    Each token is a lesson of its own, whose last token alone has a loss.
    """
    lessons = [_lesson(each, token) for each in choices for token in each.ends]
    losses: dict[int, float] = {}

    def note(step: TrainingStep) -> None:
        losses[step.step] = step.loss

    config = bench.trial.model_copy(update={"batch_size": 1, "lr": NO_LR, "weight_decay": 0.0})
    await bench.train(lessons, config, adapter, note)
    found = [losses.get(step, math.nan) for step in range(1, len(lessons) + 1)]
    return [other - true for true, other in zip(found[::2], found[1::2], strict=True)]


async def engine_says(
    bench: Workbench, choices: Sequence[Choice], adapter: Adapter | None
) -> list[float]:
    """The same of the engine: logprobs of answers that are given."""
    requests = [
        Request(_question(each), 2 * index + side, seed=0, answer=(token,))
        for index, each in enumerate(choices)
        for side, token in enumerate(each.ends)
    ]
    found = await bench.sample(requests, adapter)
    logprobs = [found[index].logprobs[-1] for index in range(len(requests))]
    return [true - other for true, other in zip(logprobs[::2], logprobs[1::2], strict=True)]


def _lesson(choice: Choice, token: int) -> Lesson:
    tokens = (*choice.before, token)
    labels = (IGNORED,) * len(choice.before) + (token,)
    return Lesson(choice.task.id, 0, identity(choice.task), (), tokens, labels)


def _question(choice: Choice) -> Question:
    return Question(choice.task.id, 0, identity(choice.task), (), choice.before, 1)
