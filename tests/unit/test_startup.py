"""What vLLM is started with, told without vLLM."""

import gc
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from arcd.backends.vllm.startup import (
    PROMPT_STEP_TOKENS,
    STEP_TOKENS,
    EngineSettings,
    engine_arguments,
    environment,
    import_vllm,
)
from arcd.config import EngineConfig


def settings(**config: object) -> EngineSettings:
    engine = EngineConfig.model_validate(config)
    return EngineSettings(Path("base"), [2, 3], 2, engine, 16, "bfloat16", 1)


def test_on_a_cpu_one_adapter_slot_more_stays_empty() -> None:
    arguments = settings(max_loras=3)
    assert engine_arguments(arguments, on_cpu=True)["max_loras"] == 4
    assert engine_arguments(arguments, on_cpu=False)["max_loras"] == 3


def test_only_a_gpu_captures_graphs() -> None:
    assert engine_arguments(settings(), on_cpu=True)["enforce_eager"] is True
    assert "enforce_eager" not in engine_arguments(settings(), on_cpu=False)


@pytest.mark.parametrize("sequences", [1, STEP_TOKENS, STEP_TOKENS + 1])
def test_a_step_has_a_token_for_each_sequence(sequences: int) -> None:
    arguments = engine_arguments(settings(max_num_seqs=sequences), on_cpu=False)
    assert arguments["max_num_batched_tokens"] == max(STEP_TOKENS, sequences)


@pytest.mark.parametrize("context", [64, PROMPT_STEP_TOKENS, 4096])
def test_a_prompt_in_one_step_is_no_longer_than_the_context(context: int) -> None:
    arguments = engine_arguments(settings(max_model_len=context), on_cpu=False)
    assert arguments["long_prefill_token_threshold"] == min(PROMPT_STEP_TOKENS, context)


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
