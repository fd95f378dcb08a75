"""How an engine comes to its end, and what it does with its calls then.

Played through on a scripted stand-in for vLLM, since the real one cannot be told to fail.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from support.toys import REQUESTS, answers, toy_engine

from arcd.backends.protocols import Adapter
from arcd.backends.vllm import engine as vllm_engine
from arcd.backends.vllm import startup
from arcd.errors import DeviceLost, EngineFailed, SampleRefused

pytest.importorskip("vllm")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.engine,
    pytest.mark.filterwarnings("default"),
]


@dataclass
class ScriptedOutput:
    """A finished request, as vLLM tells it."""

    request_id: str
    finish_reason: str = "length"
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[object, ...] = ()

    @property
    def outputs(self) -> "list[ScriptedOutput]":
        return [self]


Act = Callable[[list[str]], list[ScriptedOutput]]
"""What a step does to the open requests, by their names."""


@dataclass
class ScriptedVllm:
    """As much of `LLMEngine` as the engine uses."""

    act: Act
    open: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    finished: int = 0

    def add_request(self, name: str, prompt: object, params: object, lora_request: object) -> None:
        self.open.append(name)

    def abort_request(self, names: list[str]) -> None:
        self.open = [name for name in self.open if name not in names]

    def add_lora(self, lora: Any) -> None:
        self.log.append(f"load {lora.lora_name}")

    def remove_lora(self, number: int) -> None:
        self.log.append(f"remove {number - 1}")

    def apply_model(self, function: Callable[[Any], Any]) -> list[Any]:
        return [function(SimpleNamespace(named_parameters=tuple))]

    def has_unfinished_requests(self) -> bool:
        return bool(self.open)

    def step(self) -> list[ScriptedOutput]:
        outputs = self.act(list(self.open))
        self.abort_request([output.request_id for output in outputs])
        self.finished += len(outputs)
        return outputs

    @property
    def engine_core(self) -> "ScriptedVllm":
        return self

    def shutdown(self) -> None:
        self.log.append("shut down")


def finish_all(names: list[str]) -> list[ScriptedOutput]:
    return [ScriptedOutput(name) for name in names]


def finish_none(names: list[str]) -> list[ScriptedOutput]:
    return []


def fail(names: list[str]) -> list[ScriptedOutput]:
    raise RuntimeError("the device\nis gone")


Script = Callable[[Act], ScriptedVllm]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Put a scripted vLLM in the place of the real one."""

    def put(act: Act) -> ScriptedVllm:
        vllm = ScriptedVllm(act)
        monkeypatch.setattr(startup, "build_engine", lambda settings: vllm)
        return vllm

    return put


A, B, C = (Adapter(serial, Path("nowhere")) for serial in (10, 11, 12))


async def test_an_engine_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match=r"^the engine could not start: [^\n]+missing") as caught:
        async with toy_engine(tmp_path / "missing"):
            pass
    assert caught.value.__cause__ is not None


async def test_when_a_step_fails_all_callers_hear_of_it_also_waiting_and_later_ones(
    script: Script,
) -> None:
    script(fail)
    heard: list[str] = []
    async with toy_engine(Path("nowhere"), max_loras=1) as engine:

        async def call(adapter: Adapter | None) -> None:
            with pytest.raises(EngineFailed) as caught:
                await answers(engine, adapter)
            heard.append(str(caught.value))

        async with anyio.create_task_group() as calls:
            for adapter in (None, A, B, C):
                calls.start_soon(call, adapter)
        await call(A)
    assert heard == ["RuntimeError: the device is gone"] * 5


def lose_the_gpu(names: list[str]) -> list[ScriptedOutput]:
    raise RuntimeError(
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors ..."
    )


async def test_a_lost_gpu_is_told_in_one_line_to_all_callers(script: Script) -> None:
    script(lose_the_gpu)
    async with toy_engine(Path("nowhere")) as engine:
        for _ in range(2):
            with pytest.raises(DeviceLost) as caught:
                await answers(engine, None)
            assert str(caught.value) == (
                "the GPU cannot be used any more in this process: "
                "CUDA error: an illegal memory access was encountered"
            )


async def test_requests_that_vllm_forgets_are_not_waited_for(script: Script) -> None:
    def forget(names: list[str]) -> list[ScriptedOutput]:
        vllm.open.clear()
        return []

    vllm = script(forget)
    async with toy_engine(Path("nowhere")) as engine:
        with pytest.raises(EngineFailed, match="vLLM lost 2 requests"):
            await answers(engine, None)


async def test_a_request_that_vllm_gives_up_fails_its_caller_alone(script: Script) -> None:
    vllm = script(lambda names: [ScriptedOutput(name, "error") for name in names])
    async with toy_engine(Path("nowhere")) as engine:
        with pytest.raises(SampleRefused, match="vLLM gave a request up: error"):
            await answers(engine, None)
        vllm.act = finish_all
        assert len(await answers(engine, None)) == 2


async def test_closing_the_engine_ends_the_calls_that_are_open(script: Script) -> None:
    vllm = script(finish_none)
    async with anyio.create_task_group() as calls:
        async with toy_engine(Path("nowhere")) as engine:

            async def call() -> None:
                with pytest.raises(EngineFailed, match="the engine was stopped"):
                    await answers(engine, A)

            calls.start_soon(call)
            await anyio.wait_all_tasks_blocked()
        with pytest.raises(EngineFailed, match="the engine was stopped"):
            await answers(engine, None)
    assert vllm.log == ["load adapter-10", "shut down"]


async def test_the_engine_is_closed_under_an_error(script: Script) -> None:
    vllm = script(finish_none)
    with pytest.raises(ZeroDivisionError):
        async with toy_engine(Path("nowhere")):
            raise ZeroDivisionError
    assert vllm.log == ["shut down"]


async def test_the_engine_is_closed_under_a_cancellation(script: Script) -> None:
    vllm = script(finish_none)
    with anyio.CancelScope() as scope:
        async with toy_engine(Path("nowhere")):
            scope.cancel()
            await anyio.sleep_forever()
    assert vllm.log == ["shut down"]


async def test_closing_does_not_wait_for_a_step_that_never_ends(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepping, release = threading.Event(), threading.Event()

    def hang(names: list[str]) -> list[ScriptedOutput]:
        stepping.set()
        release.wait()
        return []

    script(hang)
    monkeypatch.setattr(vllm_engine, "STOP_TIMEOUT_S", 0.01)
    with anyio.CancelScope() as scope:
        async with toy_engine(Path("nowhere")) as engine, anyio.create_task_group() as calls:
            calls.start_soon(answers, engine, None)
            await anyio.to_thread.run_sync(stepping.wait)
            scope.cancel()
    assert not release.is_set()
    release.set()


async def test_what_is_open_of_a_cancelled_call_is_aborted_and_its_adapter_removed(
    script: Script,
) -> None:
    def finish_one_and_then_only_the_next_call(names: list[str]) -> list[ScriptedOutput]:
        return finish_all(names[:1]) if not vllm.finished or len(names) <= 2 else []

    vllm = script(finish_one_and_then_only_the_next_call)
    async with toy_engine(Path("nowhere")) as engine:
        with anyio.CancelScope() as scope:
            await engine.sample(REQUESTS * 5, A, lambda completion: scope.cancel())
        with anyio.fail_after(10):
            assert await answers(engine, A) == ((), ())
    assert vllm.open == []
    assert vllm.log == [*("load adapter-10", "remove 10") * 2, "shut down"]


async def test_an_adapter_is_loaded_for_its_first_call_and_removed_after_its_last(
    script: Script,
) -> None:
    vllm = script(finish_all)
    async with toy_engine(Path("nowhere"), max_loras=1) as engine:
        async with anyio.create_task_group() as calls:
            for adapter in (A, A, B, A):
                calls.start_soon(answers, engine, adapter)
        await answers(engine, None)
    assert vllm.log == [
        *("load adapter-10", "remove 10"),
        *("load adapter-11", "remove 11"),
        "shut down",
    ]
