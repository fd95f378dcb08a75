"""How vLLM is started inside this process: its arguments, its environment, what it must not change.

Arguments and environment are pure functions of the settings. vLLM itself is imported by `start`
alone, after the environment is set. Knows nothing of requests.
"""

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcd.backends.streams import ENGINE_PRIORITY, streams_of
from arcd.backends.vllm import plugin
from arcd.backends.vllm.sizes import step_sizes
from arcd.config import EngineConfig
from arcd.errors import EngineFailed
from arcd.model.base_model import cpu_cache_gib, model_config
from arcd.model.device import Device
from arcd.system.ledger import Ledger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is started with; see `vllm_engine`."""

    base: Path
    answer_tokens: Sequence[int]
    end: int
    config: EngineConfig
    rank: int
    device: Device
    memory: int | None
    """Bytes that the GPU has; None for a CPU."""
    cores: int


def start(settings: EngineSettings, ledger: Ledger) -> Any:
    """A running `LLMEngine`; imports vLLM. Raises whatever vLLM raises."""
    os.environ |= environment(cpu_cache_gib(settings.base, settings.config))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with process_state_kept(), _silence():
        with ledger.stage("vLLM"):
            import_vllm(settings.base)
        with ledger.stage("engine"):
            return build_engine(settings)


def build_engine(settings: EngineSettings) -> Any:
    """An `LLMEngine`; the calling thread, the engine's, is prepared for it.

    Raises EngineFailed where vLLM is built for another kind of device.
    """
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    on_cpu = settings.device.kind == "cpu"
    if current_platform.is_cpu() != on_cpu:
        wanted = "a CPU" if on_cpu else "a GPU"
        raise EngineFailed(f"this vLLM does not run on {wanted}: see the README on CPU and GPU")
    if on_cpu:
        _prepare_cpu_thread(settings.cores)
    # vLLM is imported: from then on it remembers the stream that a thread sets, and gives a thread
    # that has set none another one at the first step.
    with streams_of(ENGINE_PRIORITY):
        return LLMEngine.from_engine_args(EngineArgs(**engine_arguments(settings)))


def base_tensors(engine: Any) -> dict[str, "Tensor"]:
    """The base's tensors in an `LLMEngine`, by vLLM's names for a model without adapters."""
    [found] = engine.apply_model(lambda model: dict(model.named_parameters()))
    return {name.replace(".base_layer.", "."): tensor for name, tensor in found.items()}


def import_vllm(base: Path) -> None:
    """Import what an engine on this base needs, and keep it out of garbage collection."""
    from vllm import LLMEngine, ModelRegistry  # noqa: F401

    for name in model_config(base).get("architectures") or ():
        # A class that vLLM has not imported it inspects in a process of its own, which imports
        # vLLM once more: 7 s the first time on a machine. It needs the class soon anyway.
        if known := ModelRegistry.models.get(name):
            ModelRegistry.register_model(name, known.load_model_cls())
    # vLLM collects garbage three times while it starts, each time 0.6 s for the objects that these
    # imports have made. None of them is ever garbage.
    gc.freeze()


def environment(cache_gib: int) -> dict[str, str]:
    """The variables that vLLM reads when it is imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gib),
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # vllm issue 52247: freezes beside other kernels
        # The newer runner takes at most 1024 allowed tokens; a cell encoding has 9002.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        plugin.WANTED: "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def engine_arguments(settings: EngineSettings) -> dict[str, object]:
    """The keyword arguments of vLLM's `EngineArgs`."""
    config, device = settings.config, settings.device
    sequences, sizes = config.sequences(device.kind), step_sizes(device, settings.memory)
    arguments: dict[str, object] = {
        "model": str(settings.base),
        "dtype": device.serving_dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": sequences,
        "gpu_memory_utilization": config.gpu_memory,
        "enable_lora": True,
        "max_lora_rank": settings.rank,
        "max_loras": config.max_loras,
        "max_num_batched_tokens": max(sizes.step, sequences),
        "long_prefill_token_threshold": min(sizes.prompt, config.max_model_len),
        "enable_prefix_caching": True,
        "skip_tokenizer_init": True,
        "load_format": "safetensors",  # nothing is unpickled
        "generation_config": "vllm",  # not the folder's: it could add tokens that end an answer
        "logprobs_mode": "raw_logprobs",  # before allowed_token_ids and temperature: the model's
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    return arguments | (_cpu_arguments(config) if device.kind == "cpu" else {}) | _chosen(config)


def _cpu_arguments(config: EngineConfig) -> dict[str, object]:
    return {
        "enforce_eager": True,
        # A request without an adapter has slot -1, and on a CPU vLLM indexes its weights with that:
        # in one batch with adapters the base would answer with the last slot's (0.32, torch_ops).
        # Slots fill from the first, so with one more than is ever used the last one stays zero.
        "max_loras": config.max_loras + 1,
    }


def _chosen(config: EngineConfig) -> dict[str, object]:
    """What the user has chosen where vLLM has a default of its own."""
    chosen = {
        "enforce_eager": config.enforce_eager,
        "attention_backend": config.attention_backend,
        "kv_cache_memory_bytes": config.kv_cache_memory_bytes,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _prepare_cpu_thread(cores: int) -> None:
    """Settings of torch for the calling thread, the engine's."""
    import torch

    # Threads made later begin with this number, older ones keep theirs.
    torch.set_num_threads(cores)
    # vLLM compiles one small function, the rank of a chosen token among all: 2 to 25 s at the first
    # step, and an error on machines without a C++ compiler. torch keeps this setting by thread.
    torch._dynamo.config.disable = True


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Put back what vLLM changes for the whole process while it starts.

    Three changes stay, because they do no harm: some variables of the environment, stubs in
    `torch.cuda` on a CPU, and the start-up heap, which is frozen out of garbage collection until
    vLLM is shut down.
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
        torch.set_num_threads = set_num_threads  # vLLM replaces it by a function without effect
        sys.excepthook = excepthook  # vLLM's prefixes a rank
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)  # vLLM sets it for worker processes


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the remarks of vLLM and torch about their start off the terminal."""
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        yield
