"""A toy base for the real engine, adapters on it, and requests whose answers end or never end.

The layers of the base write nothing, so the next token depends on the last one alone: the last
token of a prompt decides whether its answer ends. An adapter gives the layers something to say.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from arcd.arc.views import PLAIN_COLOURS, View
from arcd.backends.protocols import Adapter, Completion, Request
from arcd.backends.vllm.engine import VllmEngine, vllm_engine
from arcd.config import EngineConfig
from arcd.model.device import Device
from arcd.model.encoding import BEGIN, END, INPUT, NEWLINE, OUTPUT, PAD, CellEncoding
from arcd.model.prompts import Question
from arcd.system.ledger import Ledger

CLOSING = (BEGIN, INPUT, NEWLINE, INPUT)
"""A prompt whose answer by the base is NEWLINE, END."""

ENDLESS = (BEGIN, INPUT, NEWLINE, OUTPUT)
"""A prompt whose answer by the base goes on up to its limit of tokens."""

ANSWER_TOKENS = CellEncoding.answer_tokens[:902]
"""A tenth of all cells: a probability among these differs from that in the whole vocabulary."""

WIDTH, LAYERS, CONTEXT, RANK = 128, 2, 1024, 8


def write_toy_base(folder: Path) -> Path:
    """A base that follows INPUT by NEWLINE, NEWLINE by END, and OUTPUT by cells without an end.

    The folder names another token as its end of text: the caller alone says what ends an answer.
    """
    import torch
    from torch.nn import functional as F

    from arcd.pretrain.cell_model import CellModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CellModel(WIDTH, LAYERS, CONTEXT)
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for before, after in ((INPUT, NEWLINE), (NEWLINE, END)):
            hidden = F.rms_norm(model.inputs.special[before], (WIDTH,))
            model.outputs.special[after] = 0.03 * hidden
    model.config.eos_token_id = PAD
    model.export(folder)
    return folder


def write_adapter(base: Path, folder: Path, *, seed: int) -> Path:
    """A PEFT folder with random weights, large enough to change the answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    adapted.save_pretrained(folder)
    return folder


@asynccontextmanager
async def toy_engine(base: Path, *, max_loras: int = 2) -> AsyncIterator[VllmEngine]:
    """vLLM on the toy base with one core and 1 GiB of cache."""
    async with vllm_engine(
        base,
        answer_tokens=ANSWER_TOKENS,
        end=END,
        config=EngineConfig(max_model_len=CONTEXT, max_loras=max_loras, cpu_cache_gib=1),
        rank=RANK,
        device=Device("cpu", "bfloat16"),
        ledger=Ledger(),
        cores=1,
    ) as engine:
        yield engine


def ask(prompt: tuple[int, ...], limit: int, *, task: str = "task", sample: int = 0) -> Request:
    """A greedy sample of at most `limit` tokens."""
    view = View(False, 0, PLAIN_COLOURS, (0,))
    return Request(Question(task, 0, view, (0,), prompt, limit), sample, seed=sample)


REQUESTS = [ask(ENDLESS, 20, sample=0), ask((*CLOSING * 50, *ENDLESS), 20, sample=1)]
"""Two whose answers never end, with a short prompt and a long one."""


async def completions(
    engine: VllmEngine, adapter: Adapter | None, requests: list[Request] = REQUESTS
) -> list[Completion]:
    """In the order of the requests."""
    found: list[Completion] = []
    await engine.sample(requests, adapter, found.append)
    return sorted(found, key=lambda completion: completion.request.sample)


async def answers(engine: VllmEngine, adapter: Adapter | None) -> tuple[tuple[int, ...], ...]:
    return tuple(completion.tokens for completion in await completions(engine, adapter))
