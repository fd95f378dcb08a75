"""One task as most people do it today: a process that trains, then a process that samples.

The baseline of `arcd bench`, run as `python -m arcd.cli.baseline train|sample PART`. Each process
imports its libraries, loads the base, does its part with all cores, and ends: transformers + peft
(`stock.training`), then vLLM (`stock.sampling`). arcd's own are the lessons, the questions, the
parsing and the vote, so that the work is the same.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import anyio
from pydantic import BaseModel, ConfigDict

from arcd.arc.selection import Candidate, verdict
from arcd.arc.tasks import Task, load
from arcd.backends.protocols import Adapter, Completion
from arcd.config import Config
from arcd.model.base_model import open_encoding
from arcd.model.device import pick_device
from arcd.model.lessons import build_lessons
from arcd.model.prompts import TooLong, build_questions
from arcd.solver.assignment import build_requests
from arcd.solver.rescoring import rescore
from arcd.solver.sampling import to_candidate
from arcd.system.processes import cores
from arcd.system.seeds import seed_of
from arcd.system.visible_gpus import narrow


class Part(BaseModel):
    """What a process is to do; the first leaves a model for the second in `folder`."""

    model_config = ConfigDict(frozen=True)

    tasks: str
    task: str
    base: Path
    device: str
    config: Config
    folder: Path

    @property
    def adapter(self) -> Adapter:
        """Where the base with the adapter merged is put; it is not there if no lesson fits."""
        return Adapter.under(self.folder, 0)

    def steps_file(self, verb: str) -> Path:
        """Where a process leaves the seconds of its steps, start and end not counted."""
        return self.folder / f"{verb}.seconds"

    def opened(self) -> Task:
        """The task itself."""
        (task,) = (task for task in load(self.tasks).tasks if task.id == self.task)
        return task


def train(part: Part) -> float:
    """Leave the task's model in the folder; returns the seconds of its steps."""
    from arcd.backends.stock.training import PeftTraining

    task, wanted = part.opened(), part.config.train
    device = pick_device(part.device, part.config.precision)
    encoding = open_encoding(part.base, part.config.encoding)
    lessons = build_lessons([task], part.config, encoding, wanted.max_seq_len)
    if isinstance(lessons, TooLong):
        return 0.0
    batches = [
        lessons[at : at + wanted.batch_size] for at in range(0, len(lessons), wanted.batch_size)
    ]
    training = PeftTraining(
        part.base,
        wanted,
        device,
        encoding.pad,
        steps=len(batches),
        seed=seed_of(part.config.seed, task.id, "adapter"),
        threads=cores(),
    )
    begun = time.monotonic()
    for batch in batches:
        training.step(list(batch))
    seconds = time.monotonic() - begun
    training.save_merged(part.adapter.path)
    return seconds


def sample(part: Part) -> float:
    """Leave the task's verdict in the folder; returns the seconds of generating."""
    from arcd.backends.stock.sampling import StockEngine

    task, config = part.opened(), part.config
    device = pick_device(part.device, config.precision)
    encoding = open_encoding(part.base, config.encoding)
    adapter = part.adapter if part.adapter.path.is_dir() else None
    questions = list(build_questions(task, config, encoding))
    requests = build_requests(task, questions, config)
    candidates: list[Candidate] = []

    def deliver(completion: Completion) -> None:
        candidates.append(to_candidate(completion, adapter, encoding))

    engine = StockEngine(
        adapter.path if adapter else part.base,
        answer_tokens=encoding.answer_tokens,
        end=encoding.end,
        config=config.engine,
        device=device,
    )
    begun = time.monotonic()
    anyio.run(engine.sample, requests, adapter, deliver)
    likelihoods = anyio.run(rescore, questions, candidates, adapter, engine, encoding, config)
    seconds = time.monotonic() - begun
    serial = adapter.serial if adapter else None
    found = verdict(task.id, len(task.tests), candidates, serial, likelihoods=likelihoods)
    (part.folder / "verdict.json").write_text(json.dumps(asdict(found)))
    return seconds


if __name__ == "__main__":
    verb, part = sys.argv[1], Part.model_validate_json(sys.argv[2])
    narrow(part.device)
    spent = {"train": train, "sample": sample}[verb](part)
    part.steps_file(verb).write_text(str(spent))
