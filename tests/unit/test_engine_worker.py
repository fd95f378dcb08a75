"""The engine's thread on a scripted vLLM: late outputs, aborts, and steps that find no memory."""

import gc
import queue
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.scripted_vllm import TOKEN, Fault, ScriptedVllm, install_modules, no_fault

from arcd.arc.views import PLAIN_COLOURS, View
from arcd.backends.protocols import Adapter, Completion, Request
from arcd.backends.vllm import admission, recovery, startup
from arcd.backends.vllm.calls import Answer, Begin, Call, Command, End, Load, Stop, Unload
from arcd.backends.vllm.startup import EngineSettings
from arcd.backends.vllm.worker import Worker
from arcd.config import EngineConfig
from arcd.errors import SampleRefused
from arcd.model.device import Device
from arcd.model.prompts import Question
from arcd.system.ledger import Ledger

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"

MODES = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


def ask(sample: int, prompt: tuple[int, ...] = (1, 2, 3), limit: int = 5) -> Request:
    view = View(False, 0, PLAIN_COLOURS, (0,))
    return Request(Question("task", 0, view, (0,), prompt, limit), sample, seed=sample)


@dataclass
class Rig:
    """A worker on a scripted vLLM, and what it has answered."""

    vllm: ScriptedVllm
    commands: "queue.SimpleQueue[Command]"
    worker: Worker = field(init=False)
    answers: list[tuple[Call, Answer]] = field(default_factory=list)
    expected: int = 0
    on_answer: Callable[[], None] | None = None
    unused: Any = None
    """A call's stream, which belongs to the event loop's side."""

    def call(self, *requests: Request, adapter: Adapter | None = None) -> Call:
        """Begin a call."""
        call = Call(requests, adapter, self.unused)
        self.commands.put(Begin(call))
        self.expected += len(requests)
        return call

    def serve(self, expected: int | None = None) -> list[Answer]:
        """Work until this many answers were given; all of them so far."""
        self.expected = self.expected if expected is None else expected
        self.worker.serve()
        return [answer for _, answer in self.answers]

    def hear(self, call: Call, answer: Answer) -> None:
        self.answers.append((call, answer))
        if self.on_answer:
            self.on_answer()
        if len(self.answers) == self.expected:
            self.commands.put(Stop())


Start = Callable[[ScriptedVllm], Rig]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a worker on a scripted vLLM; nothing is slept."""
    install_modules(monkeypatch)
    monkeypatch.setattr(admission, "PAUSES_S", (0.0, 0.0, 0.0))

    def start(vllm: ScriptedVllm) -> Rig:
        monkeypatch.setattr(startup, "start", lambda settings, ledger: vllm)
        config = EngineConfig(max_num_seqs=vllm.sequences)
        device = Device("cuda", "bfloat16", capability=(8, 9))
        settings = EngineSettings(Path("base"), [TOKEN], TOKEN, config, 16, device, 1, 1)
        commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        found = Rig(vllm, commands)
        found.worker = Worker(settings, Ledger(), commands, found.hear)
        found.worker.start()
        return found

    return start


def fault(*numbers: int, error: str = NO_MEMORY) -> Fault:
    """The batches with these numbers fail."""
    return lambda number, rows: RuntimeError(error) if number in numbers else None


def failing(where: str, what: Fault, asynchronous: bool) -> ScriptedVllm:
    """A vLLM with this fault in its forward pass or while sampling."""
    forward, sampling = (what if where == place else no_fault for place in ("forward", "sampling"))
    return ScriptedVllm(asynchronous=asynchronous, forward=forward, sampling=sampling)


def above(most: int) -> Fault:
    """Batches with more rows find no memory."""
    return lambda number, rows: RuntimeError(NO_MEMORY) if rows > most else None


def right(answers: list[Answer], length: int = 5) -> bool:
    """Whether all were answered as the model would, without anything that a failed step left."""
    return all(
        isinstance(answer, Completion) and answer.tokens == (TOKEN,) * length for answer in answers
    )


@MODES
def test_every_request_is_answered_once(rig: Start, asynchronous: bool) -> None:
    worked = rig(ScriptedVllm(asynchronous=asynchronous))
    worked.call(ask(0), ask(1, limit=3))
    worked.call(ask(2))
    answers = worked.serve()
    found = [answer.request.sample for answer in answers if isinstance(answer, Completion)]
    assert sorted(found) == [0, 1, 2]
    assert worked.vllm.batches[:5] == [3, 3, 3, 2, 2]


def test_with_late_outputs_the_first_step_has_none_and_a_batch_is_left_over(rig: Start) -> None:
    worked = rig(ScriptedVllm(stop_after=3))
    worked.call(ask(0))
    assert right(worked.serve(), length=3)
    # The model's end is known one step late: a token that nobody wants is under way.
    assert len(worked.vllm.queue) == 1
    worked.call(ask(1))
    assert right(worked.serve(), length=3)


@MODES
def test_a_call_that_ends_early_is_aborted_under_way(rig: Start, asynchronous: bool) -> None:
    worked = rig(ScriptedVllm(asynchronous=asynchronous))
    given_up = worked.call(*(ask(i, limit=50) for i in range(3)))
    worked.call(ask(3, limit=4), ask(4, limit=60))
    worked.on_answer = lambda: worked.commands.put(End(given_up))
    answers = worked.serve(expected=2)
    assert [a.request.sample for a in answers if isinstance(a, Completion)] == [3, 4]
    assert not worked.vllm.open


def test_what_waits_for_room_gets_that_of_a_call_that_ends(rig: Start) -> None:
    worked = rig(ScriptedVllm())
    first, _ = worked.call(ask(0, limit=50)), worked.call(ask(1))

    def forward(number: int, rows: int) -> Exception | None:
        if number == 3:
            worked.commands.put(End(first))
        return RuntimeError(NO_MEMORY) if number == 0 else None

    worked.vllm.forward = forward
    [answer] = worked.serve(expected=1)
    assert isinstance(answer, Completion)
    assert answer.request.sample == 1
    assert max(worked.vllm.batches[1:]) == 1


@MODES
def test_the_usage_has_all_tokens_and_at_most_one_step_more_for_each_start(
    rig: Start, asynchronous: bool
) -> None:
    worked = rig(ScriptedVllm(asynchronous=asynchronous, stop_after=17))
    for _ in range(3):
        worked.call(ask(0, limit=40), ask(1, limit=9))
        worked.serve(len(worked.answers) + 2)
    usage = worked.worker.usage
    assert sum(each.prompt for each in usage) == 3 * 2 * 3
    assert sum(each.generated for each in usage) == 3 * (17 + 9)
    steps = sum(each.steps for each in usage)
    assert steps == 3 * (17 + asynchronous) == worked.worker.steps


@MODES
@pytest.mark.parametrize("where", ["forward", "sampling"])
@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_a_step_without_memory_is_survived(
    rig: Start, asynchronous: bool, where: str, number: int
) -> None:
    worked = rig(failing(where, fault(number), asynchronous))
    worked.call(*(ask(i) for i in range(8)))
    worked.call(ask(8, prompt=(9,)))
    answers = worked.serve()
    assert right(answers)
    assert sorted(a.request.sample for a in answers if isinstance(a, Completion)) == [*range(9)]
    assert worked.worker.fallbacks == (number < 7)  # there are no more steps


@MODES
def test_what_the_failed_step_should_have_written_is_not_read(
    rig: Start, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked = rig(ScriptedVllm(asynchronous=asynchronous, forward=fault(0)))
    worked.call(ask(0), ask(1))
    assert right(worked.serve())
    # The stand-in would show it: without emptying the prefix cache the answers are wrong.
    monkeypatch.setattr(ScriptedVllm, "reset_prefix_cache", lambda self: True)
    worked = rig(ScriptedVllm(asynchronous=asynchronous, forward=fault(0)))
    worked.call(ask(0), ask(1))
    assert not right(worked.serve())


@MODES
def test_fewer_requests_are_in_a_batch_until_there_is_memory_again(
    rig: Start, asynchronous: bool
) -> None:
    vllm = ScriptedVllm(asynchronous=asynchronous, forward=above(3), sequences=16)
    worked = rig(vllm)
    worked.call(*(ask(i) for i in range(20)))
    assert right(worked.serve())
    assert vllm.batches[:3] == [16, 8, 4]
    vllm.forward = lambda number, rows: None
    worked.call(*(ask(i) for i in range(100)))
    assert right(worked.serve())
    assert max(vllm.batches[-50:]) > 8


@MODES
def test_a_request_without_memory_even_alone_is_refused_and_others_go_on(
    rig: Start, asynchronous: bool
) -> None:
    vllm = ScriptedVllm(asynchronous=asynchronous)
    long = (5,) * 50

    def forward(number: int, rows: int) -> Exception | None:
        there = any(s.prompt == long and s.scheduled for s in vllm.open.values())
        return RuntimeError(NO_MEMORY) if there else None

    vllm.forward = forward
    worked = rig(vllm)
    refused = worked.call(ask(0, prompt=long), ask(1, prompt=long))
    other = worked.call(ask(2), ask(3))
    worked.serve(expected=3)
    by_call = {call: [a for c, a in worked.answers if c is call] for call in (refused, other)}
    [answer] = by_call[refused]
    assert isinstance(answer, SampleRefused)
    assert "no memory" in str(answer)
    assert right(by_call[other])


@MODES
@pytest.mark.parametrize("where", ["forward", "sampling"])
def test_nothing_of_a_step_without_memory_stays(rig: Start, asynchronous: bool, where: str) -> None:
    held: list[Exception] = []  # by a logger, say

    def fail(number: int, rows: int) -> Exception | None:
        if number not in (0, 1, 4):
            return None
        held.append(RuntimeError(NO_MEMORY))
        return held[-1]

    vllm = failing(where, fail, asynchronous)
    vllm.watch = weakref.ref
    worked = rig(vllm)
    alive: list[int] = []

    def count() -> None:
        alive.append(sum(reference() is not None for reference in vllm.activations))

    worked.call(ask(0), ask(1))
    worked.on_answer = count
    gc.disable()  # what lives on by a cycle alone must be gone, too
    try:
        worked.serve()
    finally:
        gc.enable()
    assert len(vllm.activations) == 3
    assert alive == [0, 0]


@MODES
def test_an_error_that_is_not_about_memory_ends_the_worker(rig: Start, asynchronous: bool) -> None:
    worked = rig(ScriptedVllm(asynchronous=asynchronous, forward=fault(1, error="a bug")))
    worked.call(ask(0))
    with pytest.raises(RuntimeError, match="a bug"):
        worked.serve()


@MODES
def test_vllm_that_keeps_what_a_failed_step_left_is_not_relied_on(
    rig: Start, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedVllm, "reset_prefix_cache", lambda self: False)
    worked = rig(ScriptedVllm(asynchronous=asynchronous, forward=fault(1)))
    worked.call(ask(0))
    with pytest.raises(RuntimeError, match="keeps what a step without memory has left"):
        worked.serve()


def test_after_a_failed_step_the_model_runner_has_heard_of_all_aborted_requests(
    rig: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = ScriptedVllm(sampling=fault(3))
    worked = rig(vllm)
    worked.call(ask(0), ask(1))
    seen: list[set[str]] = []
    settle = recovery.settle

    def look(engine: Any) -> None:
        settle(engine)
        seen.append(set(engine.in_runner))
        assert not engine.queue

    monkeypatch.setattr("arcd.backends.vllm.worker.settle", look)
    worked.serve()
    assert seen == [set()]


ADAPTER = Adapter(3, Path("nowhere"))


def load_with(rig: Start, *errors: Exception) -> tuple[Rig, list[Answer]]:
    """Load an adapter, of which the first attempts end in errors, and ask it."""
    worked = rig(ScriptedVllm())
    left, load = list(errors), worked.vllm.add_lora

    def add_lora(lora: Any) -> None:
        load(lora)
        if left:
            raise left.pop(0)

    worked.vllm.add_lora = add_lora  # type: ignore[method-assign]
    worked.commands.put(Load(ADAPTER))
    worked.call(ask(0), adapter=ADAPTER)
    answers = worked.serve(expected=1)
    worked.commands.put(Unload(ADAPTER))
    worked.commands.put(Stop())
    worked.worker.serve()
    return worked, answers


def test_an_adapter_is_loaded_again_if_there_was_no_memory_for_it(rig: Start) -> None:
    worked, answers = load_with(rig, RuntimeError(NO_MEMORY))
    assert right(answers)
    assert worked.vllm.log == ["load 4", "remove 4", "load 4", "remove 4"]


def test_of_a_refused_adapter_nothing_stays_in_vllm(rig: Start) -> None:
    worked, [answer] = load_with(rig, ValueError("not an adapter"))
    assert isinstance(answer, SampleRefused)
    assert worked.vllm.log == ["load 4", "remove 4"]


def test_an_adapter_on_a_lost_gpu_ends_the_worker(rig: Start) -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        load_with(rig, lost)
