"""Parity: the engine serves exactly the adapter that the trainer trained, all of it.

The logprobs of the same tokens under peft and under vLLM must agree within a tolerance that is
exceeded as soon as any one target module's adapter is missing.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from peft import PeftModel

from arcd.arc.tasks import load
from arcd.backends.lora_trainer import LoraTrainer
from arcd.backends.protocols import Completion, Trained, TrainRequest
from arcd.backends.resident_base import ResidentBase
from arcd.backends.vllm.engine import vllm_engine
from arcd.config import Config, resolve
from arcd.model.base_model import bundled, load_model, open_encoding
from arcd.model.device import Device, DTypeName
from arcd.model.lessons import build_lessons
from arcd.model.prompts import TooLong, build_questions
from arcd.solver.assignment import build_requests
from arcd.system.ledger import Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

TASK = load("arc1-train:25ff71a9").tasks[0]
TOLERANCES: dict[DTypeName, float] = {"float32": 0.002, "bfloat16": 0.015}
"""Mean difference of logprobs in nats. In bf16 it was 0.008, and 0.027 without the module that is
missed least (down_proj), 0.17 without the one that is missed most (k_proj)."""


def config() -> Config:
    return resolve(settings=["train.steps=40", "train.lr=1e-2", "sample.samples=8"])


async def train(folder: Path, device: Device) -> Trained:
    encoding = open_encoding(bundled(), "auto")
    resident = ResidentBase(bundled(), device, encoding)
    trainer = LoraTrainer(resident.lora, bundled(), folder, device, Ledger(), cores=lambda: 1)
    lessons = build_lessons([TASK], config(), encoding, 4096)
    assert not isinstance(lessons, TooLong)
    request = TrainRequest(lessons, config().train, seed=1, serial=0)
    return await trainer.train(request, lambda step: None)


async def sample(trained: Trained, device: Device) -> list[Completion]:
    encoding = open_encoding(bundled(), "auto")
    questions = list(build_questions(TASK, config(), encoding))
    requests = build_requests(TASK, questions, config())
    found: list[Completion] = []
    async with vllm_engine(
        bundled(),
        answer_tokens=encoding.answer_tokens,
        end=encoding.end,
        config=config().engine,
        rank=config().train.rank,
        device=device,
        ledger=Ledger(),
        cores=1,
    ) as engine:
        await engine.sample(requests, trained.adapter, found.append)
    return found


def difference(model: "torch.nn.Module", completions: list[Completion]) -> float:
    """Mean absolute difference, in nats, of the tokens' logprobs under `model` and as sampled."""
    differences = []
    for completion in completions:
        prompt = completion.request.question.tokens
        tokens = torch.tensor([[*prompt, *completion.tokens]])
        with torch.no_grad():
            logits = model(tokens).logits[0, len(prompt) - 1 : -1].float()
        logprobs = logits.log_softmax(-1).gather(-1, tokens[0, len(prompt) :, None])[:, 0]
        differences.append((logprobs - torch.tensor(completion.logprobs)).abs())
    return float(torch.cat(differences).mean())


def without(model: "torch.nn.Module", module: str) -> "dict[str, torch.Tensor]":
    """Silence the adapter of one target module in all layers; returns what was there."""
    kept = {}
    for name, parameter in model.named_parameters():
        if f".{module}.lora_B." in name:
            kept[name] = parameter.detach().clone()
            parameter.data.zero_()
    assert kept
    return kept


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.full), "bfloat16"], ids=str
)
async def test_peft_and_the_engine_agree_on_the_whole_adapter_and_only_on_that(
    tmp_path: Path, dtype: DTypeName
) -> None:
    device, tolerance = Device("cpu", dtype), TOLERANCES[dtype]
    trained = await train(tmp_path, device)
    completions = await sample(trained, device)
    model = PeftModel.from_pretrained(load_model(bundled(), device), trained.adapter.path)
    whole = difference(model, completions)
    assert whole < tolerance
    lost: dict[str, float] = {}
    for module in config().train.target_modules:
        kept = without(model, module)
        lost[module] = difference(model, completions)
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.data.copy_(kept[name])
    assert difference(model, completions) == whole
    assert min(lost.values()) > 1.5 * tolerance, f"could be lost unnoticed ({whole=}): {lost}"
