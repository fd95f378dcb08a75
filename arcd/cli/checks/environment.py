"""The environment: versions, driver and variables, without torch and without anything private."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

from arcd.cli.finding import Finding
from arcd.system.cuda_driver import Driver, find_driver
from arcd.system.processes import cores
from arcd.version import __version__

PREFIXES = (
    *("ARCD_", "CUDA_", "NVIDIA_", "NCCL_", "VLLM_", "OMP_", "MKL_", "KMP_", "GOMP_", "DNNL_"),
    *("ONEDNN_", "TORCH", "PYTORCH_", "TRITON_", "HF_", "TRANSFORMERS_", "LD_PRELOAD", "LRU_CACHE"),
)
"""What the names of variables begin with that change what arcd, torch and vLLM do."""

SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL", "AUTH")
"""What the names of variables have in them whose values nobody else may see."""

SHORTEST_SECRET = 6
"""Characters of a value that is taken out of texts; a shorter one is a part of many words."""

MOST_LINES = 20
"""Lines of a tool's answer that are kept."""

GPU_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "memory.used")


def environment() -> Finding:
    """Versions of Python, system and arcd, the driver, the variables that matter."""
    lines = told("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader")
    gpus = [dict(zip(GPU_FIELDS, line.split(", "), strict=False)) for line in lines]
    commit = _commit()
    data = {
        "arcd": __version__,
        "commit": commit,
        "python": sys.version,
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": cores(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
        "variables": variables(os.environ),
    }
    driver = f"driver {gpus[0].get('driver_version')}" if gpus else _without_nvidia_smi()
    built = f" ({commit})" if commit else ""
    value = (
        f"arcd {__version__}{built}, Python {platform.python_version()} on "
        f"{platform.system()} {platform.machine()}, {cores()} cores, {driver}"
    )
    return Finding("environment", value, data=data)


def _without_nvidia_smi() -> str:
    found = find_driver()
    if found == Driver():
        return "no NVIDIA driver"
    return f"nvidia-smi does not answer, {found} and shows {found.gpus} GPUs"


def packages() -> Finding:
    """All installed packages with their versions."""
    found = {each.metadata["Name"]: each.version for each in distributions()}
    data = dict(sorted(found.items(), key=lambda item: str(item[0]).lower()))
    return Finding("packages", f"{len(data)} installed", data=data)


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Those that matter and are no secret."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith(PREFIXES) and not _is_secret(name)
    }


def without_secrets(value: Any, environ: Mapping[str, str], home: str) -> Any:
    """A JSON value whose texts have neither the path of the user's home nor a secret's value."""
    secrets = [v for k, v in environ.items() if _is_secret(k) and len(v) >= SHORTEST_SECRET]
    replaced = {secret: "***" for secret in sorted(secrets, key=len, reverse=True)}
    if len(home) > 1:  # "/" is the home of nobody, and a part of every path
        replaced[home.rstrip("/")] = "~"
    return _replaced(value, replaced)


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    match value:
        case str():
            for text, other in texts.items():
                value = value.replace(text, other)
            return value
        case Mapping():
            return {_replaced(key, texts): _replaced(each, texts) for key, each in value.items()}
        case list() | tuple():
            return [_replaced(each, texts) for each in value]
    return value


def _is_secret(name: str) -> bool:
    return any(part in name.upper() for part in SECRET)


def _commit() -> str | None:
    """The commit that arcd was installed from, or that of the clone it runs in."""
    try:
        read = distribution("arcd").read_text("direct_url.json") or ""
    except ImportError:
        read = ""
    if "commit_id" in read:
        return read.partition('"commit_id": "')[2].partition('"')[0] or None
    clone = Path(__file__).parents[3]
    if not (clone / ".git").exists():
        return None
    return next(iter(told("git", "-C", str(clone), "rev-parse", "--short=12", "HEAD")), None)


def told(*command: str) -> list[str]:
    """The lines that a program prints; none where there is no such program, or it fails."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()[:MOST_LINES]
