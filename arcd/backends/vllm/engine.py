"""The event loop's side of the engine: vLLM inside this process, behind the `Engine` protocol.

Commands go to the engine thread through a queue, answers come back by `call_soon_threadsafe`; the
event loop never waits for a step. The thread's side is `worker`, vLLM's start is `startup`. Knows
nothing of grids, votes or schedules.
"""

import asyncio
import importlib.util
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from arcd.backends.device_errors import sticky
from arcd.backends.protocols import Adapter, Completion, EngineUsage, Request
from arcd.backends.vllm.calls import (
    Answer,
    Begin,
    Call,
    Command,
    End,
    Load,
    Stop,
    Unload,
    copied,
    failure,
)
from arcd.backends.vllm.startup import EngineSettings
from arcd.backends.vllm.worker import Worker
from arcd.config import EngineConfig
from arcd.errors import ArcdError, DeviceLost, EngineFailed, MissingPackage
from arcd.model.device import Device, free_memory
from arcd.system.ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor

STOP_TIMEOUT_S = 30.0
"""Longest wait for the last step when the engine is closed. A thread that is busy for longer is
stuck in native code, which no other thread can end; it ends with the process."""


@asynccontextmanager
async def vllm_engine(
    base: Path,
    *,
    answer_tokens: Sequence[int],
    end: int,
    config: EngineConfig,
    rank: int,
    device: Device,
    ledger: Ledger,
    cores: int,
) -> "AsyncIterator[VllmEngine]":
    """A running engine on the model folder `base`; on exit it is stopped and its memory returned.

    An answer consists of `answer_tokens` and closes with `end`, which is one of them. `rank` is the
    largest of the adapters, `cores` the number of OpenMP threads on a CPU.
    One engine at a time in a process, and nothing else may use torch while it starts: vLLM then
    changes the default dtype and the random state of the whole process, and on a GPU it captures
    graphs. What would outlast the start is put back.
    Raises MissingPackage without vLLM, EngineFailed or DeviceLost if vLLM cannot start.
    """
    if importlib.util.find_spec("vllm") is None:
        raise MissingPackage("vLLM is not installed: see the README on CPU and GPU")
    found = free_memory(device)
    total = found[1] if found else None
    settings = EngineSettings(base, list(answer_tokens), end, config, rank, device, total, cores)
    engine = VllmEngine(settings, ledger)
    try:
        await engine._start()
        yield engine
    finally:
        with anyio.move_on_after(STOP_TIMEOUT_S, shield=True):
            await engine._stop()


@dataclass(slots=True)
class AdapterSlot:
    """An adapter's place in the engine, shared by the calls that use the adapter."""

    users: int = 0
    taken: bool = False
    """Whether one of the engine's `max_loras` places is this adapter's."""
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while waiting for a place, so that an adapter takes only one."""


class VllmEngine:
    """An `Engine` that passes requests to the thread and completions to their callers.

    Every request is answered exactly once, unless its caller is cancelled or gets EngineFailed or
    DeviceLost, after which there are no more steps.
    """

    def __init__(self, settings: EngineSettings, ledger: Ledger) -> None:
        """Called in the event loop; the thread starts with `_start`."""
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._worker = Worker(settings, ledger, self._commands, self._answer)
        self._calls: set[Call] = set()
        self._slots: dict[int, AdapterSlot] = {}
        """By the adapter's serial; only of adapters that a call uses."""
        self._free_slots = anyio.Semaphore(settings.config.max_loras)
        self._ready = anyio.Event()
        self._over = anyio.Event()
        self._failure: EngineFailed | DeviceLost | None = None

    @property
    def steps(self) -> int:
        """See `Engine.steps`."""
        return self._worker.steps

    @property
    def busy(self) -> bool:
        """See `Engine.busy`."""
        return bool(self._calls)

    @property
    def fallbacks(self) -> int:
        """Steps that found no memory, after which fewer requests were asked at once."""
        return self._worker.fallbacks

    @property
    def base_tensors(self) -> "Mapping[str, Tensor]":
        """See `startup.base_tensors`."""
        return self._worker.base_tensors

    async def sample(
        self,
        requests: Sequence[Request],
        adapter: Adapter | None,
        deliver: Callable[[Completion], None],
    ) -> None:
        """See `Engine.sample`; waits in line while `max_loras` other adapters are in the engine.

        After SampleRefused the engine goes on.
        """
        async with self._loaded(adapter):
            with self._begun(requests, adapter) as answers:
                for _ in requests:
                    answer = await answers.receive()
                    if isinstance(answer, ArcdError):
                        raise answer
                    deliver(answer)

    def usage(self) -> list[EngineUsage]:
        """See `Engine.usage`."""
        unread = self._worker.usage
        return [unread.popleft() for _ in range(len(unread))]

    @asynccontextmanager
    async def _loaded(self, adapter: Adapter | None) -> AsyncIterator[None]:
        """Keep the adapter in the engine from its first caller's entry to its last one's exit."""
        if adapter is None:
            yield
            return
        slot = self._slots.setdefault(adapter.serial, AdapterSlot())
        slot.users += 1
        try:
            async with slot.lock:
                if not slot.taken:
                    await self._free_slots.acquire()
                    slot.taken = True
                    self._commands.put(Load(adapter))
            yield
        finally:
            slot.users -= 1
            if not slot.users:
                del self._slots[adapter.serial]
                if slot.taken:
                    # The next adapter's Load stands behind this in the queue.
                    self._commands.put(Unload(adapter))
                    self._free_slots.release()

    @contextmanager
    def _begun(
        self, requests: Sequence[Request], adapter: Adapter | None
    ) -> Iterator[MemoryObjectReceiveStream[Answer]]:
        """Send the requests to the thread; abort on exit those that are not answered."""
        if self._failure is not None:
            raise copied(self._failure)
        send, receive = anyio.create_memory_object_stream[Answer](inf)
        call = Call(tuple(requests), adapter, send)
        with send, receive:
            self._calls.add(call)
            self._commands.put(Begin(call))
            try:
                yield receive
            finally:
                self._calls.discard(call)
                self._commands.put(End(call))

    async def _start(self) -> None:
        # A daemon thread: one that is stuck in native code must not keep the process from ending.
        threading.Thread(target=self._run, name="arcd-engine", daemon=True).start()
        await self._ready.wait()
        if self._failure is not None:
            cause = self._failure.__cause__
            raise type(self._failure)(f"the engine could not start: {self._failure}") from cause

    async def _stop(self) -> None:
        self._commands.put(Stop())
        await self._over.wait()

    # The next three run in the engine thread.

    def _run(self) -> None:
        """Run the worker from its start to its end."""
        try:
            self._worker.start()
            self._post(self._ready.set)
            self._worker.serve()
            failed: EngineFailed | DeviceLost = EngineFailed("the engine was stopped")
        except BaseException as error:  # callers must hear of any error: they wait for answers
            failed = _as_failure(error)
        self._post(self._fail, failed)
        try:
            self._worker.close()
        finally:
            self._post(self._over.set)

    def _answer(self, call: Call, answer: Answer) -> None:
        self._post(self._deliver, call, answer)

    def _post(self, function: Callable[..., object], *arguments: object) -> None:
        """Call the function in the event loop, soon."""
        with suppress(RuntimeError):  # the loop is closed: closing took more than STOP_TIMEOUT_S
            self._loop.call_soon_threadsafe(function, *arguments)

    # The next two run in the event loop, posted by the thread.

    def _deliver(self, call: Call, answer: Answer) -> None:
        if call in self._calls:  # else it was cancelled
            call.answers.send_nowait(answer)

    def _fail(self, failed: EngineFailed | DeviceLost) -> None:
        self._failure = failed
        for call in self._calls:
            call.answers.send_nowait(copied(failed))
        self._ready.set()


def _as_failure(error: BaseException) -> EngineFailed | DeviceLost:
    """What callers hear when the thread ends with this error."""
    if isinstance(error, EngineFailed):
        return error
    return DeviceLost.after(error) if sticky(error) else failure(EngineFailed, error)
