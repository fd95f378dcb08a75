"""What torch says of itself, the device and its memory, for the report of `arcd doctor`."""

import gc
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from arcd.backends.compilation import MARK, can_compile, cpp_compiler
from arcd.model.device import Device
from arcd.system.processes import resident_bytes, return_freed_memory


def torch_facts() -> dict[str, Any]:
    """Versions that torch was built for, the GPUs that it sees, the compilers it would find."""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _cudnn(),
        "arch_list": torch.cuda.get_arch_list(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "cpp_compiler": cpp_compiler(),
        "triton": _triton(),
    }


def memory_in_use(device: Device) -> dict[str, int]:
    """Bytes that this process uses: "process" in RAM (0: not known), on a GPU "tensors" there.

    What is garbage, or freed and not returned, does not count.
    """
    gc.collect()
    return_freed_memory()
    found = {"process": resident_bytes() or 0}
    if device.kind == "cuda":
        torch.cuda.synchronize()
        found["tensors"] = torch.cuda.memory_allocated()
    return found


def memory_report(device: Device) -> dict[str, int | None]:
    """Bytes: of the process in RAM, and on a GPU of all processes, and of all there is."""
    found: dict[str, int | None] = {"process": resident_bytes()}
    if device.kind == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"device_used": total - free, "device_total": total}
    return found


def compiled_now(device: Device, folder: Path) -> bool | None:
    """Whether the trainer's functions in this folder are compiled; None if they never will be."""
    if any(folder.glob(f"*/{MARK}")):
        return True
    return False if can_compile(device.kind) and any(folder.glob("*")) else None


def _triton() -> str | None:
    for name in ("triton", "triton-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _cudnn() -> int | None:
    if not torch.cuda.is_available():
        return None
    found: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def _gpu(index: int) -> dict[str, Any]:
    found = torch.cuda.get_device_properties(index)
    return {
        "name": found.name,
        "capability": [found.major, found.minor],
        "memory": found.total_memory,
        "multiprocessors": found.multi_processor_count,
    }
