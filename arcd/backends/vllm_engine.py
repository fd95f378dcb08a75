"""The engine: vLLM in this process, its `step()` called in one thread of ours. (first version)"""

import asyncio
import itertools
import os
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from arcd.backends import Adapter, Completion, Request
from arcd.config import EngineConfig, SampleConfig
from arcd.errors import EngineFailed
from arcd.ledger import Ledger


def _environment(config: EngineConfig) -> None:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE=str(config.cpu_cache_gib),
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        VLLM_USE_FLASHINFER_SAMPLER="0",
        HF_HUB_OFFLINE="1",
        TORCHDYNAMO_DISABLE="1",
    )


@dataclass(eq=False)
class _Batch:
    loop: asyncio.AbstractEventLoop
    open: dict[str, Request]
    adapter: Adapter | None
    deliver: Callable[[Completion], None]
    done: anyio.Event = field(default_factory=anyio.Event)
    cancelled: bool = False
    error: BaseException | None = None


class VllmEngine:
    def __init__(self, base, answer_tokens, end, config, sample, rank, dtype, ledger):
        self._base, self._config, self._sample_config = base, config, sample
        self._answer_tokens, self._end, self._rank = answer_tokens, end, rank
        self._dtype, self._ledger = dtype, ledger
        self._slots = anyio.Semaphore(config.max_loras)
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._batches: dict[str, _Batch] = {}
        self._ids = itertools.count()
        self.steps = 0
        self.failed = None

    def _start(self):
        _environment(self._config)
        from vllm import EngineArgs, LLMEngine

        args = EngineArgs(
            model=str(self._base),
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=self._config.max_model_len,
            max_num_seqs=self._config.max_num_seqs,
            enable_lora=True,
            max_lora_rank=self._rank,
            max_loras=self._config.max_loras,
            max_cpu_loras=self._config.max_loras,
            dtype=self._dtype,
            disable_log_stats=True,
        )
        return LLMEngine.from_engine_args(args)

    def run(self, ready: Callable[[BaseException | None], None]) -> None:
        try:
            self._engine = self._start()
        except Exception as error:
            ready(error)
            return
        ready(None)
        try:
            while True:
                command = self._next_command()
                if command is None:
                    break
                command()
                if self._engine.has_unfinished_requests():
                    with self._ledger.span("engine", "step"):
                        outputs = self._engine.step()
                    self.steps += 1
                    for output in outputs:
                        if output.finished:
                            self._finish(output)
        except BaseException as error:
            self.failed = error
            for batch in set(self._batches.values()):
                batch.error = error
                batch.loop.call_soon_threadsafe(batch.done.set)
        finally:
            self._engine.engine_core.shutdown()
            del self._engine

    def _next_command(self):
        if not self._engine.has_unfinished_requests():
            return self._commands.get()
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return lambda: None

    def _lora(self, adapter):
        from vllm.lora.request import LoRARequest

        return LoRARequest(adapter.name, adapter.serial + 1, str(adapter.path))

    def _add(self, batch: _Batch) -> None:
        from vllm import SamplingParams

        lora = self._lora(batch.adapter) if batch.adapter else None
        if lora:
            with self._ledger.span("engine", "hand-over"):
                self._engine.add_lora(lora)
        t = self._sample_config.temperature
        for name, request in batch.open.items():
            params = SamplingParams(
                temperature=t,
                seed=request.seed if t else None,
                max_tokens=request.question.max_new_tokens,
                stop_token_ids=[self._end],
                allowed_token_ids=list(self._answer_tokens),
                detokenize=False,
                logprobs=0,
                skip_clone=True,
            )
            self._batches[name] = batch
            self._engine.add_request(
                name, {"prompt_token_ids": list(request.question.tokens)}, params, lora_request=lora
            )

    def _finish(self, output: Any) -> None:
        batch = self._batches.pop(output.request_id)
        request = batch.open.pop(output.request_id)
        out = output.outputs[0]
        tokens = tuple(out.token_ids)
        logprobs = tuple(lp[t].logprob for lp, t in zip(out.logprobs, tokens, strict=True))
        finish = "length" if out.finish_reason == "length" else "stop"
        completion = Completion(request, tokens, logprobs, finish)
        last = not batch.open
        if last and batch.adapter:
            self._remove(batch)
        batch.loop.call_soon_threadsafe(self._deliver, batch, completion, last)

    def _remove(self, batch: _Batch) -> None:
        with self._ledger.span("engine", "hand-over"):
            self._engine.remove_lora(batch.adapter.serial + 1)

    @staticmethod
    def _deliver(batch: _Batch, completion: Completion, last: bool) -> None:
        if not batch.cancelled:
            batch.deliver(completion)
        if last:
            batch.done.set()

    def _abort(self, batch: _Batch) -> None:
        names = list(batch.open)
        self._engine.abort_request(names)
        for name in names:
            self._batches.pop(name, None)
        batch.open.clear()
        if batch.adapter and names:
            self._remove(batch)
        batch.loop.call_soon_threadsafe(batch.done.set)

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        if not requests:
            return
        if self.failed:
            raise EngineFailed
        if adapter is None:
            return await self._sample(requests, adapter, deliver)
        async with self._slots:
            await self._sample(requests, adapter, deliver)

    async def _sample(self, requests, adapter, deliver):
        named = {f"{next(self._ids)}": request for request in requests}
        batch = _Batch(asyncio.get_running_loop(), named, adapter, deliver)
        self._commands.put(lambda: self._add(batch))
        try:
            await batch.done.wait()
        except anyio.get_cancelled_exc_class():
            batch.cancelled = True
            batch.done = anyio.Event()
            self._commands.put(lambda: self._abort(batch))
            with anyio.CancelScope(shield=True):
                await batch.done.wait()
            raise
        if batch.error:
            raise EngineFailed(f"the engine stopped: {batch.error}") from batch.error


@asynccontextmanager
async def vllm_engine(
    base: Path,
    *,
    answer_tokens: Sequence[int],
    end: int,
    config: EngineConfig,
    sample: SampleConfig,
    rank: int,
    dtype: str,
    ledger: Ledger,
) -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(base, answer_tokens, end, config, sample, rank, dtype, ledger)
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        def settle() -> None:
            ready.set_exception(error) if error else ready.set_result(None)

        loop.call_soon_threadsafe(settle)

    thread = threading.Thread(target=engine.run, args=(tell,), name="engine")
    thread.start()
    try:
        await ready
    except Exception as error:
        raise EngineFailed(f"the engine did not start: {str(error).splitlines()[0]}") from error
    try:
        yield engine
    finally:
        with anyio.CancelScope(shield=True):
            engine._commands.put(None)
            await to_thread.run_sync(thread.join)
