"""The engine thread's side: a worker that obeys commands between steps and makes vLLM's steps.

Requests of all callers are in one batch, so the only place to add or abort a request is between two
steps. It uses vLLM's stable surface only, which `tests/data/vllm-signatures.json` has by version.
Where a step finds no memory, its requests are asked again, fewer at once (`recovery`, `admission`).
Knows nothing of the event loop: answers leave through a function that it is given.
"""

import gc
import itertools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from arcd.backends.device_errors import out_of_memory, sticky
from arcd.backends.protocols import Adapter, EngineUsage, Request
from arcd.backends.vllm import startup
from arcd.backends.vllm.admission import Admission
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
from arcd.backends.vllm.recovery import only_memory, release_memory, settle
from arcd.backends.vllm.requests import completion, prompt, sampling_arguments
from arcd.backends.vllm.startup import EngineSettings
from arcd.backends.vllm.step_log import StepLog
from arcd.errors import SampleRefused
from arcd.system.ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

UNREAD_USAGE_LIMIT = 1000
"""Most measurements kept for `usage`; if they are not read, the oldest are dropped."""


class Worker:
    """Obeys commands, and makes steps while requests are open; else it sleeps on the queue."""

    def __init__(
        self,
        settings: EngineSettings,
        ledger: Ledger,
        commands: "queue.SimpleQueue[Command]",
        answer: Callable[[Call, Answer], None],
    ) -> None:
        """`answer` is called in the engine thread."""
        self.steps = 0
        self.fallbacks = 0
        """Steps that found no memory."""
        self.usage: deque[EngineUsage] = deque(maxlen=UNREAD_USAGE_LIMIT)
        self.base_tensors: dict[str, Tensor] = {}
        """See `startup.base_tensors`; none before the start and after the end."""
        self._settings = settings
        self._ledger = ledger
        self._commands = commands
        self._answer = answer
        self._engine: Any = None
        self._open: dict[str, tuple[Call, Request]] = {}
        """What is in vLLM, by its name for a request; empty only if nothing waits."""
        self._admission = Admission(settings.config.sequences(settings.device.kind))
        self._loras: dict[int, Any] = {}
        """By an adapter's serial a LoRARequest, or the SampleRefused that its loading ended in."""
        self._names = itertools.count()
        self._log = StepLog()

    def start(self) -> None:
        """Start vLLM; raises whatever vLLM raises."""
        self._engine = startup.start(self._settings, self._ledger)
        self.base_tensors = startup.base_tensors(self._engine)

    def serve(self) -> None:
        """Obey commands and make steps until `Stop`."""
        while True:
            while not self._open or not self._commands.empty():
                command = self._commands.get()
                if isinstance(command, Stop):
                    return
                self._obey(command)
            self._step()

    def close(self) -> None:
        """Return vLLM's memory."""
        if self._engine is not None:
            self._engine.engine_core.shutdown()
            self._engine = None
            self.base_tensors = {}
            gc.collect()  # reference cycles hold the model and the cache

    def _obey(self, command: Load | Unload | Begin | End) -> None:
        match command:
            case Load(adapter=adapter):
                self._load(adapter)
            case Unload(adapter=adapter):
                self._unload(adapter)
            case Begin(call=call):
                self._begin(call)
            case End(call=call):
                self._abort(call)
                self._admit()

    def _step(self) -> None:
        begun = time.monotonic()
        try:
            with self._ledger.span("engine", "step"):
                outputs = self._engine.step()
        except Exception as error:
            if not only_memory(error):
                raise
            outputs = None
        if outputs is None:  # outside, where nothing holds the error any more
            self._fall_back()
            return
        self.steps += 1
        self._log.step(time.monotonic() - begun)
        answers = [self._finish(output) for output in outputs]
        # Before the answers: a caller that has them finds their steps in `usage`.
        self.usage.extend(self._log.take())
        for call, answer in answers:
            self._answer(call, answer)
        self._admit()
        if self._open and not self._engine.has_unfinished_requests():
            raise RuntimeError(f"vLLM lost {len(self._open)} requests")

    def _finish(self, output: Any) -> tuple[Call, Answer]:
        call, request = self._open.pop(output.request_id)
        generated = len(output.outputs[0].token_ids)
        self._log.finish(output.request_id, len(prompt(request)), generated)
        self._admission.finish()
        return call, completion(request, output)

    def _fall_back(self) -> None:
        """Memory ran out in a step: begin again with its requests, fewer of them at once."""
        self.fallbacks += 1
        entries = list(self._open.values())
        self._abort_named(list(self._open))
        settle(self._engine)
        release_memory()
        pause = self._admission.fall_back(entries)
        if pause is None:
            [(call, _)] = entries
            self._abort(call)
            self._answer(call, SampleRefused("no memory for a request, though it was alone"))
        else:
            log.warning(
                "the engine ran out of memory: requests at once were %d, and are at most %d now",
                len(entries),
                self._admission.limit,
            )
            time.sleep(pause)
        self._admit()

    def _begin(self, call: Call) -> None:
        lora = self._loras[call.adapter.serial] if call.adapter else None
        if isinstance(lora, SampleRefused):
            self._answer(call, copied(lora))
            return
        self._admission.add((call, request) for request in call.requests)
        self._admit()

    def _admit(self) -> None:
        """Add what waits and has room."""
        while entry := self._admission.next(len(self._open)):
            call, request = entry
            try:
                self._add(call, request)
            except Exception as error:
                if sticky(error):
                    raise
                self._abort(call)
                self._answer(call, failure(SampleRefused, error, "a request was refused"))

    def _add(self, call: Call, request: Request) -> None:
        lora = self._loras[call.adapter.serial] if call.adapter else None
        name = str(next(self._names))
        tokens = {"prompt_token_ids": prompt(request)}
        parameters = _sampling_parameters(request, self._settings)
        self._engine.add_request(name, tokens, parameters, lora_request=lora)
        self._open[name] = call, request
        self._log.begin(name)

    def _abort(self, call: Call) -> None:
        self._admission.drop(call)
        self._abort_named([name for name, (owner, _) in self._open.items() if owner is call])

    def _abort_named(self, names: list[str]) -> None:
        self._engine.abort_request(names)
        for name in names:
            del self._open[name]
            self._log.abort(name)

    def _load(self, adapter: Adapter) -> None:
        """Load an adapter; a second time after memory was freed, if there was none."""
        refused = self._try_load(adapter)
        if refused is not None and out_of_memory(refused):
            release_memory()
            refused = self._try_load(adapter)
        if refused is not None:
            self._loras[adapter.serial] = refused

    def _try_load(self, adapter: Adapter) -> SampleRefused | None:
        """Why vLLM does not take the adapter; None if it does."""
        from vllm.lora.request import LoRARequest

        # Name and number are part of the prefix cache's key, and vLLM checks neither: a serial that
        # never repeats keeps one adapter from answering with another's keys and values.
        lora = LoRARequest(adapter.name, adapter.serial + 1, str(adapter.path))
        try:
            with self._ledger.span("engine", "hand-over"):
                self._engine.add_lora(lora)
        except Exception as error:
            if sticky(error):
                raise
            # vLLM counts an adapter as loaded before all of it is copied.
            with suppress(Exception):
                self._engine.remove_lora(lora.lora_int_id)
            return failure(SampleRefused, error, f"{adapter.name} was refused")
        self._loras[adapter.serial] = lora
        return None

    def _unload(self, adapter: Adapter) -> None:
        lora = self._loras.pop(adapter.serial)
        if not isinstance(lora, SampleRefused):
            with self._ledger.span("engine", "hand-over"):
                self._engine.remove_lora(lora.lora_int_id)


def _sampling_parameters(request: Request, settings: EngineSettings) -> Any:
    """The request as vLLM's `SamplingParams`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **sampling_arguments(request, settings.answer_tokens, settings.end),
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # else 9000 allowed tokens are copied one by one: 1.5 ms a request
    )
