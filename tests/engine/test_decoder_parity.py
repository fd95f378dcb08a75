"""Parity: arcd's own decoder learns exactly what transformers and peft learn on the same lessons.

The loss and the gradient of every tensor, for each architecture that the decoder holds. The
tolerance is exceeded as soon as the adapter of one module in one layer is missing.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from peft import LoraConfig, PeftModel, get_peft_model
from support.tiny_bases import (
    BASES,
    VOCABULARY,
    Letters,
    adapter_on,
    differences,
    fill,
    learnt,
    lesson,
    write,
)
from torch.nn import functional as F

from arcd.backends import peft_lora
from arcd.backends.decoder_lora import DecoderLora
from arcd.backends.lora_adapter import _parts
from arcd.backends.peft_lora import PeftLora
from arcd.backends.resident_base import ResidentBase
from arcd.config import TrainConfig
from arcd.decoder import attention, layers
from arcd.decoder.dropout import Dropout
from arcd.decoder.folder import LINEARS
from arcd.decoder.row import padded
from arcd.errors import TrainerFailed
from arcd.model.base_model import load_model
from arcd.model.device import Device, DTypeName
from arcd.model.prompts import IGNORED, Lesson

pytestmark = pytest.mark.engine

FP32 = Device("cpu", "float32")
TOLERANCE = 1e-4
"""Of the loss, in nats, and of a gradient, as a fraction of it. In fp32 both were within 2e-5.
Without the one module in one layer that is missed least the loss was 0.015 away, and each other
gradient by more than half of itself."""

HALF: dict[DTypeName, float] = {"bfloat16": 0.2, "float16": 0.03}
"""The same for gradients in half precision: the root of the mean square. It was 0.04 to 0.1 and
0.005 to 0.011, with peft as with the decoder."""

ENCODING = Letters()
LESSONS = [lesson(75, seed=1), lesson(33, seed=2), lesson(9, seed=3), lesson(64, seed=4)]
"""More tokens than `max_position_embeddings`, one block of attention, many of them, and a whole
number of them."""

LORA = TrainConfig(rank=8, alpha=12.0)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attention, "BLOCK", 24)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine several wait for each other longer than they work
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: write(make, folder / name) for name, make in BASES.items()}


def own(base: Path, config: TrainConfig = LORA, device: Device = FP32) -> DecoderLora:
    model = ResidentBase(base, device, ENCODING).lora(config)
    assert isinstance(model, DecoderLora)
    return model


def stock(base: Path, config: TrainConfig = LORA, device: Device = FP32) -> PeftLora:
    model = load_model(base, device)
    return PeftLora(model, config, device, ENCODING.pad, ENCODING.answer_tokens)


def both(
    base: Path, config: TrainConfig = LORA, device: Device = FP32
) -> tuple[DecoderLora, PeftLora]:
    """Both kinds of models with the same random tensors."""
    pair = own(base, config, device), stock(base, config, device)
    fill(*pair)
    return pair


def loss_of(model: Any, lessons: list[Lesson]) -> float:
    """The loss by its definition, lesson by lesson: the softmax of all logits, over the tokens
    that an answer can have."""
    found = []
    allowed = torch.full((VOCABULARY,), -math.inf)
    allowed[list(ENCODING.answer_tokens)] = 0
    for each in lessons:
        with torch.no_grad():
            logits = model(torch.tensor([each.tokens])).logits[0, :-1].float()
        labels = torch.tensor(each.labels[1:])
        learnt = labels != IGNORED
        found.append(F.cross_entropy((logits + allowed)[learnt], labels[learnt], reduction="none"))
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("name", BASES)
def test_loss_and_every_gradient_are_those_of_transformers_and_peft(
    bases: dict[str, Path], name: str
) -> None:
    ours, theirs = both(bases[name])
    # The same order, so that a seed gives the same fresh adapter.
    assert list(ours.tensors) == list(theirs.tensors)
    assert len(ours.tensors) == 2 * 2 * len(LINEARS)
    (loss, found), (true_loss, true) = (learnt(model, LESSONS) for model in (ours, theirs))
    assert loss == pytest.approx(true_loss, abs=TOLERANCE)
    assert loss == pytest.approx(loss_of(theirs._peft, LESSONS), abs=TOLERANCE)
    assert max(differences(found, true).values()) < TOLERANCE


@pytest.mark.parametrize("module", LINEARS)
def test_the_lost_adapter_of_one_module_in_one_layer_is_seen(
    bases: dict[str, Path], module: str
) -> None:
    ours, theirs = both(bases["qwen2"])
    half, _ = both(bases["qwen2"], device=Device("cpu", "bfloat16"))
    true_loss, true = learnt(theirs, LESSONS)
    for layer in range(2):
        (name,) = (n for n in true if f"layers.{layer}." in n and f"{module}.lora_B" in n)
        # The gradients of what is lost are not asked: they differ of course.
        others = [n for n in true if module not in n]
        kept = ours.tensors[name].detach().clone()
        with torch.no_grad():
            ours.tensors[name].zero_()
            half.tensors[name].zero_()
        loss, found = learnt(ours, LESSONS)
        far = differences(found, true)
        assert abs(loss - true_loss) > 5 * TOLERANCE
        assert min(far[n] for n in others) > 5 * TOLERANCE
        _, found = learnt(half, LESSONS)
        far = differences(found, true)
        assert rms([far[n] for n in others]) > 1.5 * HALF["bfloat16"]
        with torch.no_grad():
            ours.tensors[name].copy_(kept)
            half.tensors[name].copy_(kept)
    assert max(differences(learnt(ours, LESSONS)[1], true).values()) < TOLERANCE


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", BASES)
def test_in_half_precision_it_is_as_near_to_the_truth_as_peft(
    bases: dict[str, Path], name: str, dtype: DTypeName
) -> None:
    (_, true) = learnt(own_filled(bases[name]), LESSONS)
    far = []
    for model in both(bases[name], device=Device("cpu", dtype)):
        _, found = learnt(model, LESSONS)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        far.append(rms(differences(found, true).values()))
    ours, theirs = far
    assert ours < 2 * theirs
    assert ours < HALF[dtype]


def rms(errors: Collection[float]) -> float:
    return math.sqrt(math.fsum(error**2 for error in errors) / len(errors))


def own_filled(base: Path) -> DecoderLora:
    model = own(base)
    fill(model)
    return model


@pytest.mark.parametrize(
    "config",
    [
        LORA.model_copy(update={"target_modules": modules})
        for modules in (("v_proj",), ("down_proj",), ("k_proj", "q_proj"), ("up_proj", "o_proj"))
    ]
    + [TrainConfig(rank=16, alpha=4.0, rslora=True), TrainConfig(rank=1, alpha=0.5)],
    ids=lambda config: f"{'+'.join(config.target_modules)} {config.rank} {config.alpha}",
)
def test_it_learns_the_modules_that_it_is_asked_for_at_the_scale_that_it_is_asked_for(
    bases: dict[str, Path], config: TrainConfig
) -> None:
    ours, theirs = both(bases["llama biases"], config)
    assert list(ours.tensors) == list(theirs.tensors)
    before = {name: tensor.detach().clone() for name, tensor in ours.tensors.items()}
    (loss, found), (true_loss, true) = (learnt(model, LESSONS) for model in (ours, theirs))
    assert loss == pytest.approx(true_loss, abs=TOLERANCE)
    assert max(differences(found, true).values()) < TOLERANCE
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.tensors.items())


def test_dropout_stands_where_peft_has_it(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a function in the place of dropout that has no randomness in it."""
    given: list[float] = []

    def bent(self: Dropout, x: "torch.Tensor", place: str) -> "torch.Tensor":
        given.append(self.probability)
        return x * x.cos()

    def stock_bent(self: torch.nn.Dropout, x: "torch.Tensor") -> "torch.Tensor":
        given.append(self.p)
        assert self.training
        return x * x.cos()

    monkeypatch.setattr(peft_lora, "_replace_dropouts", lambda model, dropout: None)
    ours, theirs = both(bases["qwen3"], LORA.model_copy(update={"dropout": 0.3}))
    plain, _ = learnt(ours, LESSONS)
    monkeypatch.setattr(Dropout, "__call__", bent)
    monkeypatch.setattr(torch.nn.Dropout, "forward", stock_bent)
    (loss, found), (true_loss, true) = (learnt(model, LESSONS) for model in (ours, theirs))
    assert given == [0.3] * 2 * 2 * len(LINEARS)
    assert loss == pytest.approx(true_loss, abs=TOLERANCE)
    assert abs(loss - plain) > 5 * TOLERANCE
    assert max(differences(found, true).values()) < TOLERANCE


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activations_can_be_computed_again_without_a_change(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    ours = own(bases["qwen3"], LORA.model_copy(update={"dropout": dropout}))
    fill(ours)
    computed: list[int] = []

    def counted(*arguments: Any) -> "torch.Tensor":
        computed.append(1)
        return attention.attend(*arguments)

    monkeypatch.setattr(layers, "attend", counted)
    ours.begin(7)
    true_loss, true = learnt(ours, LESSONS)
    assert len(computed) == 2
    ours.begin(7)
    torch.manual_seed(9)  # as if another thread had drawn
    loss, found = learnt(ours, LESSONS, recompute=True)
    assert len(computed) == 2 + 2 * 2
    assert loss == true_loss
    assert max(differences(found, true).values()) < 1e-6
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", [own, stock])
def test_dropout_is_that_of_the_seed_whatever_others_draw(
    bases: dict[str, Path], kind: Callable[..., DecoderLora | PeftLora], recompute: bool
) -> None:
    """In both trainers, and where activations are computed again."""
    config = LORA.model_copy(update={"dropout": 0.3})
    losses: list[list[float]] = []
    for seed in (1, 1, 2):
        model = kind(bases["qwen3"], config)
        fill(model)
        model.begin(seed)
        losses.append([])
        for _ in range(2):
            torch.rand(len(losses))
            loss, found = learnt(model, LESSONS, recompute=recompute)
            norm = math.fsum(float(each.square().sum()) for each in found.values())
            losses[-1] += [loss, norm]
    first, again, other = losses
    assert first == again
    assert other[0] != first[0]
    assert first[2] != first[0]


def test_tensors_are_fp32_whatever_the_default_is(bases: dict[str, Path]) -> None:
    """While vLLM starts, torch's default number format is another in all threads."""
    fresh = own(bases["llama"])
    adapter_on(fresh, LORA, FP32).reset(seed=3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        ours = own(bases["llama"])
        adapter_on(ours, LORA, FP32).reset(seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in ours.tensors.values()} == {torch.float32}
    assert all(torch.equal(tensor, ours.tensors[name]) for name, tensor in fresh.tensors.items())


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (LORA.model_copy(update={"rslora": True, "dropout": 0.25}), "float32"),
        (LORA.model_copy(update={"target_modules": ("up_proj", "q_proj")}), "bfloat16"),
    ],
    ids=["float32", "bfloat16"],
)
def test_peft_reads_the_adapter_that_was_saved(
    bases: dict[str, Path], tmp_path: Path, config: TrainConfig, dtype: DTypeName
) -> None:
    base, device = bases["qwen3"], Device("cpu", dtype)
    ours = own(base, config, device)
    fill(ours)
    adapter_on(ours, config, device, base).save(tmp_path)
    read = LoraConfig.from_pretrained(tmp_path)
    assert (read.r, read.lora_alpha) == (config.rank, config.alpha)
    assert (read.use_rslora, read.lora_dropout) == (config.rslora, config.dropout)
    assert read.target_modules == set(config.target_modules)
    # In fp32: the weights are bf16's, so nothing is lost in either file.
    plain = own(base, config.model_copy(update={"dropout": 0.0}))
    fill(plain)
    served = PeftModel.from_pretrained(load_model(base, FP32), tmp_path).eval()
    assert loss_of(served, LESSONS) == pytest.approx(learnt(plain, LESSONS)[0], abs=TOLERANCE)


def test_training_starts_from_an_adapter_that_peft_saved(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["qwen2"]
    theirs = get_peft_model(
        load_model(base, FP32),
        LoraConfig(r=8, lora_alpha=12, target_modules=list(LINEARS), task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    ours = own(base)
    adapter_on(ours, LORA, FP32).reset(seed=0, start=tmp_path)
    assert learnt(ours, LESSONS)[0] == pytest.approx(loss_of(theirs, LESSONS), abs=TOLERANCE)
    other = LORA.model_copy(update={"target_modules": ("q_proj",)})
    with pytest.raises(TrainerFailed, match="another base, rank or set of modules"):
        adapter_on(own(base, other), other, FP32).reset(seed=0, start=tmp_path)


@pytest.mark.parametrize(
    ("most", "parts"),
    [
        (1, [75, 33, 9, 64]),
        (96, [75, 42, 64]),
        (159, [75, 42, 64]),
        (160, [108, 73]),
        (192, [117, 64]),
        (1000, [181]),
    ],
)
def test_a_step_is_the_same_in_however_many_parts_its_batch_is(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch, most: int, parts: list[int]
) -> None:
    """Each has as much as goes together, padded to multiples of 32, and at least one lesson."""
    model = own(bases["llama"])
    adapter = adapter_on(model, LORA, FP32)
    fill(model)
    true_loss, true = learnt(model, LESSONS)
    given: list[int] = []
    loss = model.loss

    def counted(lessons: Sequence[Lesson], *, recompute: bool) -> "torch.Tensor":
        given.append(sum(len(each.tokens) for each in lessons))
        return loss(lessons, recompute=recompute)

    monkeypatch.setattr(model, "loss", counted)
    found_loss = adapter._backward(list(_parts(LESSONS, most, padded)), recompute=False)
    assert float(found_loss) == pytest.approx(true_loss)
    found = {name: tensor.grad for name, tensor in model.tensors.items() if tensor.grad is not None}
    assert max(differences(found, true).values()) < TOLERANCE
    assert given == parts
