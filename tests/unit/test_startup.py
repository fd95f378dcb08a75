"""What vLLM is started with, told without vLLM."""

import gc
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.scripted_cuda import ScriptedCuda

from arcd.backends.vllm import startup
from arcd.backends.vllm.startup import (
    EngineSettings,
    build_engine,
    engine_arguments,
    environment,
    import_vllm,
)
from arcd.config import EngineConfig
from arcd.errors import EngineFailed
from arcd.model.device import Device

CPU = (Device("cpu", "bfloat16"), None)
T4 = (Device("cuda", "float16", "T4", (7, 5)), 15 << 30)
A100 = (Device("cuda", "bfloat16", "A100", (8, 0)), 79 << 30)
L4 = (Device("cuda", "bfloat16", "L4", (8, 9)), 22 << 30)
H100 = (Device("cuda", "bfloat16", "H100", (9, 0)), 79 << 30)


def settings(on: tuple[Device, int | None] = CPU, **config: object) -> EngineSettings:
    engine = EngineConfig.model_validate(config)
    return EngineSettings(Path("base"), [2, 3], 2, engine, 16, *on, cores=1)


SAME = {
    "model": "base",
    "max_model_len": 4096,
    "gpu_memory_utilization": 0.5,
    "enable_lora": True,
    "max_lora_rank": 16,
    "enable_prefix_caching": True,
    "skip_tokenizer_init": True,
    "load_format": "safetensors",
    "generation_config": "vllm",
    "logprobs_mode": "raw_logprobs",
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}
"""What does not depend on the device."""


@pytest.mark.parametrize(
    ("on", "dtype", "sequences", "step", "prompt"),
    [
        pytest.param(T4, "float16", 256, 2048, 512, id="7.5"),
        pytest.param(A100, "bfloat16", 256, 8192, 2048, id="8.0, 80 GiB"),
        pytest.param((A100[0], 39 << 30), "bfloat16", 256, 4096, 512, id="8.0, 40 GiB"),
        pytest.param((A100[0], None), "bfloat16", 256, 4096, 512, id="8.0, memory not known"),
        pytest.param(L4, "bfloat16", 256, 4096, 512, id="8.9"),
        pytest.param(H100, "bfloat16", 256, 8192, 2048, id="9.0"),
    ],
)
def test_the_arguments_on_a_gpu(
    on: tuple[Device, int], dtype: str, sequences: int, step: int, prompt: int
) -> None:
    assert engine_arguments(settings(on)) == SAME | {
        "dtype": dtype,
        "max_num_seqs": sequences,
        "max_loras": 2,
        "max_num_batched_tokens": step,
        "long_prefill_token_threshold": prompt,
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_arguments_on_a_cpu(dtype: Any) -> None:
    assert engine_arguments(settings((Device("cpu", dtype), None))) == SAME | {
        "dtype": dtype,
        "max_num_seqs": 64,
        "max_loras": 3,
        "max_num_batched_tokens": 2048,
        "long_prefill_token_threshold": 512,
        "enforce_eager": True,
    }


@pytest.mark.parametrize(
    ("on", "served"), [(T4, "float16"), (A100, "bfloat16"), (L4, "bfloat16"), (H100, "bfloat16")]
)
def test_trainings_in_fp32_are_served_in_16_bits_on_a_gpu(
    on: tuple[Device, int], served: str
) -> None:
    device = Device("cuda", "float32", capability=on[0].capability)
    assert engine_arguments(settings((device, on[1])))["dtype"] == served


def test_on_a_cpu_one_adapter_slot_more_stays_empty() -> None:
    assert engine_arguments(settings(max_loras=3))["max_loras"] == 4
    assert engine_arguments(settings(L4, max_loras=3))["max_loras"] == 3


CHOSEN: dict[str, object] = {
    "enforce_eager": True,
    "attention_backend": "TRITON_ATTN",
    "kv_cache_memory_bytes": 3 << 30,
}


@pytest.mark.parametrize("on", [CPU, L4])
def test_what_the_user_chooses_is_passed_on(on: tuple[Device, int | None]) -> None:
    arguments = engine_arguments(settings(on, **CHOSEN, max_num_seqs=7))
    assert arguments.items() >= CHOSEN.items()
    assert arguments["max_num_seqs"] == 7
    assert engine_arguments(settings(on, enforce_eager=False))["enforce_eager"] is False


@pytest.mark.parametrize("on", [CPU, T4, L4, H100])
@pytest.mark.parametrize("sequences", [1, 8192, 8193])
def test_a_step_has_a_token_for_each_sequence(
    on: tuple[Device, int | None], sequences: int
) -> None:
    arguments = engine_arguments(settings(on, max_num_seqs=sequences))
    default = engine_arguments(settings(on))["max_num_batched_tokens"]
    assert isinstance(default, int)
    assert arguments["max_num_batched_tokens"] == max(default, sequences)


@pytest.mark.parametrize("on", [CPU, H100])
@pytest.mark.parametrize("context", [64, 512, 2048, 4096])
def test_a_prompt_in_one_step_is_no_longer_than_the_context(
    on: tuple[Device, int | None], context: int
) -> None:
    arguments = engine_arguments(settings(on, max_model_len=context))
    default = engine_arguments(settings(on))["long_prefill_token_threshold"]
    assert isinstance(default, int)
    assert arguments["long_prefill_token_threshold"] == min(default, context)


def test_the_cache_of_a_cpu_is_as_large_as_the_config_says() -> None:
    variables = environment(3)
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_the_models_class_is_imported_here_and_not_inspected_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[object] = []
    registry = SimpleNamespace(
        models={"Known": SimpleNamespace(load_model_cls=lambda: "its class")},
        register_model=lambda name, kind: did.append((name, kind)),
    )
    vllm = SimpleNamespace(LLMEngine=None, ModelRegistry=registry)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(gc, "freeze", lambda: did.append("frozen"))
    (tmp_path / "config.json").write_text('{"architectures": ["Known", "Unknown"]}')
    import_vllm(tmp_path)
    assert did == [("Known", "its class"), "frozen"]
    (tmp_path / "config.json").write_text("{}")
    import_vllm(tmp_path)
    import_vllm(tmp_path / "missing")
    assert did[2:] == ["frozen", "frozen"]


class FakeVllm:
    """vLLM's modules as `build_engine` uses them; it treats streams as vLLM 0.32 does."""

    def __init__(self, cuda: ScriptedCuda, *, for_cpu: bool = False) -> None:
        self.cuda, self.for_cpu = cuda, for_cpu
        self.built: list[dict[str, object]] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put them in the place of the real ones; importing vLLM patches torch.cuda.set_stream."""
        engine = SimpleNamespace(from_engine_args=self._build)
        platform = SimpleNamespace(is_cpu=lambda: self.for_cpu)
        vllm = SimpleNamespace(EngineArgs=dict, LLMEngine=engine)
        monkeypatch.setitem(sys.modules, "vllm", vllm)
        monkeypatch.setitem(
            sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform)
        )

    def _build(self, arguments: dict[str, object]) -> "FakeVllm":
        self.built.append(arguments)
        self.cuda.capture_a_graph()
        return self

    def step(self) -> None:
        """Launch a kernel, and replay a graph."""
        self.cuda.step()


def test_the_engines_kernels_and_graphs_go_before_the_trainers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = ScriptedCuda(monkeypatch)
    vllm = FakeVllm(cuda)
    vllm.install(monkeypatch)
    cuda.import_vllm()
    engine = build_engine(settings(L4))
    engine.step()
    assert {launch.priority for launch in cuda.launched} == {-1}
    assert len({launch.stream for launch in cuda.launched}) == 1
    assert cuda.replayed == [-1]
    # Streams that are made later have torch's priority again.
    assert cuda.new_stream().priority == 0


def test_on_one_stream_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCD_ONE_STREAM", "1")
    cuda = ScriptedCuda(monkeypatch)
    vllm = FakeVllm(cuda)
    vllm.install(monkeypatch)
    cuda.import_vllm()
    build_engine(settings(L4)).step()
    assert {launch.priority for launch in cuda.launched} | set(cuda.replayed) == {0}


@pytest.mark.parametrize(("on", "for_cpu"), [(L4, True), (CPU, False)])
def test_a_vllm_for_another_kind_of_device_is_told_at_once(
    on: tuple[Device, int | None], for_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = FakeVllm(ScriptedCuda(monkeypatch), for_cpu=for_cpu)
    vllm.install(monkeypatch)
    with pytest.raises(EngineFailed, match=r"^this vLLM does not run on a [CG]PU: see the README"):
        startup.build_engine(settings(on))
    assert not vllm.built
