"""The device: where trainer and engine compute, and in which number formats.

torch is imported only where a device is picked. Knows nothing of models.
"""

import platform
from dataclasses import dataclass
from typing import Literal

from arcd.config import Precision
from arcd.errors import BadConfig, MissingPackage
from arcd.system.processes import cores

DTypeName = Literal["bfloat16", "float16", "float32"]

DEVICES = ("auto", "cpu", "cuda")

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

    @property
    def serving_dtype(self) -> DTypeName:
        """The engine's number format: vLLM's LoRA kernels for GPUs take none of 32 bits."""
        if self.capability is None or self.dtype != "float32":
            return self.dtype
        return "bfloat16" if self.capability >= AMPERE else "float16"


def pick_device(wanted: str, precision: Precision) -> Device:
    """The device of this name and a number format; `auto` takes a GPU before a CPU.

    `auto` precision is bf16 if the hardware computes in it, else fp16 on a GPU and fp32 on a CPU.
    Raises BadConfig for a GPU that is not there or fp16 on a CPU, MissingPackage without torch.
    """
    try:
        import torch
    except ImportError:
        raise MissingPackage from None
    if wanted == "cuda" and not torch.cuda.is_available():
        raise BadConfig("device 'cuda': no GPU that PyTorch can use")
    on_gpu = wanted != "cpu" and torch.cuda.is_available()
    if precision == "fp16" and not on_gpu:
        raise BadConfig("precision fp16 needs a GPU")
    capability = None
    if on_gpu:
        capability = torch.cuda.get_device_capability()
        # Emulated bf16 (before Ampere) is slower than fp16.
        best: Precision = "bf16" if capability >= AMPERE else "fp16"
        name = torch.cuda.get_device_name()
    else:
        best = "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"
        name = f"{cores()} cores of {platform.processor() or platform.machine()}"
    names: dict[Precision, DTypeName] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    dtype = names[best if precision == "auto" else precision]
    return Device("cuda" if on_gpu else "cpu", dtype, name, capability)


def free_memory(device: Device) -> tuple[int, int] | None:
    """(free, total) bytes of a GPU; None for a CPU."""
    if device.kind == "cpu":
        return None
    import torch

    return torch.cuda.mem_get_info()
