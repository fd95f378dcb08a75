"""Whether torch, as it is built, can use the GPU that is here, and what to do where it cannot.

Pure functions of what torch and the driver say of themselves. Each answer is one line, or None.
"""

import re
from dataclasses import dataclass

from arcd.system.cuda_driver import LIBRARY, Driver
from arcd.system.visible_gpus import VISIBLE, visible

OLDEST_DRIVER = {11: "450.80", 12: "525.60", 13: "580.65"}
"""The oldest driver for Linux that runs programs of a major version of CUDA (CUDA Toolkit release
notes, table "Minimum Required Driver Version for CUDA Minor Version Compatibility")."""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What torch is built for."""

    version: str
    """Such as 2.13.0+cu130."""
    cuda: str | None
    """Such as 13.0; None without CUDA."""
    architectures: tuple[str, ...] = ()
    """As `torch.cuda.get_arch_list` names them: sm_90 is code for a GPU, compute_90 is PTX."""

    def __str__(self) -> str:
        return f"torch {self.version} (" + (f"CUDA {self.cuda}" if self.cuda else "no CUDA") + ")"


def why_none(build: TorchBuild, driver: Driver, shown: str | None = None) -> str | None:
    """Why torch finds no GPU although one is here; None if there is none, or all are hidden.

    `shown` is CUDA_VISIBLE_DEVICES: where it names no GPU, somebody has hidden them all.
    """
    hidden = shown is not None and not visible(shown)
    if hidden or not (driver.gpus or driver.files):
        return None
    if build.cuda is None:
        return f"a GPU is here, but {build} is built for CPUs: install arcd[cuda]"
    if driver.cuda is None:
        return (
            f"a GPU is here, but not its driver's library {LIBRARY}: install the driver, or start "
            "the container with the driver's capabilities `compute,utility`"
        )
    if driver.cuda[0] < (wanted := int(build.cuda.partition(".")[0])):
        return f"{driver}, but {build} needs CUDA {wanted}: {_remedy(wanted, driver.cuda[0])}"
    if driver.error:
        return f"{driver}, but CUDA does not start ({driver.error}): see what nvidia-smi says"
    if not driver.gpus:
        return (
            f"{driver.files} GPUs are here, but CUDA shows none of them ({VISIBLE}={shown or ''})"
        )
    return f"{driver} and shows a GPU, but {build} cannot use it"


def why_not_this(build: TorchBuild, name: str, capability: tuple[int, int]) -> str | None:
    """Why torch cannot compute on this GPU; None if it can, or does not list what it is for."""
    listed = build.architectures
    if not listed or any(runs_on(each, capability) for each in listed):
        return None
    major, minor = capability
    return (
        f"{name} has compute capability {major}.{minor}, but {build} is built for "
        f"{', '.join(listed)}: install one that is built for it, or name another GPU (cuda:N)"
    )


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a GPU of this compute capability.

    Code for a GPU runs on the same major version from its own minor version on, PTX on all that
    are newer; `a` at the end means this capability alone, `f` its family, which is the same major
    version (CUDA Programming Guide, "Compute capability and compatibility"). What cannot be read
    is not judged.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if found is None:
        return True
    built = int(found[2]), int(found[3])
    if found[4] == "a":
        return built == capability
    if found[1] == "compute" and not found[4]:
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def _remedy(needed: int, supported: int) -> str:
    oldest = OLDEST_DRIVER.get(needed)
    driver = f"install driver {oldest} or newer" if oldest else "install a newer driver"
    built = "arcd[kaggle], which is" if supported == 12 else "a torch and a vLLM that are"
    return f"{driver}, or {built} built for CUDA {supported}"
