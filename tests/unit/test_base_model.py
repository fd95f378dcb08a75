"""What is refused of a base and of an adapter to start from: one line, whatever the files hold."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcd.config import TrainConfig
from arcd.errors import BadBase, BadConfig
from arcd.model.base_model import (
    ADAPTER_WEIGHTS,
    MARKER,
    bundled,
    check_training,
    check_wishes,
    fingerprint,
)


def base_of(folder: Path, weights: bytes) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def refusal(base: Path, **config: object) -> str:
    with pytest.raises((BadBase, BadConfig)) as caught:
        check_training(base, TrainConfig.model_validate(config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@given(st.binary(max_size=40) | st.binary(max_size=20).map(header))
@example(b"\xff" * 16)  # a length that no file has: OverflowError
@example(struct.pack("<Q", 1 << 40))  # one that no memory has
@example(header(b"[1, 2]"))
@example(header(b"7"))
@example(header(b"[" * 100_000))
@example(b"")
def test_a_file_without_a_header_is_refused(
    tmp_path_factory: pytest.TempPathFactory, weights: bytes
) -> None:
    base = base_of(tmp_path_factory.mktemp("base"), weights)
    assert "model.safetensors: not a safetensors file" in refusal(base) or weights[8:] == b"{}"


def test_a_header_names_the_modules_that_can_be_trained(tmp_path: Path) -> None:
    names: dict[str, object] = {
        f"model.layers.0.self_attn.{name}.weight": {} for name in ("q_proj", "v_proj")
    }
    base = base_of(tmp_path, header(json.dumps(names).encode()))
    check_training(base, TrainConfig(target_modules=("q_proj", "v_proj")))
    assert "the base has no 'k_proj'" in refusal(base, target_modules=["k_proj"])


def adapter(folder: Path, marker: str | bytes | None) -> Path:
    folder.mkdir()
    (folder / ADAPTER_WEIGHTS).touch()
    if marker is not None:
        (folder / MARKER).write_bytes(marker if isinstance(marker, bytes) else marker.encode())
    return folder


@pytest.mark.parametrize(
    "marker", ["", "{", "[]", "7", "null", "{}", '{"bases": 1}', b"\xff\xfe", "[" * 100_000]
)
def test_an_adapter_with_a_broken_marker_is_refused(tmp_path: Path, marker: str | bytes) -> None:
    start = adapter(tmp_path / "start", marker)
    assert refusal(bundled(), start=start).startswith(f"train.start: {start}")


@pytest.mark.parametrize("start", ["/nowhere", "/dev/null", "/" + "x" * 5000, "/a\0b", "/\ud800"])
def test_what_is_no_folder_of_an_adapter_is_refused(start: str) -> None:
    config = TrainConfig().model_copy(update={"start": Path(start)})
    with pytest.raises(BadConfig, match=r"^train\.start: "):
        check_training(bundled(), config)


def test_an_adapter_of_this_base_and_one_that_does_not_say_are_taken(tmp_path: Path) -> None:
    marker = json.dumps({"base": fingerprint(bundled())})
    for name, text in (("own", marker), ("silent", None)):
        start = adapter(tmp_path / name, text)
        check_training(bundled(), TrainConfig(start=start))
    other = adapter(tmp_path / "other", json.dumps({"base": "another"}))
    assert refusal(bundled(), start=other) == f"train.start: {other}: an adapter of another base"


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:01", "CUDA"])
def test_a_wrong_device_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(
        BadConfig, match=rf"^device '{device}': expected auto, cpu, cuda or cuda:N$"
    ):
        check_wishes(bundled(), "auto", device)


def test_a_gpu_that_is_not_shown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    check_wishes(bundled(), "auto", "cuda:1")
    with pytest.raises(BadConfig, match="shows 2 GPUs"):
        check_wishes(bundled(), "auto", "cuda:2")
