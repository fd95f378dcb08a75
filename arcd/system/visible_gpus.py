"""Which GPU a process sees: the one that it was told to use, by CUDA_VISIBLE_DEVICES.

A process sees one GPU at most, so that everything in it can say "cuda": vLLM takes no other device.
CUDA reads the variable once, so it is set before torch is imported. Knows nothing of torch.
"""

import os
import re
from collections.abc import Mapping, MutableMapping

from arcd.errors import BadConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""CUDA's variable: the GPUs that a process sees, by number, UUID, or UUID of a part (MIG)."""

ORDER = "CUDA_DEVICE_ORDER"
"""CUDA's variable: how GPUs are numbered."""

BY_BUS = "PCI_BUS_ID"
"""The order of `nvidia-smi`, in which vLLM reads the properties of a GPU; CUDA's own default is
another where a machine has GPUs of several kinds."""

NARROWED = "ARCD_NARROWED"
"""What was narrowed, and to what: a child of such a process must not count within one GPU."""

DEVICE = re.compile(r"cuda(?::(0|[1-9][0-9]{0,3}))?")

GPU = re.compile(r"[0-9]+|(?:GPU|MIG)-.+")


def gpu_index(device: str) -> int | None:
    """The number of the wanted GPU; None for a CPU. Raises BadConfig for what is no device."""
    if device == "cpu":
        return None
    found = DEVICE.fullmatch("cuda" if device == "auto" else device)
    if found is None:
        raise BadConfig(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    return int(found[1] or 0)


def visible(value: str) -> list[str]:
    """The entries of CUDA_VISIBLE_DEVICES; like CUDA, only those before one that is no GPU."""
    entries = []
    for entry in value.split(","):
        if not GPU.fullmatch(entry.strip()):
            break
        entries.append(entry.strip())
    return entries


def narrowing(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to be set so that a process sees the wanted GPU alone; none for a CPU.

    Where CUDA_VISIBLE_DEVICES is set, N in `cuda:N` counts within it. Where it shows no GPU, `auto`
    and `cuda` leave it alone. Raises BadConfig for what is no device or a GPU it does not show.
    """
    index = gpu_index(device)
    before = environment.get(VISIBLE)
    if index is None or environment.get(NARROWED) == f"{device} {before}":
        return {}
    if before is None:
        order = environment.get(ORDER, BY_BUS)
        return {VISIBLE: str(index), ORDER: order, NARROWED: f"{device} {index}"}
    shown = visible(before)
    if index < len(shown):
        return {VISIBLE: shown[index], NARROWED: f"{device} {shown[index]}"}
    if index == 0:
        return {}
    raise BadConfig(f"device {device!r}: {VISIBLE}={before} shows {len(shown)} GPUs, from cuda:0")


def narrow(device: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let this process and its children see the wanted GPU alone. Raises as `narrowing` does.

    To be called before CUDA is used, at best before torch is imported. A second call with the same
    device changes nothing.
    """
    environment.update(narrowing(device, environment))
