"""One copy of the base for trainer and engine, in the real runtime.

vLLM packs its weights on a CPU, and on a GPU it keeps them plain. Here it is kept from packing, so
that the trainer finds the tensors that it would find on a GPU.
"""

import logging
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from support.tiny_bases import BASES, write
from torch import nn

from arcd.arc.tasks import load
from arcd.backends import base_copies
from arcd.backends.protocols import Completion, TrainRequest
from arcd.backends.runtime import Runtime, open_runtime
from arcd.backends.vllm.engine import VllmEngine
from arcd.config import resolve
from arcd.decoder.folder import Files, read
from arcd.decoder.sharing import EngineTensors
from arcd.errors import SampleRefused
from arcd.model.base_model import bundled
from arcd.model.device import Device
from arcd.model.lessons import build_lessons
from arcd.model.prompts import TooLong, build_questions
from arcd.solver.assignment import build_requests
from arcd.system.ledger import Ledger

pytestmark = [pytest.mark.anyio, pytest.mark.engine]

CONFIG = resolve(settings=["train.steps=2", "sample.samples=2", "trainings=1"])
TASK = load("arc1-train:25ff71a9").tasks[0]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM keeps its weights as they are in the folder."""
    with warnings.catch_warnings(action="ignore"):
        from vllm.model_executor.layers import utils

    def keep(layer: nn.Module, remove_weight: bool) -> None:
        setattr(layer, "cpu_linear", nn.functional.linear)  # noqa: B010  # no module to mypy

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", keep)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Runtime]:
    device = Device("cpu", "bfloat16")
    async with open_runtime(
        bundled(),
        CONFIG,
        device,
        rank=16,
        adapters=folder / "adapters",
        compiled=folder / "compiled",
        ledger=Ledger(),
        serial=lambda: 0,
    ) as runtime:
        yield runtime


async def test_trainer_and_engine_work_on_one_copy(
    plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "arcd")
    async with opened(tmp_path) as runtime:
        assert runtime.twice is None
        assert "the base is in memory once" in caplog.text
        assert isinstance(runtime.engine, VllmEngine)
        held = runtime.engine.base_tensors
        before = {name: tensor.clone() for name, tensor in held.items()}
        lessons = build_lessons([TASK], CONFIG, runtime.encoding, 4096)
        assert not isinstance(lessons, TooLong)
        request = TrainRequest(lessons, CONFIG.train, seed=1, serial=0)
        async with runtime.trainer.slots:
            trained = await runtime.trainer.train(request, lambda step: None)
        found: list[Completion] = []
        requests = build_requests(
            TASK, list(build_questions(TASK, CONFIG, runtime.encoding)), CONFIG
        )
        await runtime.engine.sample(requests, trained.adapter, found.append)
        assert len(found) == len(requests)
        assert all(torch.equal(tensor, before[name]) for name, tensor in held.items())
        _slices_of_vllms_own_loader(tmp_path)


async def test_one_copy_that_does_not_agree_is_given_up(
    plain: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_copies, "TOLERANCE", 0.0)
    async with opened(tmp_path) as runtime:
        assert runtime.twice is not None
        assert runtime.twice.startswith("trainer and engine differ by 0.0")


@pytest.mark.parametrize(
    "error", [SampleRefused("too long"), torch.OutOfMemoryError("CUDA out of memory")]
)
async def test_one_copy_that_cannot_be_compared_is_given_up(
    plain: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def difference(*_: object) -> float:
        raise error

    monkeypatch.setattr(base_copies, "_difference", difference)
    async with opened(tmp_path) as runtime:
        assert runtime.twice == f"one copy could not be compared: {error}"


async def test_packed_weights_are_loaded_twice(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        assert runtime.twice == (
            "the engine keeps model.layers.0.self_attn.qkv_proj.weight in another layout"
        )


def _slices_of_vllms_own_loader(folder: Path) -> None:
    """Each architecture as vLLM loads it; in a process in which vLLM has been started."""
    from vllm import EngineArgs
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model

    for name, maker in BASES.items():
        base = write(maker, folder / name.replace(" ", "-"))
        arguments = EngineArgs(
            model=str(base),
            dtype="float32",
            max_model_len=64,
            skip_tokenizer_init=True,
            load_format="safetensors",
            enforce_eager=True,
        )
        config = arguments.create_engine_config()
        with set_current_vllm_config(config):
            model = initialize_model(config)
            get_model_loader(config.load_config).load_weights(model, config.model_config)
        held = dict(model.named_parameters())
        read(base, EngineTensors(Files(base, torch.float32, "cpu"), held))
