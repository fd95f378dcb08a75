"""The NVIDIA driver of this machine, asked without torch: what it supports, what it shows.

Of use where torch finds no GPU, to say why. Knows nothing of torch.
"""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

LIBRARY = "libcuda.so.1"
"""The driver's own part of CUDA; no package of Python brings it."""

RELEASE = Path("/proc/driver/nvidia/version")

DEVICES = Path("/dev")

NO_DEVICE = 100
"""CUDA's code for a machine without GPU, or whose GPUs are hidden (CUDA_ERROR_NO_DEVICE)."""


@dataclass(frozen=True, slots=True)
class Driver:
    """What there is of a driver; by default nothing."""

    release: str = ""
    """Such as 535.129.03; unknown where the kernel does not tell."""
    cuda: tuple[int, int] | None = None
    """The newest CUDA that it supports; None if its library is not here."""
    gpus: int = 0
    """GPUs that CUDA shows to this process."""
    files: int = 0
    """GPUs whose device files are here. A container has those that it was given."""
    error: str = ""
    """Why CUDA does not start, if it does not."""

    def __str__(self) -> str:
        supported = "no CUDA" if self.cuda is None else f"CUDA {self.cuda[0]}.{self.cuda[1]}"
        return f"driver {self.release or 'of unknown release'} supports {supported}"


def find_driver() -> Driver:
    """The driver of this machine. It starts CUDA in this process, so the GPU must be narrowed."""
    release, files = _release(), _device_files()
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return Driver(release, files=files)
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    # 12020 is 12.2.
    version = number.value // 1000, number.value % 1000 // 10
    code = library.cuInit(0)
    if code != 0:
        error = "" if code == NO_DEVICE else f"error {code}, {_words(library, code)}"
        return Driver(release, version, files=files, error=error)
    count = ctypes.c_int()
    library.cuDeviceGetCount(ctypes.byref(count))
    return Driver(release, version, count.value, files)


def _release() -> str:
    try:
        text = RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", text)
    return found[1] if found else ""


def _device_files() -> int:
    names = [path.name for path in DEVICES.glob("nvidia*")]
    # Not /dev/dxg: Windows shows GPUs of any maker to Linux (WSL) through it.
    return sum(1 for name in names if re.fullmatch(r"nvidia\d+", name))


def _words(library: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(text))
    return (text.value or b"unknown").decode(errors="replace")
