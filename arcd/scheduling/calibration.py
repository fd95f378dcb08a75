"""Calibration: some seconds of training and sampling, to know the rates before the first task.

Made-up tasks of two sizes go through the trainer and the engine. This also warms both up: the first
steps of a process are its slowest.
"""

import shutil
from dataclasses import replace

import anyio

from arcd.arc.grids import COLOURS, Grid
from arcd.arc.tasks import Pair, Task
from arcd.backends.protocols import Adapter, TrainRequest
from arcd.backends.runtime import Runtime
from arcd.config import Config
from arcd.errors import SampleRefused, TrainerFailed
from arcd.model.lessons import build_lessons
from arcd.model.prompts import Question, TooLong, build_questions
from arcd.scheduling.rates import RateEstimator
from arcd.solver.assignment import build_requests
from arcd.system.seeds import generator

TIMEOUT_S = 20.0
"""Seconds after which it ends with what it has measured: a 7B base is slow on a CPU."""

ROUNDS = ((4, 1, 2), (4, 3, 16), (12, 1, 2), (12, 2, 16))
"""(side of the grids, training steps, samples). They differ so that the fit can separate steps from
tokens, and reading prompts from generating one answer or many."""

ANSWER_TOKENS = 32
"""Tokens of an answer at most."""


async def calibrate(runtime: Runtime, config: Config) -> RateEstimator:
    """The rates of the trainer and the engine, measured in a few steps."""
    measured = RateEstimator()
    with anyio.move_on_after(TIMEOUT_S):
        try:
            await _round(runtime, config, RateEstimator(), *ROUNDS[0])  # not counted: the warm-up
            for side, steps, samples in ROUNDS:
                await _round(runtime, config, measured, side, steps, samples)
        except (TrainerFailed, SampleRefused):
            return measured  # each task will fail as well, and its notes say why
    return measured


async def _round(
    runtime: Runtime, config: Config, measured: RateEstimator, side: int, steps: int, samples: int
) -> None:
    task = _task(side)
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={"steps": min(steps, config.train.steps)}),
            "sample": config.sample.model_copy(update={"samples": samples, "views": None}),
        }
    )
    adapters: list[Adapter] = []
    try:
        await _train(runtime, config, measured, task, adapters)
        await _sample(runtime, config, task, adapters[0] if adapters else None)
    finally:
        for adapter in adapters:
            shutil.rmtree(adapter.path, ignore_errors=True)
    measured.stepped(*runtime.engine.usage())


async def _train(
    runtime: Runtime, config: Config, measured: RateEstimator, task: Task, adapters: list[Adapter]
) -> None:
    """As many trainings at once as the trainer can do."""
    lessons = build_lessons([task], config, runtime.encoding, config.train.max_seq_len)
    if isinstance(lessons, TooLong) or not lessons:
        return
    failed: list[TrainerFailed] = []

    async def train() -> None:
        request = TrainRequest(lessons, config.train, config.seed, runtime.serial())
        try:
            async with runtime.trainer.slots:
                done = await runtime.trainer.train(request, lambda _: None)
        except TrainerFailed as error:
            failed.append(error)
        else:
            adapters.append(done.adapter)
            measured.trained(done.steps, done.tokens, done.seconds)

    async with anyio.create_task_group() as trainings:
        for _ in range(runtime.trainer.capacity):
            trainings.start_soon(train)
    if failed:
        raise failed[0]


async def _sample(runtime: Runtime, config: Config, task: Task, adapter: Adapter | None) -> None:
    questions = [
        replace(question, max_new_tokens=min(ANSWER_TOKENS, question.max_new_tokens))
        for question in build_questions(task, config, runtime.encoding)
        if isinstance(question, Question)
    ]
    requests = build_requests(task, questions, config)
    if requests:
        await runtime.engine.sample(requests, adapter, lambda _: None)


def _task(side: int) -> Task:
    rng = generator(0, "calibration", side)

    def grid() -> Grid:
        return tuple(tuple(rng.randrange(COLOURS) for _ in range(side)) for _ in range(side))

    return Task("calibration", tuple(Pair(grid(), grid()) for _ in range(3)), (grid(),))
