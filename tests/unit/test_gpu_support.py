"""Whether torch can use a GPU, told from tables: architectures, drivers, what `auto` does."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcd.errors import BadConfig
from arcd.model import device as devices
from arcd.model.device import Device, pick_device
from arcd.model.gpu_support import TorchBuild, runs_on, why_none, why_not_this
from arcd.system import cuda_driver
from arcd.system.cuda_driver import Driver, find_driver
from arcd.system.visible_gpus import VISIBLE

CU130 = TorchBuild(
    "2.13.0", "13.0", ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
)
CU128 = TorchBuild("2.10.0+cu128", "12.8", ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90"))
CPU = TorchBuild("2.13.0+cpu", None)
NEW = Driver("580.65.06", (13, 0), gpus=1, files=1)


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_80", (8, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_80", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("sm_120", (12, 1), True),
        ("compute_80", (12, 0), True),
        ("compute_90a", (10, 0), False),
        ("compute_100f", (12, 0), False),
        ("compute_90", (8, 9), False),
        ("gfx942", (9, 4), True),
    ],
)
def test_code_runs_where_cuda_says_it_does(
    architecture: str, capability: tuple[int, int], runs: bool
) -> None:
    assert runs_on(architecture, capability) == runs


@given(st.integers(5, 13), st.integers(0, 9), st.integers(5, 13), st.integers(0, 9))
def test_ptx_runs_wherever_code_for_the_same_gpu_does(a: int, b: int, c: int, d: int) -> None:
    assert runs_on(f"sm_{a}{b}", (c, d)) <= runs_on(f"compute_{a}{b}", (c, d))


@pytest.mark.parametrize(
    ("build", "capability", "fits"),
    [
        (CU130, (7, 5), True),  # T4
        (CU130, (8, 9), True),  # L4
        (CU130, (10, 3), True),
        (CU130, (6, 1), False),
        (CU130, (7, 0), False),  # V100
        (CU130, (13, 0), True),  # PTX
        (CU128, (7, 0), True),
        (CU128, (12, 0), False),
        (TorchBuild("2.13.0", "13.0"), (3, 0), True),  # it does not say
    ],
)
def test_a_gpu_is_compared_with_what_torch_is_built_for(
    build: TorchBuild, capability: tuple[int, int], fits: bool
) -> None:
    assert (why_not_this(build, "a GPU", capability) is None) == fits


def test_a_gpu_that_is_too_old_is_told_in_one_line() -> None:
    assert why_not_this(CU128, "GeForce RTX 5090", (12, 0)) == (
        "GeForce RTX 5090 has compute capability 12.0, but torch 2.10.0+cu128 (CUDA 12.8) is built "
        "for sm_70, sm_75, sm_80, sm_86, sm_90: install one that is built for it, or name another "
        "GPU (cuda:N)"
    )


OLD = Driver("535.129.03", (12, 2), gpus=1, files=1)


@pytest.mark.parametrize(
    ("build", "driver", "said"),
    [
        (
            CU130,
            OLD,
            "driver 535.129.03 supports CUDA 12.2, but torch 2.13.0 (CUDA 13.0) needs CUDA 13: "
            "install driver 580.65 or newer, or arcd[kaggle], which is built for CUDA 12",
        ),
        # CUDA 12.8 runs on any driver for CUDA 12 ("minor version compatibility").
        (CU128, OLD, "driver 535.129.03 supports CUDA 12.2 and shows a GPU, but"),
        (CPU, NEW, "a GPU is here, but torch 2.13.0+cpu (no CUDA) is built for CPUs: install"),
        (CU130, Driver("580.65.06", files=2), "a GPU is here, but not its driver's library"),
        (
            CU130,
            Driver("580.65.06", (13, 0), files=1, error="error 803, system mismatch"),
            "driver 580.65.06 supports CUDA 13.0, but CUDA does not start (error 803, system",
        ),
        (CU130, Driver("580.65.06", (13, 0), files=2), "2 GPUs are here, but CUDA shows none of"),
        # WSL: no release, no numbered files.
        (CU130, Driver("", (12, 4), gpus=1), "driver of unknown release supports CUDA 12.4, but"),
        # A container without GPU, on a machine with one.
        (CU130, Driver("580.65.06"), None),
        (CU130, Driver("580.65.06", (13, 0)), None),
        (CPU, Driver(), None),
        (TorchBuild("3", "99.1"), OLD, "driver 535.129.03 supports CUDA 12.2, but torch 3 (CUDA"),
    ],
)
def test_why_torch_finds_no_gpu(build: TorchBuild, driver: Driver, said: str | None) -> None:
    found = why_none(build, driver)
    assert found == said if said is None else (found or "").startswith(said)
    assert "\n" not in (found or "")
    assert why_none(build, driver, "") is None, "hidden"
    assert why_none(build, driver, "0") == (found and found.replace("=)", "=0)"))


NOTHING = Driver()


class Cuda:
    """Stands for torch.cuda."""

    def __init__(self, there: bool, capability: tuple[int, int] = (8, 9)) -> None:
        self._there, self._capability = there, capability

    def is_available(self) -> bool:
        return self._there

    def get_arch_list(self) -> list[str]:
        return ["sm_75", "sm_80", "sm_90"] if self._there else []

    def get_device_name(self) -> str:
        return "NVIDIA L4"

    def get_device_capability(self) -> tuple[int, int]:
        return self._capability


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch and the driver of a machine."""
    monkeypatch.delenv(VISIBLE, raising=False)

    def make(cuda: Cuda, driver: Driver = NOTHING, built: str | None = "13.0") -> None:
        mkldnn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: False)
        torch = SimpleNamespace(
            cuda=cuda,
            version=SimpleNamespace(cuda=built),
            ops=SimpleNamespace(mkldnn=mkldnn),
            __version__="2.13.0",
        )
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(devices, "find_driver", lambda: driver)

    return make


@pytest.mark.parametrize(
    ("wanted", "label", "index"),
    [("auto", "cuda", 0), ("cuda", "cuda", 0), ("cuda:0", "cuda", 0), ("cuda:3", "cuda:3", 3)],
)
def test_inside_it_is_cuda_and_outside_the_users_number(
    machine: Any, wanted: str, label: str, index: int
) -> None:
    machine(Cuda(True))
    found = pick_device(wanted, "auto")
    assert found == Device("cuda", "bfloat16", "NVIDIA L4", (8, 9), index)
    assert found.label == label
    assert pick_device("cpu", "auto").label == "cpu"


def test_auto_takes_a_cpu_where_no_gpu_is_or_all_are_hidden(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(Cuda(False), built=None)
    assert pick_device("auto", "auto").kind == "cpu"
    monkeypatch.setenv(VISIBLE, "-1")
    machine(Cuda(False), OLD)
    assert pick_device("auto", "auto").kind == "cpu"


@pytest.mark.parametrize(("built", "driver"), [("13.0", OLD), ("13.0", Driver("", files=1))])
def test_auto_refuses_a_cpu_where_a_gpu_is_that_cannot_be_used(
    machine: Any, built: str | None, driver: Driver
) -> None:
    machine(Cuda(False), driver, built)
    reason = why_none(TorchBuild("2.13.0", built), driver)
    with pytest.raises(BadConfig) as caught:
        pick_device("auto", "auto")
    assert str(caught.value) == (f"device 'auto': {reason}; to use the CPU instead: --device cpu")
    with pytest.raises(BadConfig) as caught:
        pick_device("cuda", "auto")
    assert str(caught.value) == f"device 'cuda': {reason}"
    assert pick_device("cpu", "auto").kind == "cpu"


def test_who_has_a_torch_for_cpus_gets_the_cpu_and_hears_of_the_gpu(machine: Any) -> None:
    machine(Cuda(False), NEW, None)
    found = pick_device("auto", "auto")
    assert found.kind == "cpu"
    assert found.passed_over.startswith("a GPU is here, but torch 2.13.0 (no CUDA) is built for")
    with pytest.raises(BadConfig, match="a GPU is here"):
        pick_device("cuda", "auto")
    machine(Cuda(False), NOTHING, None)
    assert pick_device("auto", "auto").passed_over == ""


def test_a_gpu_that_torch_is_not_built_for_is_refused(machine: Any) -> None:
    machine(Cuda(True, (6, 1)), NEW)
    for wanted in ("auto", "cuda:1"):
        with pytest.raises(BadConfig, match=r"has compute capability 6\.1, but torch 2\.13\.0"):
            pick_device(wanted, "auto")


def test_a_gpu_that_is_wanted_where_none_is(machine: Any) -> None:
    machine(Cuda(False))
    with pytest.raises(BadConfig, match=r"^device 'cuda:2': no GPU that PyTorch can use$"):
        pick_device("cuda:2", "auto")


class Library:
    """Stands for libcuda."""

    def __init__(self, version: int, code: int, count: int = 0) -> None:
        self._version, self._code, self._count = version, code, count

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = self._version
        return 0

    def cuInit(self, _: int) -> int:  # noqa: N802
        return self._code

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = self._count
        return 0

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"system has unsupported display driver / cuda driver combination"
        return 0


RELEASES = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n"
    "GCC version:  gcc version 12.2.0": "535.129.03",
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release": "580.65.06",
    "something else": "",
}


@pytest.mark.parametrize("text", RELEASES)
def test_the_driver_is_asked_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    release = tmp_path / "version"
    release.write_text(text)
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(cuda_driver, "RELEASE", release)
    monkeypatch.setattr(cuda_driver, "DEVICES", tmp_path)
    said = RELEASES[text]

    def library(found: Library) -> Driver:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
        return find_driver()

    assert library(Library(12020, 0, 2)) == Driver(said, (12, 2), 2, 2)
    assert library(Library(13000, cuda_driver.NO_DEVICE)) == Driver(said, (13, 0), files=2)
    words = "error 803, system has unsupported display driver / cuda driver combination"
    assert library(Library(13000, 803)) == Driver(said, (13, 0), files=2, error=words)


def test_a_machine_without_a_driver_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "RELEASE", tmp_path / "nothing")
    monkeypatch.setattr(cuda_driver, "DEVICES", tmp_path)
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnothing-of-the-kind.so.1")
    assert find_driver() == Driver()
    (tmp_path / "dxg").touch()  # WSL on a laptop with a GPU of another maker
    assert find_driver() == Driver()
