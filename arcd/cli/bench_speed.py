"""How fast arcd's trainer is beside transformers + peft: tokens a second on the same lessons.

Run as `python -m arcd.cli.bench_speed WANTED`: a process that does nothing else. Three tasks give
the lessons, those at the quartiles of length. On each of them all train one after the other, alone,
and their first steps are not counted. On a CPU everybody has one thread, as each of arcd's
trainings has while all cores are busy. The last line is the measurement as JSON.
"""

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import anyio
from pydantic import BaseModel, ConfigDict

from arcd.arc.tasks import load
from arcd.backends.protocols import TrainRequest
from arcd.backends.trainer_pool import SingleTrainer
from arcd.cli.bench_figures import PEFT, PEFT_LABELLED, LessonSpeed, Speeds
from arcd.config import Config
from arcd.decoder.elementwise import EAGER
from arcd.errors import BadConfig
from arcd.model.base_model import open_encoding
from arcd.model.device import Device, pick_device
from arcd.model.encoding import Encoding
from arcd.model.lessons import Lessons, build_lessons
from arcd.system.ledger import Ledger
from arcd.system.visible_gpus import narrow

WARM_STEPS = 4
"""First steps of each training, which are not counted: kernels are made, memory is taken."""

TIMED_STEPS = 8
"""Steps that are counted."""

THREADS = 1
"""OpenMP threads of each training, on a CPU."""


class Wanted(BaseModel):
    """Whose training is measured, and on what."""

    model_config = ConfigDict(frozen=True)

    tasks: str
    base: Path
    device: str
    config: Config
    compiled: Path
    """Folder for what torch compiles."""


def open_trainers(
    wanted: Wanted, device: Device, encoding: Encoding, folder: Path
) -> Mapping[str, SingleTrainer]:
    """arcd's trainer on the base, in each mode that it has here; its adapters go to `folder`.

    "fallback" is for a base that arcd's own decoder cannot hold; "compiled" needs a compiler.
    """
    from arcd.backends.lora_trainer import LoraTrainer
    from arcd.backends.resident_base import ResidentBase

    def trainer(base: ResidentBase) -> LoraTrainer:
        return LoraTrainer(base.lora, wanted.base, folder, device, Ledger(), cores=lambda: THREADS)

    eager = ResidentBase(wanted.base, device, encoding)
    if eager.unsupported is not None:
        return {"fallback": trainer(eager)}
    compiled = ResidentBase(wanted.base, device, encoding, wanted.compiled)
    compiled.load()
    if compiled.compilation is None or compiled.compilation.wait() is EAGER:
        return {"eager": trainer(eager)}
    return {"eager": trainer(eager), "compiled": trainer(compiled)}


async def measure(wanted: Wanted) -> Speeds:
    """The speeds on the lessons of the tasks at the quartiles of length."""
    steps = WARM_STEPS + TIMED_STEPS
    train = wanted.config.train.model_copy(update={"steps": steps})
    config = wanted.config.model_copy(update={"train": train})
    device = pick_device(wanted.device, config.precision)
    encoding = open_encoding(wanted.base, config.encoding)
    taught = dict(_taught(wanted.tasks, config, encoding))
    if not taught:
        raise BadConfig(f"bench: no task of {wanted.tasks} has lessons for {steps} steps")
    chosen = quartiles(taught)
    with tempfile.TemporaryDirectory(prefix="arcd-bench-") as folder:
        trainers = open_trainers(wanted, device, encoding, Path(folder))
        found, serials = [], itertools.count()
        for name, lessons in chosen.items():
            rates = {
                label: _peft_rate(wanted.base, config, device, encoding, lessons, labelled_only=few)
                for label, few in ((PEFT, False), (PEFT_LABELLED, True))
            }
            for mode, trainer in trainers.items():
                rates[mode] = await trainer_rate(trainer, config, lessons, next(serials))
            found.append(LessonSpeed(name, fmean(lessons.lengths), rates))
    return Speeds(THREADS, tuple(found))


async def trainer_rate(
    trainer: SingleTrainer, config: Config, lessons: Lessons, serial: int
) -> float:
    """Tokens a second of arcd's trainer; `serial` is the number of the adapter."""
    ends: list[float] = []
    request = TrainRequest(lessons, config.train, config.seed, serial)
    await trainer.train(request, lambda _: ends.append(time.monotonic()))
    return rate(lessons.lengths, config.train.batch_size, ends)


def rate(lengths: Sequence[int], size: int, ends: Sequence[float]) -> float:
    """Tokens a second from the end of the last warm step to that of the last step.

    `lengths` are tokens of the lessons, `size` of which make a step; `ends` the moments at which
    the steps ended.
    """
    return sum(lengths[WARM_STEPS * size :]) / (ends[-1] - ends[WARM_STEPS - 1])


def quartiles(taught: Mapping[str, Lessons]) -> dict[str, Lessons]:
    """Of tasks with their lessons, at least one, those at the quartiles of the mean length."""
    ordered = sorted(taught, key=lambda name: (fmean(taught[name].lengths), name))
    return {name: taught[name] for i in (1, 2, 3) for name in [ordered[i * len(ordered) // 4]]}


def _taught(source: str, config: Config, encoding: Encoding) -> Iterator[tuple[str, Lessons]]:
    """The tasks that have lessons for all steps."""
    planned = config.train.steps * config.train.batch_size
    for task in load(source).tasks:
        lessons = build_lessons([task], config, encoding, config.train.max_seq_len)
        if isinstance(lessons, Lessons) and len(lessons) == planned:
            yield task.id, lessons


def _peft_rate(
    base: Path,
    config: Config,
    device: Device,
    encoding: Encoding,
    lessons: Lessons,
    *,
    labelled_only: bool,
) -> float:
    """Tokens a second of transformers + peft."""
    from arcd.backends.stock.training import PeftTraining

    size = config.train.batch_size
    training = PeftTraining(
        base,
        config.train,
        device,
        encoding.pad,
        steps=config.train.steps,
        seed=config.seed,
        threads=THREADS,
        labelled_only=labelled_only,
    )
    ends = []
    for at in range(0, len(lessons), size):
        training.step(list(lessons[at : at + size]))
        ends.append(time.monotonic())
    return rate(lessons.lengths, size, ends)


if __name__ == "__main__":
    wanted = Wanted.model_validate_json(sys.argv[1])
    narrow(wanted.device)
    found = anyio.run(measure, wanted)
    print(json.dumps(asdict(found)))
