"""One task as it is done without arcd: a process that trains, then a process that samples.

The baseline of `arcd bench`, run as `python -m arcd.cli.baseline train|sample PART`: each process
imports torch, loads the base, does its part with all cores, and ends. It uses arcd's own trainer
and engine, so that only the way they are run differs.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import anyio
from pydantic import BaseModel, ConfigDict

from arcd.arc.selection import Candidate, verdict
from arcd.arc.tasks import load
from arcd.backends.protocols import Adapter, Completion, TrainRequest
from arcd.backends.runtime import set_environment
from arcd.config import Config
from arcd.model.base_model import load_model, open_encoding, pick_device
from arcd.model.lessons import build_lessons
from arcd.model.prompts import TooLong, build_questions
from arcd.solver.assignment import build_requests
from arcd.solver.rescoring import rescore
from arcd.solver.sampling import to_candidate
from arcd.system.ledger import Ledger
from arcd.system.processes import cores
from arcd.system.seeds import seed_of


class Part(BaseModel):
    """What a process is to do; the first leaves the adapter for the second in `folder`."""

    model_config = ConfigDict(frozen=True)

    tasks: str
    task: str
    base: Path
    device: str
    config: Config
    folder: Path


async def train(part: Part) -> None:
    """Leave the task's adapter in the folder."""
    from arcd.backends.lora_trainer import LoraTrainer

    (task,) = (task for task in load(part.tasks).tasks if task.id == part.task)
    device = pick_device(part.device, part.config.precision)
    encoding = open_encoding(part.base, part.config.encoding)
    lessons = build_lessons([task], part.config, encoding, part.config.train.max_seq_len)
    if isinstance(lessons, TooLong):
        return
    model = load_model(part.base, device)
    trainer = LoraTrainer(
        model, part.base, part.folder, device, encoding.pad, Ledger(), cores=cores
    )
    seed = seed_of(part.config.seed, task.id, "adapter")
    await trainer.train(TrainRequest(lessons, part.config.train, seed, 0), lambda _: None)


async def sample(part: Part) -> None:
    """Leave the task's verdict in the folder."""
    from arcd.backends.vllm.engine import vllm_engine

    (task,) = (task for task in load(part.tasks).tasks if task.id == part.task)
    device = pick_device(part.device, part.config.precision)
    encoding = open_encoding(part.base, part.config.encoding)
    folder = part.folder / "adapter-0"
    adapter = Adapter(0, folder) if folder.is_dir() else None
    questions = list(build_questions(task, part.config, encoding))
    requests = build_requests(task, questions, part.config)
    candidates: list[Candidate] = []

    def deliver(completion: Completion) -> None:
        candidates.append(to_candidate(completion, adapter, encoding))

    async with vllm_engine(
        part.base,
        answer_tokens=encoding.answer_tokens,
        end=encoding.end,
        config=part.config.engine,
        rank=part.config.train.rank,
        dtype=device.dtype,
        ledger=Ledger(),
        cores=cores(),
    ) as engine:
        await engine.sample(requests, adapter, deliver)
        likelihoods = await rescore(questions, candidates, adapter, engine, encoding, part.config)
    serial = adapter.serial if adapter else None
    found = verdict(task.id, len(task.tests), candidates, serial, likelihoods=likelihoods)
    (part.folder / "verdict.json").write_text(json.dumps(asdict(found)))


if __name__ == "__main__":
    set_environment()
    does = {"train": train, "sample": sample}[sys.argv[1]]
    anyio.run(does, Part.model_validate_json(sys.argv[2]))
