"""A stand-in for vLLM's `LLMEngine`, without a model, that is told in which step memory runs out.

It behaves as the in-process engine of vLLM 0.19 to 0.33 does where the worker could go wrong. With
asynchronous scheduling a step schedules a batch and returns the outputs of the batch before; the
last batch stays in a queue. A batch counts as computed, and its prompts are in the prefix cache, as
soon as it is scheduled. An error of the forward pass is raised at once, one while sampling with the
batch's outputs. Who reads what a failed batch should have written answers GARBAGE.
"""

import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

TOKEN, GARBAGE = 7, 666
"""What right answers consist of, and wrong ones."""


@dataclass
class Sequence:
    """A request in vLLM."""

    name: str
    prompt: tuple[int, ...]
    limit: int
    stop_after: int
    """Tokens after which the model ends the answer, if the limit lets it."""
    scheduled: int = 0
    tokens: list[int] = field(default_factory=list)
    spoilt: bool = False


@dataclass
class Batch:
    """What a step has scheduled: sequences, each for its next token."""

    rows: list[Sequence]
    outcome: "Future[None]" = field(default_factory=Future)


class Activations:
    """The tensors of a step; tests hold weak references to them."""

    def __init__(self) -> None:
        """Only the garbage collector finds it."""
        self.itself = self


Fault = Callable[[int, int], Exception | None]
"""The error of the batch with this number (from 0) and this many rows, if it has one."""


def no_fault(number: int, rows: int) -> None:
    """A batch without an error."""


class ScriptedVllm:
    """As much of `LLMEngine` as a worker uses."""

    def __init__(
        self,
        *,
        asynchronous: bool = True,
        forward: Fault = no_fault,
        sampling: Fault = no_fault,
        sequences: int = 64,
        stop_after: int = 1000,
    ) -> None:
        """`forward` and `sampling` are the faults; answers end after `stop_after` tokens."""
        self.queue_size = 2 if asynchronous else 1
        self.forward, self.sampling = forward, sampling
        self.sequences, self.stop_after = sequences, stop_after
        self.open: dict[str, Sequence] = {}
        self.finished: set[str] = set()
        """Names that the scheduler has not yet told the model runner."""
        self.in_runner: set[str] = set()
        self.cache: dict[tuple[int, ...], bool] = {}
        """By a prompt that is in the prefix cache whether its keys and values were written."""
        self.queue: deque[Batch] = deque()
        self.batches: list[int] = []
        """Rows of the batches so far."""
        self.names: list[str] = []
        self.activations: list[Any] = []
        """Weak references, if a test wants them: see `watch`."""
        self.watch: Callable[[Activations], Any] | None = None
        self.log: list[str] = []

    def add_request(self, name: str, prompt: Any, parameters: Any, *, lora_request: Any) -> None:
        """See `LLMEngine.add_request`."""
        assert name not in self.names, "a name was used twice"
        self.names.append(name)
        tokens = tuple(prompt["prompt_token_ids"])
        self.open[name] = Sequence(name, tokens, parameters.max_tokens, self.stop_after)

    def abort_request(self, names: list[str]) -> None:
        """See `LLMEngine.abort_request`."""
        for name in names:
            if self.open.pop(name, None):
                self.finished.add(name)

    def add_lora(self, lora: Any) -> None:
        """See `LLMEngine.add_lora`."""
        self.log.append(f"load {lora.lora_int_id}")

    def remove_lora(self, number: int) -> None:
        """See `LLMEngine.remove_lora`."""
        self.log.append(f"remove {number}")

    def has_unfinished_requests(self) -> bool:
        """See `LLMEngine.has_unfinished_requests`."""
        return bool(self.open)

    def reset_prefix_cache(self) -> bool:
        """See `LLMEngine.reset_prefix_cache`."""
        if self.open:
            return False
        self.cache.clear()
        return True

    def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
        """See `LLMEngine.apply_model`."""
        return [function(SimpleNamespace(named_parameters=tuple))]

    @property
    def engine_core(self) -> "ScriptedVllm":
        """What is shut down."""
        return self

    def shutdown(self) -> None:
        """See `EngineCoreClient.shutdown`."""
        self.log.append("shut down")

    def step(self) -> list[Any]:
        """See `LLMEngine.step`, and `EngineCore.step_with_batch_queue` for the order."""
        if self.open or self.finished:
            batch = self._scheduled()
            self._execute(batch)
            self.queue.append(batch)
            if len(self.queue) < self.queue_size and (batch.rows or self.open):
                return []
        elif not self.queue:
            return []
        batch = self.queue.popleft()
        batch.outcome.result()
        return [self._output(row) for row in batch.rows if self._ended(row)]

    def _scheduled(self) -> Batch:
        """The next batch; the scheduler's state is as if it had been computed."""
        self.in_runner -= self.finished
        self.finished.clear()
        running = [s for s in self.open.values() if s.scheduled < s.limit][: self.sequences]
        for row in running:
            if not row.scheduled:
                row.spoilt = not self.cache.setdefault(row.prompt, True)
            row.scheduled += 1
        self.in_runner |= {row.name for row in running}
        return Batch(running)

    def _execute(self, batch: Batch) -> None:
        """Compute a batch, as `UniProcExecutor` does: sampling's error is the future's."""
        if not batch.rows:
            batch.outcome.set_result(None)
            return
        number = len(self.batches)
        self.batches.append(len(batch.rows))
        if error := self.forward(number, len(batch.rows)):
            self._spoil(batch)
            self._fail(error)
        if error := self.sampling(number, len(batch.rows)):
            try:
                self._fail(error)
            except Exception as raised:
                batch.outcome.set_exception(raised)
            return
        batch.outcome.set_result(None)

    def _fail(self, error: Exception) -> None:
        activations = Activations()
        if self.watch:
            self.activations.append(self.watch(activations))
        raise error

    def _spoil(self, batch: Batch) -> None:
        for row in batch.rows:
            row.spoilt = True
            self.cache[row.prompt] = False

    def _ended(self, row: Sequence) -> bool:
        """Give a row its token, and tell whether that was its last one."""
        if self.open.get(row.name) is not row:
            return False
        row.tokens.append(GARBAGE if row.spoilt else TOKEN)
        return len(row.tokens) in (row.limit, row.stop_after)

    def _output(self, row: Sequence) -> Any:
        del self.open[row.name]
        self.finished.add(row.name)
        made = SimpleNamespace(
            token_ids=row.tokens,
            logprobs=[{token: SimpleNamespace(logprob=-1.0)} for token in row.tokens],
            finish_reason="stop" if len(row.tokens) == row.stop_after else "length",
        )
        return SimpleNamespace(request_id=row.name, outputs=[made], prompt_logprobs=None)


def install_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install as much of vLLM's modules as a worker imports."""
    vllm, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
    parameters = ModuleType("vllm.sampling_params")
    vllm.__dict__.update(SamplingParams=SimpleNamespace)
    lora.__dict__.update(
        LoRARequest=lambda name, number, path: SimpleNamespace(lora_name=name, lora_int_id=number)
    )
    parameters.__dict__.update(RequestOutputKind=SimpleNamespace(FINAL_ONLY=2))
    for module in (vllm, ModuleType("vllm.lora"), lora, parameters):
        monkeypatch.setitem(sys.modules, module.__name__, module)
