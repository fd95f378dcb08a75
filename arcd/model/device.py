"""The device: where trainer and engine compute, and in which number formats.

torch is imported only where a device is picked. Knows nothing of models.
"""

import os
import platform
import warnings
from dataclasses import dataclass
from typing import Literal

from arcd.config import Precision
from arcd.errors import BadConfig, MissingPackage
from arcd.model.gpu_support import TorchBuild, why_none, why_not_this
from arcd.system.cuda_driver import find_driver
from arcd.system.processes import cores
from arcd.system.visible_gpus import VISIBLE, gpu_index

DTypeName = Literal["bfloat16", "float16", "float32"]

AMPERE = (8, 0)
"""The compute capability from which a GPU computes in bf16 and has flash attention."""


@dataclass(frozen=True, slots=True)
class Device:
    """Where trainer and engine compute, and in which number formats."""

    kind: Literal["cpu", "cuda"]
    dtype: DTypeName
    """The trainer's number format."""
    name: str = ""
    """Of the hardware, for people."""
    capability: tuple[int, int] | None = None
    """A GPU's compute capability, such as (8, 9); None for a CPU."""
    index: int = 0
    """Of a GPU among those that the user sees. To torch it is number 0: see `visible_gpus`."""
    passed_over: str = ""
    """Of a CPU: why a GPU that is here is not used."""

    @property
    def label(self) -> str:
        """The device as the user names it: cpu, cuda or cuda:1."""
        return f"{self.kind}:{self.index}" if self.index else self.kind

    @property
    def serving_dtype(self) -> DTypeName:
        """The engine's number format: vLLM's LoRA kernels for GPUs take none of 32 bits."""
        if self.capability is None or self.dtype != "float32":
            return self.dtype
        return "bfloat16" if self.capability >= AMPERE else "float16"


def pick_device(wanted: str, precision: Precision) -> Device:
    """The device of this name and a number format; `auto` takes a GPU before a CPU.

    `auto` precision is bf16 if the hardware computes in it, else fp16 on a GPU and fp32 on a CPU.
    A process that wants a GPU has called `visible_gpus.narrow` before torch was imported.
    Where torch is built for CPUs, `auto` takes the CPU, and says if a GPU is passed over.
    Raises BadConfig, with what to do, for a GPU that is not there, for one that is there and cannot
    be used (also where `auto` is wanted: nobody waits for a CPU by mistake), and for fp16 on a CPU;
    MissingPackage without torch.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingPackage from None
    build = torch_build()
    passed_over = ""
    if wanted == "auto" and build.cuda is None:
        # Who has installed that wants a CPU.
        gpu, passed_over = None, why_none(build, find_driver(), os.environ.get(VISIBLE)) or ""
    else:
        gpu = _gpu(wanted, build)
    if gpu is None and precision == "fp16":
        raise BadConfig("precision fp16 needs a GPU")
    name, capability = gpu or (_cpu(), None)
    names: dict[Precision, DTypeName] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    dtype = names[_best(capability) if precision == "auto" else precision]
    index = gpu_index(wanted) or 0
    if gpu is None:
        return Device("cpu", dtype, name, passed_over=passed_over)
    return Device("cuda", dtype, name, capability, index)


def _gpu(wanted: str, build: TorchBuild) -> tuple[str, tuple[int, int]] | None:
    """Name and compute capability of the GPU to be used; None if it is the CPU."""
    import torch

    if gpu_index(wanted) is None:
        return None
    with warnings.catch_warnings(action="ignore"):  # what it says of the driver, `why_none` does
        there = torch.cuda.is_available()
    if not there:
        reason = why_none(build, find_driver(), os.environ.get(VISIBLE))
        if reason is None and wanted == "auto":
            return None
        raise _unusable(wanted, reason or "no GPU that PyTorch can use")
    with warnings.catch_warnings(action="ignore"):  # about GPUs that it is not built for
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if reason := why_not_this(build, name, capability):
        raise _unusable(wanted, reason)
    return name, capability


def torch_build() -> TorchBuild:
    """What torch is built for; its import is the caller's matter."""
    import torch

    return TorchBuild(torch.__version__, torch.version.cuda, tuple(torch.cuda.get_arch_list()))


def _unusable(wanted: str, reason: str) -> BadConfig:
    otherwise = "; to use the CPU instead: --device cpu" if wanted == "auto" else ""
    return BadConfig(f"device {wanted!r}: {reason}{otherwise}")


def _best(capability: tuple[int, int] | None) -> Precision:
    if capability is not None:
        # Emulated bf16 (before Ampere) is slower than fp16.
        return "bf16" if capability >= AMPERE else "fp16"
    import torch

    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def _cpu() -> str:
    return f"{cores()} cores of {platform.processor() or platform.machine()}"


def free_memory(device: Device) -> tuple[int, int] | None:
    """(free, total) bytes of a GPU; None for a CPU."""
    if device.kind == "cpu":
        return None
    import torch

    return torch.cuda.mem_get_info()
