"""The engine: vLLM inside this process, one thread around `LLMEngine.step()`; imports vllm alone.

The event loop and the engine thread share a queue of commands in one direction and
`call_soon_threadsafe` in the other; neither ever waits for the other. The requests of all callers
are in one batch, so between two steps is the only place where anything can be added or aborted.
Uses vLLM's stable surface only (0.25 to 0.32). Knows nothing of grids, votes or schedules.
"""

import asyncio
import gc
import importlib.util
import itertools
import logging
import os
import queue
import random
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from arcd.backends.protocols import Adapter, Completion, EngineUsage, Request
from arcd.backends.vllm import plugin
from arcd.backends.vllm.step_log import StepLog
from arcd.config import EngineConfig
from arcd.errors import ArcdError, EngineFailed, MissingPackage, SampleRefused
from arcd.system.ledger import Ledger

STEP_TOKENS = 2048
"""Tokens in one step: 0.15 s on a CPU, in which nobody is heard (5M model, one core)."""

PROMPT_TOKENS = 512
"""Of one prompt in one step, beside others. Where an answer is judged, vLLM holds logits and
logprobs for all of them, which it does not plan for (vllm issue 5907): 0.5 GB with a vocabulary of
150 000; all of a long prompt at once can take a GPU's memory."""

PATIENCE = 30.0
"""Seconds that closing waits for the step in hand. A thread that is busy for longer is stuck in
native code, which nobody in its process can end; a daemon thread, it dies with the process."""


USAGE_KEPT = 1000
"""Measurements that are kept for somebody who never asks for them."""

_Answer = Completion | SampleRefused | EngineFailed
_Failure = TypeVar("_Failure", SampleRefused, EngineFailed)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Everything the engine thread needs to know to start and to ask."""

    base: Path
    answer_tokens: Sequence[int]
    end: int
    config: EngineConfig
    rank: int
    dtype: str
    cores: int


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One `sample` under way; `answers` takes its completions, or the reason why there are none."""

    requests: tuple[Request, ...]
    adapter: Adapter | None
    answers: MemoryObjectSendStream[_Answer]


@dataclass(frozen=True, slots=True)
class _Load:
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class _Unload:
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class _Begin:
    call: _Call


@dataclass(frozen=True, slots=True)
class _End:
    """Abort what is still open of a call."""

    call: _Call


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Command = _Load | _Unload | _Begin | _End | _Stop


@dataclass(slots=True)
class AdapterSlot:
    """An adapter's place in the engine, shared by the calls that use the adapter."""

    users: int = 0
    taken: bool = False
    lock: anyio.Lock = field(default_factory=anyio.Lock)


@asynccontextmanager
async def vllm_engine(
    base: Path,
    *,
    answer_tokens: Sequence[int],
    end: int,
    config: EngineConfig,
    rank: int,
    dtype: str,
    ledger: Ledger,
    cores: int,
) -> "AsyncIterator[VllmEngine]":
    """A running engine on the model folder `base`; stopped, and its memory returned, on exit.

    `rank` is the largest of the adapters, `dtype` vLLM's name for the precision ("bfloat16"),
    `cores` how many OpenMP threads it has on a CPU.
    Nothing else may use torch while it starts: vLLM then changes the default dtype and the random
    state of the whole process, and on a GPU it captures graphs; all that lasts is put back. One
    engine at a time in a process. Raises MissingPackage without vLLM, EngineFailed if it cannot
    start.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingPackage("vLLM is not installed: see the README on CPU and GPU")
    settings = _Settings(base, list(answer_tokens), end, config, rank, dtype, cores)
    engine = VllmEngine(settings, ledger)
    try:
        await engine._start()
        yield engine
    finally:
        with anyio.move_on_after(PATIENCE, shield=True):
            await engine._stop()


class VllmEngine:
    """The side of the event loop: hands requests to the thread and completions to the callers.

    Every request is answered exactly once, unless its caller is cancelled or gets EngineFailed.
    """

    def __init__(self, settings: _Settings, ledger: Ledger) -> None:
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._worker = _Worker(settings, ledger, self._commands, self._answer)
        self._calls: set[_Call] = set()
        self._seats: dict[int, AdapterSlot] = {}
        self._free_seats = anyio.Semaphore(settings.config.max_loras)
        self._ready = anyio.Event()
        self._over = anyio.Event()
        self._failure: EngineFailed | None = None

    @property
    def steps(self) -> int:
        """See `Engine.steps`."""
        return self._worker.steps

    @property
    def busy(self) -> bool:
        """See `Engine.busy`."""
        return bool(self._calls)

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        """See `Engine.sample`; waits in line while `max_loras` other adapters are in the engine.

        After SampleRefused the engine goes on.
        """
        async with self._seat(adapter):
            with self._call(requests, adapter) as answers:
                for _ in requests:
                    answer = await answers.receive()
                    if isinstance(answer, ArcdError):
                        raise answer
                    deliver(answer)

    def usage(self) -> list[EngineUsage]:
        """See `Engine.usage`."""
        told = self._worker.usage
        return [told.popleft() for _ in range(len(told))]

    @asynccontextmanager
    async def _seat(self, adapter: Adapter | None) -> AsyncIterator[None]:
        """The adapter is in the engine, from its first caller's entry to its last one's exit."""
        if adapter is None:
            yield
            return
        seat = self._seats.setdefault(adapter.serial, AdapterSlot())
        seat.users += 1
        try:
            async with seat.lock:
                if not seat.taken:
                    await self._free_seats.acquire()
                    seat.taken = True
                    self._commands.put(_Load(adapter))
            yield
        finally:
            seat.users -= 1
            if not seat.users:
                del self._seats[adapter.serial]
                if seat.taken:
                    # The next adapter's loading stands behind this in the queue.
                    self._commands.put(_Unload(adapter))
                    self._free_seats.release()

    @contextmanager
    def _call(
        self, requests: Sequence[Request], adapter: Adapter | None
    ) -> Iterator[MemoryObjectReceiveStream[_Answer]]:
        """The requests are with the thread; those still open on exit are aborted."""
        if self._failure is not None:
            raise _again(self._failure)
        send, receive = anyio.create_memory_object_stream[_Answer](inf)
        call = _Call(tuple(requests), adapter, send)
        with send, receive:
            self._calls.add(call)
            self._commands.put(_Begin(call))
            try:
                yield receive
            finally:
                self._calls.discard(call)
                self._commands.put(_End(call))

    async def _start(self) -> None:
        # A daemon thread: one that is stuck in native code must not keep the process from ending.
        threading.Thread(target=self._run, name="arcd-engine", daemon=True).start()
        await self._ready.wait()
        if self._failure is not None:
            cause = self._failure.__cause__
            raise EngineFailed(f"the engine could not start: {self._failure}") from cause

    async def _stop(self) -> None:
        self._commands.put(_Stop())
        await self._over.wait()

    def _run(self) -> None:
        """The engine thread, from its start to its end."""
        try:
            self._worker.start()
            self._post(self._ready.set)
            self._worker.serve()
            failure = EngineFailed("the engine was stopped")
        except BaseException as error:  # whoever waits must hear of it, whatever it was
            failure = _failed(EngineFailed, error)
        self._post(self._fail, failure)
        try:
            self._worker.close()
        finally:
            self._post(self._over.set)

    def _fail(self, failure: EngineFailed) -> None:
        self._failure = failure
        for call in self._calls:
            call.answers.send_nowait(_again(failure))
        self._ready.set()

    def _answer(self, call: _Call, answer: _Answer) -> None:
        """Called in the engine thread."""
        self._post(self._hand, call, answer)

    def _hand(self, call: _Call, answer: _Answer) -> None:
        if call in self._calls:  # one that was cancelled wants nothing more
            call.answers.send_nowait(answer)

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop was closed: closing this engine ran out of patience
            self._loop.call_soon_threadsafe(function, *arguments)


class _Worker:
    """The side of the engine thread: obeys commands between steps, steps while requests are open.

    Without an open request it sleeps on the queue.
    """

    def __init__(
        self,
        settings: _Settings,
        ledger: Ledger,
        commands: "queue.SimpleQueue[_Command]",
        answer: Callable[[_Call, _Answer], None],
    ) -> None:
        self.steps = 0
        self._settings = settings
        self._ledger = ledger
        self._commands = commands
        self._answer = answer
        self._engine: Any = None
        self._open: dict[str, tuple[_Call, Request]] = {}
        self._loras: dict[int, Any] = {}  # serial: LoRARequest, or SampleRefused
        self._ids = itertools.count()
        self._log = StepLog()
        self.usage: deque[EngineUsage] = deque(maxlen=USAGE_KEPT)

    def start(self) -> None:
        """Bring vLLM up."""
        _set_environment(self._settings.config)
        with _process_state_kept(), _silence():
            self._engine = _start_vllm(self._settings)

    def close(self) -> None:
        """Return vLLM's memory."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine = None
            gc.collect()  # model and cache hang in reference cycles

    def serve(self) -> None:
        """Obey and step until `_Stop`."""
        while True:
            while not self._open or not self._commands.empty():
                command = self._commands.get()
                if isinstance(command, _Stop):
                    return
                self._obey(command)
            self._step()

    def _obey(self, command: _Load | _Unload | _Begin | _End) -> None:
        match command:
            case _Load(adapter):
                self._load(adapter)
            case _Unload(adapter):
                self._unload(adapter)
            case _Begin(call):
                self._begin(call)
            case _End(call):
                self._abort(call)

    def _load(self, adapter: Adapter) -> None:
        from vllm.lora.request import LoRARequest

        # Name and number are part of the prefix cache's key, and vLLM checks neither: a serial that
        # never repeats keeps one adapter from answering with another's keys and values.
        lora = LoRARequest(adapter.name, adapter.serial + 1, str(adapter.path))
        try:
            with self._ledger.span("engine", "hand-over"):
                self._engine.add_lora(lora)
        except Exception as error:
            what = f"{adapter.name} was refused"
            self._loras[adapter.serial] = _failed(SampleRefused, error, what)
        else:
            self._loras[adapter.serial] = lora

    def _unload(self, adapter: Adapter) -> None:
        lora = self._loras.pop(adapter.serial)
        if not isinstance(lora, SampleRefused):
            with self._ledger.span("engine", "hand-over"):
                self._engine.remove_lora(lora.lora_int_id)

    def _begin(self, call: _Call) -> None:
        lora = self._loras[call.adapter.serial] if call.adapter else None
        if isinstance(lora, SampleRefused):
            self._answer(call, _again(lora))
            return
        try:
            for request in call.requests:
                self._ask(call, request, lora)
        except Exception as error:
            self._abort(call)
            self._answer(call, _failed(SampleRefused, error, "a request was refused"))

    def _ask(self, call: _Call, request: Request, lora: Any) -> None:
        name = str(next(self._ids))
        prompt = {"prompt_token_ids": _prompt(request)}
        self._engine.add_request(name, prompt, self._params(request), lora_request=lora)
        self._open[name] = call, request
        self._log.begin(name)

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        settings = self._settings
        given = request.answer is not None
        return SamplingParams(
            # vLLM generates one token at least, also where only the prompt is of interest.
            max_tokens=1 if given else request.question.max_new_tokens,
            prompt_logprobs=0 if given else None,
            temperature=request.temperature,
            seed=request.seed if request.temperature > 0 else None,
            allowed_token_ids=settings.answer_tokens,
            stop_token_ids=[settings.end],
            logprobs=0,  # of the chosen token alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # else 9000 allowed tokens are copied one by one: 1.5 ms a request
        )

    def _abort(self, call: _Call) -> None:
        names = [name for name, (owner, _) in self._open.items() if owner is call]
        self._engine.abort_request(names)
        for name in names:
            del self._open[name]
            self._log.abort(name)

    def _step(self) -> None:
        begun = time.monotonic()
        with self._ledger.span("engine", "step"):
            outputs = self._engine.step()
        self.steps += 1
        self._log.step(time.monotonic() - begun)
        for output in outputs:
            call, request = self._open.pop(output.request_id)
            made = len(output.outputs[0].token_ids)
            self._log.finish(output.request_id, len(_prompt(request)), made)
            self._answer(call, _completion(request, output))
        self.usage.extend(self._log.take())
        if self._open and not self._engine.has_unfinished_requests():
            raise RuntimeError(f"vLLM lost {len(self._open)} requests")


def _prompt(request: Request) -> list[int]:
    return [*request.question.tokens, *(request.answer or ())]


def _completion(request: Request, output: Any) -> Completion | SampleRefused:
    made = output.outputs[0]
    if made.finish_reason not in ("stop", "length"):
        return SampleRefused(f"vLLM gave a request up: {made.finish_reason}")
    if request.answer is None:
        tokens, places, finish = tuple(made.token_ids), made.logprobs, made.finish_reason
    else:
        tokens, finish = request.answer, "stop"
        places = output.prompt_logprobs[-len(tokens) :]
    logprobs = (place[token].logprob for place, token in zip(places, tokens, strict=True))
    return Completion(request, tokens, tuple(logprobs), finish)


def _failed(kind: type[_Failure], error: BaseException, what: str | None = None) -> _Failure:
    """The error in one line, with the error itself as its cause."""
    text = " ".join(str(error).split())[:300]
    cause = f"{type(error).__name__}: {text}" if text else type(error).__name__
    failed = kind(f"{what}: {cause}" if what else cause)
    failed.__cause__ = error
    return failed


def _again(failed: _Failure) -> _Failure:
    """The same failure for another caller; an exception belongs to one traceback."""
    copy = type(failed)(str(failed))
    copy.__cause__ = failed.__cause__
    return copy


def _start_vllm(settings: _Settings) -> Any:
    """An `LLMEngine`; imports vLLM."""
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    config = settings.config
    arguments = {
        "model": str(settings.base),
        "dtype": settings.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "gpu_memory_utilization": config.gpu_memory,
        "enable_lora": True,
        "max_lora_rank": settings.rank,
        "max_loras": config.max_loras,
        "max_num_batched_tokens": max(STEP_TOKENS, config.max_num_seqs),
        "long_prefill_token_threshold": min(PROMPT_TOKENS, config.max_model_len),
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        "load_format": "safetensors",  # nothing is unpickled
        "generation_config": "vllm",  # not the folder's: it could add tokens that end an answer
        "logprobs_mode": "raw_logprobs",  # before allowed_token_ids and temperature: the model's
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if current_platform.is_cpu():
        arguments |= _cpu_arguments(config)
        _prepare_cpu_thread(settings.cores)
    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def _cpu_arguments(config: EngineConfig) -> dict[str, object]:
    return {
        "enforce_eager": True,
        # A request without an adapter has slot -1, and on a CPU vLLM indexes its weights with that:
        # in one batch with adapters the base would answer with the last slot's (0.32, torch_ops).
        # Slots fill from the first, so with one more than is ever used the last one stays zero.
        "max_loras": config.max_loras + 1,
    }


def _set_environment(config: EngineConfig) -> None:
    """What vLLM reads when it is imported; must come first."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_cache_gib),
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # vllm issue 52247: freezes beside other kernels
        # The newer runner takes at most 1024 allowed tokens; a cell encoding has 9002.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        plugin.WANTED: "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def _prepare_cpu_thread(cores: int) -> None:
    """Settings of torch for this thread alone."""
    import torch

    # Threads made later begin with this number, older ones keep theirs.
    torch.set_num_threads(cores)
    # vLLM compiles one trifle, the rank of a chosen token among all: 2 to 25 s at the first step,
    # and an error on machines without a C++ compiler. torch's settings are kept by thread.
    torch._dynamo.config.disable = True


@contextmanager
def _process_state_kept() -> Iterator[None]:
    """Put back what vLLM changes for the whole process while it starts.

    What stays does no harm: some variables of the environment, stubs in `torch.cuda` on a CPU, and
    the start-up heap frozen out of garbage collection until vLLM is shut down.
    """
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    set_num_threads, excepthook = torch.set_num_threads, sys.excepthook
    preload = os.environ.get("LD_PRELOAD")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_num_threads = set_num_threads  # replaced by a no-op
        sys.excepthook = excepthook  # replaced by one that prefixes a rank
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)  # meant for worker processes


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what vLLM and torch say about themselves while they start off the terminal."""
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        yield
