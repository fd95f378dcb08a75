"""vLLM behind the engine: adapters, seeds, logprobs, refusals."""

import os
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.toys import (
    ANSWER_TOKENS,
    CLOSING,
    CONTEXT,
    ENDLESS,
    REQUESTS,
    answers,
    ask,
    completions,
    toy_engine,
    write_adapter,
    write_toy_base,
)

from arcd.backends.protocols import Adapter, Request
from arcd.backends.vllm import startup
from arcd.backends.vllm.engine import VllmEngine
from arcd.errors import SampleRefused
from arcd.model.encoding import END

pytest.importorskip("vllm")

import torch

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.engine,
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        Adapter(serial, write_adapter(base, folder / f"{serial}", seed=serial))
        for serial in range(4)
    ]


@dataclass(frozen=True)
class Setting:
    """How an engine was opened; tests that share one share the engine."""

    max_loras: int = 2


WIDE, NARROW = Setting(), Setting(max_loras=1)


def opened_with(setting: Setting) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("engine", [setting], indirect=True, scope="module")


@pytest.fixture(scope="module", params=[WIDE])
async def engine(request: pytest.FixtureRequest, base: Path) -> AsyncIterator[VllmEngine]:
    # As outside of the tests, which turn compilers off in all processes.
    torch._dynamo.config.disable = False
    async with toy_engine(base, max_loras=request.param.max_loras) as engine:
        yield engine


async def together(
    engine: VllmEngine, adapters: Sequence[Adapter | None]
) -> dict[Adapter | None, tuple[tuple[int, ...], ...]]:
    """The answers with each adapter, all asked for at once."""
    found: dict[Adapter | None, tuple[tuple[int, ...], ...]] = {}

    async def call(adapter: Adapter | None) -> None:
        found[adapter] = await answers(engine, adapter)

    async with anyio.create_task_group() as calls:
        for adapter in adapters:
            calls.start_soon(call, adapter)
    return found


async def test_the_base_and_two_adapters_all_answer_differently(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    found = {await answers(engine, adapter) for adapter in (None, adapters[0], adapters[1])}
    assert len(found) == 3


async def test_the_base_answers_as_ever_in_one_batch_with_as_many_adapters_as_fit(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    alone = {adapter: await answers(engine, adapter) for adapter in (None, *adapters[:2])}
    assert await together(engine, [*adapters[:2], None]) == alone


async def test_an_adapter_retrained_in_the_same_folder_is_served_fresh(
    engine: VllmEngine, adapters: list[Adapter], tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapters[0].path, folder)
    before = await answers(engine, Adapter(100, folder))
    assert before == await answers(engine, adapters[0])
    shutil.rmtree(folder)
    shutil.copytree(adapters[1].path, folder)
    after = await answers(engine, Adapter(101, folder))
    assert after == await answers(engine, adapters[1]) != before


async def test_more_adapters_than_places_wait_and_finish(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    alone = {adapter: await answers(engine, adapter) for adapter in adapters}
    assert await together(engine, adapters) == alone


@opened_with(NARROW)
async def test_adapters_take_turns_in_the_order_in_which_they_came(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    order: list[int] = []

    async def call(adapter: Adapter) -> None:
        await answers(engine, adapter)
        order.append(adapter.serial)

    async with anyio.create_task_group() as calls:
        for adapter in adapters:
            calls.start_soon(call, adapter)
    assert order == [0, 1, 2, 3]


@opened_with(NARROW)
async def test_calls_with_the_same_adapter_share_its_place(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    slow, fast = ask(ENDLESS, 300), ask(CLOSING, 1, sample=1)
    with anyio.CancelScope() as scope:

        async def call() -> None:
            await completions(engine, adapters[0], [fast])
            scope.cancel()

        async with anyio.create_task_group() as calls:
            calls.start_soon(completions, engine, adapters[0], [slow])
            calls.start_soon(call)
    assert scope.cancelled_caught


async def test_callers_that_give_up_waiting_for_a_place_leave_it_to_the_others(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    async with anyio.create_task_group() as calls:
        for adapter in adapters[:2]:
            calls.start_soon(completions, engine, adapter, [ask(ENDLESS, 300)])
        async with anyio.create_task_group() as waiting:
            for adapter in adapters[2:]:
                waiting.start_soon(answers, engine, adapter)
            await anyio.wait_all_tasks_blocked()
            waiting.cancel_scope.cancel()
    for _ in range(2):
        with anyio.fail_after(60):
            assert len(await together(engine, adapters)) == 4


async def test_an_adapter_that_cannot_be_loaded_fails_its_caller_alone(
    engine: VllmEngine, adapters: list[Adapter], tmp_path: Path
) -> None:
    with pytest.raises(SampleRefused, match=r"^adapter-77 was refused: \w+Error: [^\n]+$"):
        await answers(engine, Adapter(77, tmp_path / "missing"))
    assert await answers(engine, adapters[0])


async def test_a_request_that_cannot_fit_fails_its_caller_alone(engine: VllmEngine) -> None:
    too_long = ask(CLOSING * CONTEXT, 20)
    with pytest.raises(SampleRefused, match=r"^a request was refused: [^\n]+$"):
        await completions(engine, None, [*REQUESTS, too_long])
    assert await answers(engine, None)


async def test_what_the_steps_did_is_told_once_and_adds_up(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    engine.usage()
    before, begun = engine.steps, time.monotonic()
    found = await together(engine, [None, adapters[0]])
    took = time.monotonic() - begun
    told = engine.usage()
    assert sum(did.steps for did in told) == engine.steps - before
    assert engine.usage() == []
    answers = [answer for both in found.values() for answer in both]
    assert sum(did.generated for did in told) == sum(map(len, answers))
    assert sum(did.prompt for did in told) == 2 * sum(len(r.question.tokens) for r in REQUESTS)
    assert 0 < sum(did.seconds for did in told) < took


async def test_answers_keep_to_the_answer_tokens(
    engine: VllmEngine, adapters: list[Adapter]
) -> None:
    for adapter in (None, adapters[0]):
        assert {token for tokens in await answers(engine, adapter) for token in tokens} <= {
            *ANSWER_TOKENS
        }


async def test_logprobs_are_those_of_the_model_over_its_whole_vocabulary(
    engine: VllmEngine, base: Path, adapters: list[Adapter]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(model, adapters[0].path).eval()
    for completion in await completions(engine, adapters[0]):
        prompt = completion.request.question.tokens
        tokens = torch.tensor([[*prompt, *completion.tokens]])
        with torch.no_grad():
            logits = model(tokens).logits[0, len(prompt) - 1 : -1].float()
        logprobs = logits.log_softmax(-1).gather(-1, tokens[0, len(prompt) :, None])[:, 0]
        assert completion.logprobs == pytest.approx(logprobs.tolist(), abs=0.1)


async def test_with_a_temperature_the_seed_decides(engine: VllmEngine) -> None:
    def seeded(seed: int, sample: int) -> Request:
        return Request(ask(ENDLESS, 20).question, sample, seed, temperature=1.0)

    first = await completions(engine, None, [seeded(7, 0), seeded(7, 1), seeded(8, 2)])
    again = await completions(engine, None, [seeded(7, 0), seeded(8, 1)])
    assert first[0].tokens == first[1].tokens == again[0].tokens
    assert first[2].tokens == again[1].tokens != first[0].tokens


async def test_requests_of_one_batch_have_their_own_temperatures(engine: VllmEngine) -> None:
    def asked(sample: int, temperature: float) -> Request:
        return Request(ask(ENDLESS, 20).question, sample, sample, temperature)

    (alone,) = await completions(engine, None, [asked(0, 0.0)])
    greedy, warm, again = await completions(
        engine, None, [asked(0, 0.0), asked(1, 1.0), asked(2, 0.0)]
    )
    assert greedy.tokens == again.tokens == alone.tokens
    assert warm.tokens != greedy.tokens


async def test_steps_count_up_while_busy_and_stand_still_after(engine: VllmEngine) -> None:
    seen: list[tuple[int, bool]] = []
    before = engine.steps
    await engine.sample(
        [ask(ENDLESS, 20)], None, lambda completion: seen.append((engine.steps, engine.busy))
    )
    ((steps, busy),) = seen
    assert busy
    assert steps >= before + 20
    assert not engine.busy


async def test_torch_is_left_as_it_was(engine: VllmEngine) -> None:
    assert torch.get_default_dtype() == torch.float32
    assert torch.set_num_threads.__name__ == "set_num_threads"
    assert not torch._dynamo.config.disable


async def test_nothing_is_compiled_on_a_cpu(engine: VllmEngine) -> None:
    import torch

    assert await answers(engine, None)
    assert not torch._dynamo.utils.counters["stats"]


def test_what_lasts_beyond_the_start_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch

    def state() -> tuple[object, ...]:
        numbers = np.random.get_state(legacy=False)["state"]["key"].tolist()
        drawn = torch.get_rng_state().tolist(), numbers, random.getstate()
        return drawn, torch.set_num_threads, sys.excepthook

    def other(*given: object, **named: object) -> None:
        pass

    monkeypatch.delenv("LD_PRELOAD", raising=False)
    before = state()
    with startup.process_state_kept():
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(12345)
        torch.set_num_threads = sys.excepthook = other
        os.environ["LD_PRELOAD"] = "libgomp.so"
    assert state() == before
    assert "LD_PRELOAD" not in os.environ


def test_on_a_cpu_vllm_applies_adapters_our_way() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("vLLM is not built for a CPU")
    assert current_platform.get_punica_wrapper() == "arcd.backends.vllm.grouped_lora.GroupedPunica"


@pytest.mark.parametrize("place", ["_model_forward", "_sample", "_get_prompt_logprobs_dict"])
async def test_vllm_itself_answers_as_ever_after_steps_without_memory(
    engine: VllmEngine,
    adapters: list[Adapter],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    # Some prompts take several steps, and have blocks in common, which are in the prefix cache.
    prompt = (*CLOSING * 200, *ENDLESS)
    asked = [ask(prompt, 20, sample=i) for i in range(3)]
    asked += [ask((*CLOSING * i, *ENDLESS), 20, sample=i) for i in range(3, 9)]
    asked.append(replace(ask(prompt, 20, sample=9), answer=(*ENDLESS * 5, END)))
    wanted = await completions(engine, adapters[0], asked)
    # From here on everything is computed again, into blocks that were not used before.
    assert engine._worker._engine.reset_prefix_cache()
    real, made = getattr(GPUModelRunner, place), 0

    def short_of_memory(self: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal made
        made += 1
        if made in (1, 2, 5, 9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, *arguments, **named)

    monkeypatch.setattr(GPUModelRunner, place, short_of_memory)
    found = await completions(engine, adapters[0], asked)
    assert made > 9
    assert [c.tokens for c in found] == [c.tokens for c in wanted]
    for one, two in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=0.05)
