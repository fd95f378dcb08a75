"""Answers sampled with vLLM's `LLM.generate`, as most public scripts do it.

All requests are one batch. The adapter was merged into the model: a `LoRARequest` in vLLM's own way
takes up to ten times as long on a CPU. arcd's plugin is off. Other settings are vLLM's, but for
those that make the answers the ones that arcd asks for, the memory, and two that make vLLM faster
than it comes: see `ENVIRONMENT` and `CPU_ENVIRONMENT`.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arcd.backends.protocols import Adapter, Completion, EngineUsage, Request
from arcd.backends.vllm import plugin
from arcd.backends.vllm.requests import completion, prompt, sampling_arguments
from arcd.config import EngineConfig
from arcd.errors import SampleRefused
from arcd.model.base_model import cpu_cache_gib
from arcd.model.device import Device

ENVIRONMENT = {
    # The engine in this process: in one of its own, as it comes, each start takes 10 to 17 s more.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The newer runner takes at most 1024 allowed tokens; a cell encoding has 9002.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What is set before vLLM is imported."""

CPU_ENVIRONMENT = {
    # Else vLLM compiles a small function at its first step: seconds for each process, and an error
    # on a machine without a C++ compiler.
    "TORCHDYNAMO_DISABLE": "1",
}
"""The same on a CPU alone, where vLLM is told to be eager."""


class StockEngine:
    """An `Engine` that makes one call of `LLM.generate` for each call of `sample`."""

    busy = False

    def __init__(
        self,
        model: Path,
        *,
        answer_tokens: Sequence[int],
        end: int,
        config: EngineConfig,
        device: Device,
    ) -> None:
        """Start vLLM on the folder of a model; the process is vLLM's alone."""
        on_cpu = device.kind == "cpu"
        os.environ |= ENVIRONMENT | (CPU_ENVIRONMENT if on_cpu else {})
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(cpu_cache_gib(model, config))
        os.environ.pop(plugin.WANTED, None)
        from vllm import LLM

        self.steps = 0
        self._answer_tokens, self._end = list(answer_tokens), end
        self._llm = LLM(
            model=str(model),
            dtype=device.dtype,
            enforce_eager=on_cpu,
            max_model_len=config.max_model_len,
            skip_tokenizer_init=True,  # a base of cells has no tokenizer
            generation_config="vllm",  # not the folder's: it could add tokens that end an answer
        )

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        """See `Engine.sample`; the adapter is in the model. The event loop waits for the last."""
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt(request)} for request in requests],
            [self._parameters(request) for request in requests],
            use_tqdm=False,
        )
        self.steps += 1
        for request, output in zip(requests, outputs, strict=True):
            found = completion(request, output)
            if isinstance(found, SampleRefused):
                raise found
            deliver(found)

    def usage(self) -> list[EngineUsage]:
        """Nothing: `generate` tells of no steps."""
        return []

    def _parameters(self, request: Request) -> Any:
        from vllm import SamplingParams

        return SamplingParams(**sampling_arguments(request, self._answer_tokens, self._end))
