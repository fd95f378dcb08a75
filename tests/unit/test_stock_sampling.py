"""What the baseline of `arcd bench` asks of vLLM, told with a stand-in for vLLM."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from arcd.arc.views import PLAIN_COLOURS, View
from arcd.backends.protocols import Adapter, Completion, Request
from arcd.backends.stock.sampling import StockEngine
from arcd.backends.vllm import plugin
from arcd.config import EngineConfig
from arcd.model.device import Device
from arcd.model.prompts import Question

END = 2


@dataclass
class Made:
    """All that was asked of vLLM."""

    started: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    plugged: list[str | None] = field(default_factory=list)


def place(token: int, logprob: float) -> dict[int, Any]:
    return {token: SimpleNamespace(logprob=logprob)}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """A vLLM that answers every prompt with 7 and END, and gives a prompt's tokens -0.25 each."""
    made = Made()

    class LLM:
        def __init__(self, **arguments: Any) -> None:
            made.started.append(arguments)
            made.plugged.append(plugin.plugin())

        def generate(self, prompts: Any, parameters: Any, *, use_tqdm: bool) -> Any:
            made.calls.append((prompts, parameters))
            answer = SimpleNamespace(
                token_ids=[7, END], logprobs=[place(7, -1), place(END, -2)], finish_reason="stop"
            )
            return [
                SimpleNamespace(
                    outputs=[answer],
                    prompt_logprobs=[place(token, -0.25) for token in prompt["prompt_token_ids"]],
                )
                for prompt in prompts
            ]

    vllm = ModuleType("vllm")
    vllm.__dict__.update(LLM=LLM, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(os, "environ", {})
    return made


def opened(kind: Literal["cpu", "cuda"] = "cpu") -> StockEngine:
    return StockEngine(
        Path("model"),
        answer_tokens=(END, 7),
        end=END,
        config=EngineConfig(cpu_cache_gib=3),
        device=Device(kind, "bfloat16"),
    )


def ask(sample: int, answer: tuple[int, ...] | None = None) -> Request:
    view = View(False, 0, PLAIN_COLOURS, (0,))
    question = Question("t", 0, view, (0,), (1, 5, 6), 40)
    return Request(question, sample, seed=sample, answer=answer)


@pytest.mark.anyio
async def test_all_requests_are_one_batch_of_the_model(made: Made) -> None:
    adapter = Adapter(0, Path("model"))
    found: list[Completion] = []
    await opened().sample([ask(0), ask(1)], adapter, found.append)
    ((prompts, parameters),) = made.calls
    assert prompts == [{"prompt_token_ids": [1, 5, 6]}] * 2
    assert [each.max_tokens for each in parameters] == [40, 40]
    assert {tuple(each.allowed_token_ids) for each in parameters} == {(END, 7)}
    assert [(c.request.sample, c.tokens, c.logprobs, c.finish) for c in found] == [
        (0, (7, END), (-1, -2), "stop"),
        (1, (7, END), (-1, -2), "stop"),
    ]


@pytest.mark.anyio
async def test_an_answer_that_is_given_is_read_with_the_prompt(made: Made) -> None:
    found: list[Completion] = []
    await opened().sample([ask(0, answer=(7, 7, END))], None, found.append)
    ((prompts, parameters),) = made.calls
    assert prompts == [{"prompt_token_ids": [1, 5, 6, 7, 7, END]}]
    assert (parameters[0].max_tokens, parameters[0].prompt_logprobs) == (1, 0)
    assert (found[0].tokens, found[0].logprobs) == ((7, 7, END), (-0.25,) * 3)


def test_arcds_plugin_is_off(made: Made) -> None:
    os.environ[plugin.WANTED] = "1"
    opened()
    assert made.plugged == [None]
    assert made.started[0]["model"] == "model"
    assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_only_a_gpu_compiles_and_captures_graphs(made: Made) -> None:
    """Without compilation vLLM refuses to start unless it is told to be eager."""
    opened("cuda")
    assert "TORCHDYNAMO_DISABLE" not in os.environ
    opened("cpu")
    assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
    assert [each["enforce_eager"] for each in made.started] == [False, True]
