"""The base model: a folder with weights, and the encoding it was made for.

A base is any Hugging Face folder of a causal language model. arcd's own has an `arcd.json` in it
that names its encoding. torch and transformers are imported only where a tokenizer or a model is
opened. Knows nothing of training or serving.
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcd.config import EngineConfig, TrainConfig
from arcd.errors import BadBase, BadConfig, MissingPackage
from arcd.model.device import Device
from arcd.model.encoding import CellEncoding, Encoding, GridText, TextEncoding
from arcd.system.visible_gpus import narrowing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""The tensors in a PEFT folder."""

MARKER = "arcd.json"
"""Beside a base's weights: its encoding; beside an adapter's: the fingerprint of its base."""

DEFAULT_TEXT = "shape+rows+digits"
"""The encoding for a base that does not name its own."""


def bundled() -> Path:
    """The folder of the base model that ships with arcd."""
    return Path(str(files("arcd") / "base"))


def check(path: Path) -> Path:
    """The folder itself. Raises BadBase if it cannot be that of a base model."""
    if not path.is_dir():
        raise BadBase(f"{path}: not a folder with a base model")
    if not (path / "config.json").is_file():
        raise BadBase(f"{path}: a base model without config.json")
    if not any(path.glob("*.safetensors")):
        raise BadBase(f"{path}: a base model without weights (*.safetensors)")
    return path


def cpu_cache_gib(path: Path, config: EngineConfig) -> int:
    """GiB for keys and values on a CPU: the user's wish, or enough for two of the longest prompts.

    A config.json that does not tell the sizes is that of an architecture that vLLM has to judge.
    """
    if config.cpu_cache_gib is not None:
        return config.cpu_cache_gib
    found = model_config(path)
    try:
        heads = found["num_attention_heads"]
        size = found.get("head_dim") or found["hidden_size"] // heads
        values = found["num_hidden_layers"] * (found.get("num_key_value_heads") or heads) * size
        # A key and a value, each of two bytes, for each token of two prompts.
        return max(1, math.ceil(8 * int(values) * config.max_model_len / 2**30))
    except (KeyError, TypeError):
        return 1


def model_config(path: Path) -> dict[str, Any]:
    """What config.json says; nothing where it is no JSON object: who loads the model says why."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def fingerprint(path: Path) -> str:
    """A hash that differs between bases: of the config and of the first MiB of each weight file.

    That MiB holds the names, shapes and first values of the tensors; reading all of a large model
    would take minutes.
    """
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(1 << 20))
    return digest.hexdigest()


def check_wishes(path: Path, encoding: str, device: str) -> None:
    """Refuse what can be refused without torch.

    Raises what `check`, `open_encoding`, `narrow` and `pick_device` would raise.
    """
    _layers(check(path), encoding)
    narrowing(device, os.environ)


def check_training(path: Path, config: TrainConfig) -> None:
    """Raise BadConfig, with key and reason, for a training that this base cannot have."""
    linear = {name.removesuffix(".weight").rpartition(".")[2] for name in _tensors(path)}
    for target in config.target_modules:
        if target not in linear:
            raise BadConfig(f"train.target_modules: the base has no {target!r}")
    if config.start is not None:
        _check_start(config.start, path)


def _check_start(start: Path, base: Path) -> None:
    """Raise BadConfig for a folder that has no adapter of this base."""
    try:
        there = (start / ADAPTER_WEIGHTS).is_file()
        marker = start / MARKER
        text = marker.read_text(encoding="utf-8") if marker.is_file() else None
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL, or a marker that is no text.
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadConfig(f"train.start: {start}: cannot be read: {reason}") from None
    if not there:
        raise BadConfig(f"train.start: {start}: no adapter in it")
    if text is None:
        return  # made by somebody else: whether it fits is seen when it is loaded
    try:
        of = json.loads(text)["base"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadConfig(f"train.start: {marker}: does not name a base") from None
    if of != fingerprint(base):
        raise BadConfig(f"train.start: {start}: an adapter of another base")


def _tensors(path: Path) -> Iterator[str]:
    """The names of the tensors in a folder, from the headers of its files."""
    for file in sorted(path.glob("*.safetensors")):
        yield from _header(file)


def _header(file: Path) -> dict[str, object]:
    """What a safetensors file tells of itself, by the names of its tensors.

    It begins with the length of its JSON header: 8 bytes, little-endian. Raises BadBase where there
    is no such header.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            # A longer one than the file is none, and must not ask for memory.
            found = json.loads(opened.read(length) if length <= file.stat().st_size else b"")
    except OSError as error:
        raise BadBase(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadBase(f"{file}: not a safetensors file")
    return found


def open_encoding(path: Path, name: str) -> Encoding:
    """The encoding of this name for the base; `auto` is the one that it was made for.

    Raises BadConfig if the name does not fit the base, BadBase if its tokenizer cannot be used,
    MissingPackage if a text encoding lacks transformers.
    """
    text = _layers(path, name)
    return _text_encoding(path, text) if text else CellEncoding()


def _layers(path: Path, name: str) -> GridText | None:
    """How the encoding of this name writes grids as text; None for the encoding in cells."""
    own = _own_encoding(path)
    wanted = (own or DEFAULT_TEXT) if name == "auto" else name
    text = None if wanted == "cells" else GridText.named(wanted)
    if (text is None) != (own == "cells"):
        raise BadConfig(f"encoding {wanted!r} does not fit the base {path}")
    return text


def _own_encoding(path: Path) -> str | None:
    marker = path / MARKER
    if not marker.is_file():
        return None
    try:
        return str(json.loads(marker.read_text())["encoding"])
    except (ValueError, KeyError, TypeError):
        raise BadBase(f"{marker}: does not name an encoding") from None


def _text_encoding(path: Path, text: GridText) -> Encoding:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingPackage from None
    try:
        return TextEncoding(AutoTokenizer.from_pretrained(path), text)
    except BadBase as error:
        raise BadBase(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError) as error:
        raise BadBase(f"{path}: no usable tokenizer: {str(error).splitlines()[0]}") from None


def twin(model: "PreTrainedModel") -> "PreTrainedModel":
    """Another model on the same weights in memory, which can have adapters of its own."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def load_model(path: Path, device: Device) -> "PreTrainedModel":
    """The model on the device, frozen.

    Raises BadBase if the folder has none, MissingPackage without torch or transformers.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise MissingPackage from None
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, device.dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadBase(f"{path}: cannot be loaded: {str(error).splitlines()[0]}") from None
    model.requires_grad_(False)
    return model.to(device.kind)
