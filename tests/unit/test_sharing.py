"""The engine's tensors as the decoder's: used where they are what the folder says, refused else."""

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support.tiny_bases import BASES, write
from torch import Tensor

from arcd.decoder.folder import Files, read
from arcd.decoder.sharing import EngineTensors, NotSharedError

QKV = "model.layers.1.self_attn.qkv_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def as_vllm(files: Files) -> dict[str, Tensor]:
    """The folder's tensors as vLLM keeps them: stacked, the vocabulary padded to 64 rows."""
    held = {}
    for name in files.shapes:
        if not any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_", "up_proj")):
            held[name] = files.stack([name])
    for weight in [name for name in files.shapes if "q_proj" in name]:
        names = [weight.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
        held[weight.replace("q_proj", "qkv_proj")] = files.stack(names)
    for weight in [name for name in files.shapes if "gate_proj" in name]:
        names = [weight, weight.replace("gate_proj", "up_proj")]
        held[weight.replace("gate_proj", "gate_up_proj")] = files.stack(names)
    for name in (EMBEDDING, "lm_head.weight"):
        if name in held:
            rows = -len(held[name]) % 64
            held[name] = torch.cat([held[name], held[name].new_full((rows, 48), 7.0)])
    return held


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write(maker, tmp_path_factory.mktemp(name.replace(" ", "-")))
        for name, maker in BASES.items()
    }


def opened(folder: Path) -> Files:
    return Files(folder, torch.float32, "cpu")


@pytest.mark.parametrize("name", BASES)
def test_the_decoder_reads_the_same_from_the_engine_without_a_copy(
    folders: dict[str, Path], name: str
) -> None:
    files = opened(folders[name])
    held = as_vllm(files)
    own, own_outputs = read(folders[name], files)
    shared, outputs = read(folders[name], EngineTensors(files, held))
    places = {tensor.data_ptr() for tensor in held.values()}
    for mine, theirs in zip(own.layers, shared.layers, strict=True):
        for a, b in zip(mine.stacks, theirs.stacks, strict=True):
            assert a.outputs == b.outputs
            assert torch.equal(a.weight, b.weight)
            assert b.weight.data_ptr() in places
            assert (a.bias is None) == (b.bias is None)
            assert b.bias is None or (torch.equal(a.bias, b.bias) and b.bias.data_ptr() in places)
    assert torch.equal(own.embedding, shared.embedding)
    assert shared.embedding.data_ptr() in places
    assert torch.equal(own_outputs, outputs)
    assert outputs.data_ptr() in places


def transposed(weight: Tensor) -> Tensor:
    columns: Tensor = weight.t().contiguous()
    return columns.t()


def for_inference(weight: Tensor) -> Tensor:
    with torch.inference_mode():
        copied: Tensor = weight.clone()
    return copied


def keys_first(weight: Tensor) -> Tensor:
    return weight.roll(64, 0)


FAULTS: dict[str, tuple[str, Callable[[Tensor], Tensor], str]] = {
    "one value": (DOWN, lambda w: w + torch.eye(*w.shape) * (w == w[0, 0]), "other values in"),
    "another order": (QKV, keys_first, "other values in"),
    "transposed": (DOWN, transposed, "in another layout"),
    "packed": (DOWN, lambda w: w.flatten(), "in another layout"),
    "half": (DOWN, lambda w: w.half(), "as torch.float16 on cpu"),
    "inference": (EMBEDDING, for_inference, "for inference only"),
    "fewer rows": (QKV, lambda w: w[:-1], "in another layout"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_that_is_not_as_the_folder_says_is_refused_by_name(
    folders: dict[str, Path], fault: str
) -> None:
    files = opened(folders["qwen3"])
    name, change, reason = FAULTS[fault]
    held = as_vllm(files)
    held[name] = change(held[name])
    with pytest.raises(NotSharedError, match=reason) as caught:
        read(folders["qwen3"], EngineTensors(files, held))
    assert name in str(caught.value)


def test_a_tensor_that_the_engine_does_not_have_is_refused_by_name(
    folders: dict[str, Path],
) -> None:
    files = opened(folders["qwen2"])
    held = as_vllm(files)
    del held[QKV]
    with pytest.raises(NotSharedError, match=f"the engine has no {QKV}"):
        read(folders["qwen2"], EngineTensors(files, held))
